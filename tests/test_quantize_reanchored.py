"""Re-anchored codes against plain float64 loops; the draws; resuming; processes; refusals."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.reanchored import ReanchoredQuantizer

ANCHORS = ("closest", "random", "probabilistic")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(size=12, dim=3, seed=0, **options):
    """A quantizer whose codes are spread like the vectors of ``drawn``."""
    quantizer = ReanchoredQuantizer(size, dim, **options)
    quantizer.codebook.data.copy_(drawn(size, dim, seed=seed))
    return quantizer


def rows(z):
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def state(quantizer):
    return copy.deepcopy(quantizer.state_dict())


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_plain_loops(quantizer, batches, rate):
    """The codes, usage, indices and gradients of training by gradient descent, in float64 and code by code."""
    size, decay = quantizer.codebook_size, quantizer.decay
    codes = quantizer.codebook.detach().double().clone()
    usage = [0.0] * size
    for step, z in enumerate(batches):
        z_nd = rows(z).double()
        out = quantizer(z)
        if step:
            for code in range(size):
                alpha = math.exp(-usage[code] * size * 10 / (1 - decay) - 1e-3)
                anchor = z_nd[(z_nd - codes[code]).square().sum(1).argmin()]
                codes[code] = (1 - alpha) * codes[code] + alpha * anchor
        assert torch.allclose(quantizer.codebook.detach().double(), codes, rtol=1e-4, atol=1e-5)
        indices_n = out.indices.flatten()
        distances = (z_nd[:, None] - codes).square().sum(-1)
        assert (distances[range(len(z_nd)), indices_n] <= distances.min(1).values + 1e-5).all()
        gradient = torch.zeros_like(codes)
        for row, code in zip(z_nd, indices_n, strict=True):
            gradient[code] += 2 * (codes[code] - row) / z_nd.numel()
        (found,) = torch.autograd.grad(out.loss, quantizer.codebook)
        assert torch.allclose(found.double(), gradient, rtol=1e-4, atol=1e-6)
        codes -= rate * gradient
        quantizer.codebook.data.sub_(rate * found)
        for code in range(size):
            usage[code] = decay * usage[code] + (1 - decay) * (indices_n == code).double().mean().item()
        assert torch.allclose(quantizer.usage.double(), torch.tensor(usage).double(), rtol=1e-5)


@pytest.mark.parametrize(("size", "dim"), [(1, 1), (20, 3), (60, 2)])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
def test_codes_follow_the_plain_loops(size, dim, decay):
    quantizer = started(size, dim, decay=decay)
    assert_plain_loops(quantizer, [drawn(2, dim, 3, 4, seed=step + 1) for step in range(5)], rate=0.5)


@settings(max_examples=25, deadline=None)
@given(
    anchors=st.sampled_from(ANCHORS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_indices_give_the_vectors_that_were_used(anchors, dtype, seed):
    quantizer = started(40, anchors=anchors)
    before = quantizer.codebook.detach().clone()
    for step in range(3):
        z = drawn(2, 3, 4, 5, seed=seed + step).to(dtype)
        out = quantizer(z)
        assert out.quantized.dtype == torch.float32
        assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
        assert torch.equal(quantizer.quantize(z), out.indices)
    assert not torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_first_batch_moves_no_code(anchors):
    quantizer = ReanchoredQuantizer(5, 3, anchors=anchors)
    before = quantizer.codebook.detach().clone()
    assert before.abs().max() <= 1 / 5
    quantizer(drawn(2, 3, 4, 4))
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_codes_in_use_stay_and_others_move_to_vectors_of_the_batch(anchors):
    quantizer = started(40, anchors=anchors)
    quantizer.codebook.data[::2] += 5
    before = quantizer.codebook.detach().clone()
    used = quantizer(drawn(2, 3, 4, 5, seed=1)).indices.unique()
    z = drawn(2, 3, 4, 5, seed=2)
    quantizer(z)
    unused = torch.tensor([code for code in range(40) if code not in used])
    assert len(used) > 5
    assert len(unused) >= 20
    assert torch.allclose(quantizer.codebook[used], before[used], atol=1e-3)
    targets = math.exp(-1e-3) * rows(z) + (1 - math.exp(-1e-3)) * before[unused, None]
    assert ((quantizer.codebook[unused, None] - targets).abs().amax(-1) < 1e-5).any(1).all()


@pytest.mark.parametrize("size", [30, 300])
def test_random_anchors_take_the_vectors_in_turn(size):
    quantizer = started(size, anchors="random")
    quantizer.codebook.data[:] += 100
    quantizer.steps += 1  # no code is in use
    z = drawn(2, 3, 4, 5)
    quantizer(z)
    nearest = (quantizer.codebook[:, None] - 0.1 - rows(z)).square().sum(-1).argmin(1)
    times = nearest.bincount(minlength=40)
    assert times.sum() == size
    assert times.max() - times.min() <= 1
    assert not torch.equal(nearest[:30], nearest[:30].sort().values)


def test_probabilistic_anchors_are_drawn_with_the_softmax_of_the_distances():
    quantizer = ReanchoredQuantizer(4000, 2, anchors="probabilistic")
    quantizer.codebook.data[:] = torch.tensor([0.5, -0.25])
    quantizer.steps += 1
    z = drawn(1, 2, 1, 6)
    probabilities = (-(rows(z).double() - quantizer.codebook[0].double()).square().sum(1)).softmax(0)
    quantizer(z)
    times = (quantizer.codebook[:, None] - rows(z)).square().sum(-1).argmin(1).bincount(minlength=6)
    deviations = (times - 4000 * probabilities) / (4000 * probabilities * (1 - probabilities)).sqrt()
    assert deviations.abs().max() < 4


def test_probabilistic_anchors_of_many_codes_are_near_each_code():
    # A grid of codes, each with one vector at its side: any other is out of the question.
    side = torch.arange(-23.0, 23.0) * 10
    quantizer = ReanchoredQuantizer(46 * 46, 2, anchors="probabilistic")
    quantizer.codebook.data.copy_(torch.cartesian_prod(side, side))
    quantizer.steps += 1
    before = quantizer.codebook.detach().clone()
    z = (before + 1).flip(0).T.reshape(1, 2, 46, 46)
    quantizer(z)
    assert torch.allclose(quantizer.codebook, before + math.exp(-1e-3), atol=1e-3)


@pytest.mark.parametrize("anchors", ["random", "probabilistic"])
def test_draws_do_not_hang_on_the_global_generator_and_differ_from_step_to_step(anchors):
    def moved(seed, step):
        torch.manual_seed(seed)
        quantizer = started(100, anchors=anchors)
        quantizer.steps.fill_(step)
        quantizer(drawn(2, 3, 4, 5, seed=1))
        return quantizer.codebook

    assert torch.equal(moved(0, 7), moved(1, 7))
    assert not torch.equal(moved(0, 7), moved(0, 8))


def test_loss_terms_and_gradient_to_z_are_those_of_plain_vq():
    quantizer = started(commitment_weight=0.4)
    quantizer(drawn(2, 3, 4, 5))
    z, upstream = drawn(2, 3, 4, 5, seed=1).requires_grad_(), drawn(2, 3, 4, 5, seed=2)
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    difference = z.detach().double() - quantizer.indices_to_vectors(out.indices).detach().double()
    error = difference.square().mean().item()
    assert {name: term.item() for name, term in out.terms.items()} == pytest.approx(
        {"codebook": error, "commitment": 0.4 * error}
    )
    expected = upstream.double() + 0.4 * 2 * difference / difference.numel()
    assert torch.allclose(z.grad.double(), expected, atol=1e-6)


def test_backward_of_two_batches_at_once():
    quantizer = started()
    losses = [quantizer(drawn(2, 3, 4, 5, seed=step)).loss for step in range(2)]
    sum(losses).backward()
    other = started()
    for step in range(2):
        other(drawn(2, 3, 4, 5, seed=step)).loss.backward()
    assert torch.allclose(quantizer.codebook.grad, other.codebook.grad)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_more_codes_come_into_use_than_by_gradients_alone(anchors):
    def used_after_training(quantizer):
        quantizer.codebook.data.copy_(drawn(64, 4) / 64)
        for step in range(30):
            (gradient,) = torch.autograd.grad(quantizer(drawn(8, 4, 8, 8, seed=step)).loss, quantizer.codebook)
            quantizer.codebook.data.sub_(gradient)
        return len(quantizer.quantize(drawn(64, 4, 8, 8, seed=99)).unique())

    plain = used_after_training(CodebookQuantizer(64, 4, torch.nn.Identity()))
    assert used_after_training(ReanchoredQuantizer(64, 4, anchors=anchors)) > 2 * plain


@pytest.mark.parametrize("anchors", ANCHORS)
def test_evaluation_changes_nothing(anchors):
    quantizer = started(40, anchors=anchors)
    quantizer(drawn(2, 3, 4, 5))
    before = state(quantizer)
    quantizer.eval()(drawn(2, 3, 4, 5, seed=1))
    quantizer.train().quantize(drawn(2, 3, 4, 5, seed=1))
    assert_same_state(state(quantizer), before)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_resuming_continues_bit_for_bit(anchors):
    quantizer = started(40, anchors=anchors)
    for step in range(3):
        quantizer(drawn(2, 3, 4, 5, seed=step))
    resumed = ReanchoredQuantizer(40, 3, anchors=anchors)
    resumed.load_state_dict(state(quantizer))
    for step in range(3, 6):
        z = drawn(2, 3, 4, 5, seed=step)
        one, other = quantizer(z), resumed(z)
        assert torch.equal(one.quantized, other.quantized)
        assert torch.equal(one.loss, other.loss)
    assert_same_state(state(resumed), state(quantizer))


def test_freezing_keeps_indices_and_vectors():
    quantizer = started()
    for step in range(3):
        out = quantizer(drawn(2, 3, 4, 5, seed=step))
    frozen = quantizer.freeze()
    assert torch.equal(frozen.indices_to_vectors(out.indices), out.quantized)
    z = drawn(2, 3, 4, 5, seed=9)
    one, other = quantizer.eval()(z), frozen(z)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.quantized, other.quantized)
    assert list(frozen.state_dict()) == ["codebook"]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    codes = frozen.codebook.clone()
    quantizer.train()(z)
    assert torch.equal(frozen.codebook, codes)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_autocast_does_not_matter(anchors):
    quantizer, z = started(40, anchors=anchors), drawn(2, 3, 4, 5, seed=1)
    other = copy.deepcopy(quantizer)
    for _ in range(2):
        plain = quantizer(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = other(z)
    assert cast.quantized.dtype == torch.float32
    assert torch.equal(cast.quantized, plain.quantized)
    assert_same_state(state(other), state(quantizer))


@pytest.mark.parametrize("anchors", ["closest", "probabilistic"])
def test_compiled_is_the_same(anchors):
    torch.compiler.reset()
    quantizer = started(40, anchors=anchors)
    other = copy.deepcopy(quantizer)
    compiled = torch.compile(other, backend="aot_eager")
    for step in range(3):
        z = drawn(2, 3, 4, 5, seed=step).requires_grad_()
        outs = [quantizer(z), compiled(z)]
        assert torch.equal(outs[1].indices, outs[0].indices)
        torch.testing.assert_close(outs[1].quantized, outs[0].quantized)
        expected = torch.autograd.grad(outs[0].loss, [z, quantizer.codebook])
        found = torch.autograd.grad(outs[1].loss, [z, other.codebook])
        assert all(torch.allclose(one, two) for one, two in zip(found, expected, strict=True))
    torch.testing.assert_close(state(other), state(quantizer))


def trained(rank, processes):
    """Codebooks, usages, indices and averaged gradients of four steps on this process's share of the batches."""
    results = {}
    for anchors in ANCHORS:
        quantizer = started(30, 3, anchors=anchors)
        for step in range(4):
            z = drawn(4, 3, 4, 5, seed=step + 1).chunk(processes)[rank]
            out = quantizer(z)
            (gradient,) = torch.autograd.grad(out.loss, quantizer.codebook)
            if processes > 1:
                torch.distributed.all_reduce(gradient)
                gradient /= processes
            results[anchors, step] = (
                out.indices,
                gradient,
                quantizer.usage.clone(),
                quantizer.codebook.detach().clone(),
            )
            quantizer.codebook.data.sub_(0.5 * gradient)
    return results


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_as_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, (indices, *others) in trained(0, 1).items():
        indices_0, *others_0 = first[key]
        indices_1, *others_1 = second[key]
        assert torch.equal(torch.cat([indices_0, indices_1]), indices)
        for one, other, expected in zip(others_0, others_1, others, strict=True):
            assert torch.equal(one, other)
            assert torch.allclose(one, expected, atol=1e-6)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_a_refused_batch_leaves_no_trace(anchors):
    quantizer = started(40, anchors=anchors)
    quantizer(drawn(2, 3, 4, 5))
    before = state(quantizer)
    broken = drawn(2, 3, 4, 5, seed=1)
    broken[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="z holds NaN or infinite values"):
        quantizer(broken)
    assert_same_state(state(quantizer), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": "nearest"}, "unknown anchors 'nearest'; there are closest, random, probabilistic"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), not 1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), not -0.1"),
        ({"codebook_size": 0}, "codebook_size must be at least 1, not 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ReanchoredQuantizer(**{"codebook_size": 4, "code_dim": 2, **options})
