"""Codes that are moving averages, against plain float64 loops; reviving; resuming; processes; refusals."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fvq.quantize.moving_average import MovingAverageQuantizer


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(size=12, dim=3, seed=0, **options):
    """A quantizer whose codes are spread like the vectors of ``drawn``."""
    quantizer = MovingAverageQuantizer(size, dim, **options)
    quantizer.codebook.copy_(drawn(size, dim, seed=seed))
    quantizer.sums.copy_(quantizer.codebook)
    return quantizer


def rows(z):
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def state(quantizer):
    return copy.deepcopy(quantizer.state_dict())


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class Reference:
    """The same in float64, code by code; it takes the indices as given and says whether they were the nearest."""

    def __init__(self, quantizer):
        self.codes = quantizer.codebook.double()
        self.counts = [1.0] * len(self.codes)
        self.sums = [code.clone() for code in self.codes]
        self.decay, self.epsilon = quantizer.decay, quantizer.epsilon

    def forward(self, z_nd, indices_n):
        size, total = len(self.codes), sum(self.counts)
        for code in range(size):
            share = (self.counts[code] + self.epsilon) / (total + size * self.epsilon)
            self.codes[code] = self.sums[code] / (share * total)
        distances = (z_nd.double()[:, None] - self.codes).square().sum(-1)
        nearest = (distances[range(len(z_nd)), indices_n] <= distances.min(1).values + 1e-5).all()
        for code in range(size):
            members = z_nd[indices_n == code].double()
            self.counts[code] = self.decay * self.counts[code] + (1 - self.decay) * len(members)
            self.sums[code] = self.decay * self.sums[code] + (1 - self.decay) * members.sum(0)
        return nearest


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 20),
    dim=st.integers(1, 5),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    epsilon=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 1000),
)
def test_codes_follow_the_plain_loops(size, dim, decay, epsilon, seed):
    quantizer = started(size, dim, seed, decay=decay, epsilon=epsilon)
    reference = Reference(quantizer)
    for step in range(4):
        z = drawn(2, dim, 3, 4, seed=seed + step + 1)
        out = quantizer(z)
        assert reference.forward(rows(z), out.indices.flatten())
        assert torch.allclose(quantizer.codebook.double(), reference.codes, rtol=1e-5, atol=1e-5)
        assert torch.allclose(quantizer.counts.double(), torch.tensor(reference.counts).double(), rtol=1e-5)
        assert torch.allclose(quantizer.sums.double(), torch.stack(reference.sums), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    revive_below=st.sampled_from([None, 1.0]),
    seed=st.integers(0, 1000),
)
def test_indices_give_the_vectors_that_were_used(dtype, revive_below, seed):
    quantizer = started(revive_below=revive_below)
    before = quantizer.codebook.clone()
    for step in range(3):
        z = drawn(2, 3, 4, 5, seed=seed + step).to(dtype)
        out = quantizer(z)
        assert out.quantized.dtype == torch.float32
        assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
        assert torch.equal(quantizer.quantize(z), out.indices)
    assert not torch.equal(quantizer.codebook, before)


def test_first_batch_meets_the_codes_as_they_started():
    quantizer = MovingAverageQuantizer(5, 3)
    before = quantizer.codebook.clone()
    assert before.abs().max() <= 1 / 5
    assert before.std() > 0
    quantizer(drawn(2, 3, 4, 4))
    assert torch.equal(quantizer.codebook, before)
    quantizer(drawn(2, 3, 4, 4))
    assert not torch.equal(quantizer.codebook, before)


def test_codes_reach_the_means_of_their_vectors():
    quantizer = started(2, 2, decay=0.9)
    quantizer.sums.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    z = torch.cat([drawn(1, 2, 1, 20) - 5, drawn(1, 2, 1, 20, seed=1) + 5], 3)
    for _ in range(200):
        quantizer(z)
    means = torch.stack([z[0, :, 0, :20].mean(1), z[0, :, 0, 20:].mean(1)])
    assert torch.allclose(quantizer.codebook, means, atol=1e-4)


def test_loss_and_gradient_are_those_of_the_commitment():
    quantizer = started(commitment_weight=0.4)
    z, upstream = drawn(2, 3, 4, 5, seed=1).requires_grad_(), drawn(2, 3, 4, 5, seed=2)
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    difference = z.detach().double() - quantizer.indices_to_vectors(out.indices).double()
    assert list(out.terms) == ["commitment"]
    assert out.loss.item() == pytest.approx(0.4 * difference.square().mean().item())
    expected = upstream.double() + 0.4 * 2 * difference / difference.numel()
    assert torch.allclose(z.grad.double(), expected, atol=1e-6)
    assert list(quantizer.parameters()) == []
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


def test_backward_of_two_batches_at_once():
    quantizer, z = started(), drawn(2, 3, 4, 5, seed=1).requires_grad_()
    alone = copy.deepcopy(quantizer)(z)
    (expected,) = torch.autograd.grad(alone.loss, z)
    first = quantizer(z)
    quantizer(drawn(2, 3, 4, 5, seed=2))
    (gradient,) = torch.autograd.grad(first.loss, z)
    assert torch.equal(gradient, expected)


def test_evaluation_changes_nothing():
    quantizer = started(revive_below=2.0)
    quantizer(drawn(2, 3, 4, 5))
    before = state(quantizer)
    quantizer.eval()(drawn(2, 3, 4, 5, seed=1))
    quantizer.train().quantize(drawn(2, 3, 4, 5, seed=1))
    assert_same_state(state(quantizer), before)


@pytest.mark.parametrize("size", [12, 300])
def test_codes_out_of_use_restart_at_vectors_of_the_batch(size):
    # Half of the codes are out of reach; the 40 vectors are fewer or more than those.
    quantizer = started(size, revive_below=1.0)
    quantizer.sums[::2] += 1000
    z = drawn(2, 3, 4, 5, seed=1)
    used = quantizer(z).indices.unique()
    unused = torch.tensor([code for code in range(size) if code not in used])
    assert (quantizer.counts >= 1).all()
    quantizer(drawn(2, 3, 4, 5, seed=2))
    same = (quantizer.codebook[unused, None] - rows(z)).abs().amax(-1) < 1e-3
    assert (same.sum(1) == 1).all()
    times = same.sum(0)
    assert times.max() - times.min() <= 1
    assert ((quantizer.codebook[used, None] - rows(z)).abs().amax(-1) > 1e-3).all()


def test_codes_out_of_use_stay_unless_they_are_to_restart():
    quantizer = started()
    quantizer.sums[3] += 1000
    quantizer(drawn(2, 3, 4, 5))
    far = quantizer.codebook[3].clone()
    for step in range(5):
        quantizer(drawn(2, 3, 4, 5, seed=step))
    assert quantizer.counts[3].item() == pytest.approx(0.99**6)
    assert torch.allclose(quantizer.codebook[3], far, rtol=1e-3)


def test_restarts_do_not_hang_on_the_global_generator_and_differ_from_step_to_step():
    def restarted(seed):
        torch.manual_seed(seed)
        quantizer = started(revive_below=100.0)
        sums = []
        for _ in range(2):
            quantizer(drawn(2, 3, 4, 5, seed=1))
            sums.append(quantizer.sums.clone())
        return sums

    first, second = restarted(0)
    again, _ = restarted(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("revive_below", [None, 1.0])
def test_resuming_continues_bit_for_bit(revive_below):
    quantizer = started(revive_below=revive_below)
    for step in range(3):
        quantizer(drawn(2, 3, 4, 5, seed=step))
    resumed = MovingAverageQuantizer(12, 3, revive_below=revive_below)
    resumed.load_state_dict(state(quantizer))
    for step in range(3, 6):
        z = drawn(2, 3, 4, 5, seed=step)
        one, other = quantizer(z), resumed(z)
        assert torch.equal(one.quantized, other.quantized)
        assert torch.equal(one.loss, other.loss)
    assert_same_state(state(resumed), state(quantizer))


def test_freezing_keeps_indices_vectors_and_loss():
    quantizer = started()
    for step in range(3):
        out = quantizer(drawn(2, 3, 4, 5, seed=step))
    frozen = quantizer.freeze()
    assert torch.equal(frozen.indices_to_vectors(out.indices), out.quantized)
    quantizer.eval()
    z = drawn(2, 3, 4, 5, seed=9)
    one, other = quantizer(z), frozen(z)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.quantized, other.quantized)
    assert torch.equal(one.loss, other.loss)
    assert list(frozen.state_dict()) == ["codebook"]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    codes = frozen.codebook.clone()
    quantizer.train()(z)
    assert torch.equal(frozen.codebook, codes)


def test_autocast_does_not_matter():
    quantizer, z = started(revive_below=1.0), drawn(2, 3, 4, 5, seed=1)
    other = copy.deepcopy(quantizer)
    for _ in range(2):
        plain = quantizer(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = other(z)
    assert cast.quantized.dtype == torch.float32
    assert torch.equal(cast.quantized, plain.quantized)
    assert_same_state(state(other), state(quantizer))


@pytest.mark.parametrize("revive_below", [None, 1.0])
def test_compiled_is_the_same(revive_below):
    torch.compiler.reset()
    quantizer = started(revive_below=revive_below)
    compiled = torch.compile(copy.deepcopy(quantizer), backend="aot_eager", fullgraph=revive_below is None)
    for step in range(3):
        z = drawn(2, 3, 4, 5, seed=step).requires_grad_()
        plain, other = quantizer(z), compiled(z)
        assert torch.equal(other.indices, plain.indices)
        torch.testing.assert_close(other.quantized, plain.quantized)
        (expected,) = torch.autograd.grad(plain.loss, z)
        (gradient,) = torch.autograd.grad(other.loss, z)
        assert torch.allclose(gradient, expected)
    for name, tensor in quantizer.state_dict().items():
        assert torch.allclose(compiled._orig_mod.state_dict()[name], tensor)


class Largest(TorchDispatchMode):
    """The most elements that a result of torch had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_is_as_large_as_vectors_times_codes():
    quantizer = started(2048, 4, revive_below=1.0)
    with Largest() as largest:
        quantizer(drawn(2, 4, 32, 32, seed=1))
    assert 2048 * 4 <= largest.elements <= 4 * 2048 * 4


OPTIONS = {"plain": {}, "revived": {"revive_below": 1.0}}


def trained(rank, processes):
    """Codebooks, indices and gradients of three steps on this process's share of the batches."""
    results = {}
    for name, options in OPTIONS.items():
        quantizer = started(30, 3, **options)
        for step in range(3):
            z = drawn(4, 3, 4, 5, seed=step + 1).chunk(processes)[rank].clone().requires_grad_()
            out = quantizer(z)
            (gradient,) = torch.autograd.grad(out.loss, z)
            results[name, step] = (out.indices, quantizer.codebook.clone(), quantizer.counts.clone(), gradient)
    return results


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_as_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, (indices, codebook, counts, gradient) in trained(0, 1).items():
        indices_0, codebook_0, counts_0, gradient_0 = first[key]
        indices_1, codebook_1, counts_1, gradient_1 = second[key]
        assert torch.equal(codebook_0, codebook_1)
        assert torch.allclose(codebook_0, codebook, atol=1e-6)
        assert torch.equal(counts_0, counts_1)
        assert torch.equal(counts_0, counts)
        assert torch.equal(torch.cat([indices_0, indices_1]), indices)
        # Each process's loss is the mean over its half.
        assert torch.allclose(torch.cat([gradient_0, gradient_1]) / 2, gradient, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_refused_batch_leaves_no_trace(value):
    quantizer = started(revive_below=1.0)
    quantizer(drawn(2, 3, 4, 5))
    untroubled = copy.deepcopy(quantizer)
    z = drawn(2, 3, 4, 5, seed=1)
    broken = z.clone()
    broken[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="z holds NaN or infinite values"):
        quantizer(broken)
    quantizer(z)
    untroubled(z)
    assert_same_state(state(quantizer), state(untroubled))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), not 1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), not -0.1"),
        ({"decay": float("nan")}, r"decay must lie in \[0, 1\), not nan"),
        ({"epsilon": 0.0}, "epsilon must be positive, not 0.0"),
        ({"revive_below": -1.0}, "revive_below must be positive, not -1.0"),
        ({"codebook_size": 0}, "codebook_size must be at least 1, not 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MovingAverageQuantizer(**{"codebook_size": 4, "code_dim": 2, **options})
