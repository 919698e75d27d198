"""Decoding: the same tokens as whole forward passes, whatever the batch, the threads and the way of computing."""

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from test_generate_llamagen import random_model

from fvq.generate import SamplingSettings, matrices
from fvq.generate.decoding import Decoder, sample_tokens
from fvq.generate.matrices import can_pack, lay_out
from fvq.generate.sampling import draw
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator

COUNT, SEED = 30, 3
LABELS = torch.arange(COUNT) % 5
NUMBERS = torch.arange(COUNT) + 100
GUIDED = SamplingSettings(cfg_scale=1.7, cfg_start=2, temperature=1.3, top_k=0, top_p=1.0)
FREE = GUIDED.model_copy(update={"cfg_scale": 1.0})
TRUNCATED = GUIDED.model_copy(update={"top_k": 9, "top_p": 0.9, "cfg_start": 0})


def uniforms(length: int, numbers: torch.Tensor = NUMBERS) -> torch.Tensor:
    streams = [generator(SEED, "image", int(number)) for number in numbers]
    return 1 - torch.stack([torch.rand(length, generator=stream, dtype=torch.float64) for stream in streams])


@torch.no_grad()
def by_forward_passes(model, settings: SamplingSettings) -> torch.Tensor:
    """Tokens drawn from the logits of whole forward passes, without a cache."""
    tokens = torch.zeros(COUNT, model.config.tokens, dtype=torch.int64)
    numbers = uniforms(model.config.tokens)
    for position in range(model.config.tokens):
        logits = model(LABELS, tokens)[:, position]
        if settings.cfg_scale > 1 and position >= settings.cfg_start:
            free = model(torch.full_like(LABELS, model.config.classes), tokens)[:, position]
            logits = free + settings.cfg_scale * (logits - free)
        tokens[:, position] = draw(logits, settings, numbers[:, position])
    return tokens


@pytest.mark.parametrize("settings", [GUIDED, FREE, TRUNCATED], ids=["guided", "free", "truncated"])
def test_tokens_are_those_of_whole_forward_passes(settings):
    model = random_model(grid=(5, 6), vocabulary_size=200)
    expected = by_forward_passes(model, settings)
    assert torch.equal(sample_tokens(model, LABELS, settings, SEED, NUMBERS), expected)
    assert len(expected.unique()) > 30
    in_double = sample_tokens(model.double(), LABELS, settings, SEED, NUMBERS)
    assert (in_double == expected).float().mean() > 0.99


@pytest.mark.parametrize("settings", [GUIDED, FREE], ids=["guided", "free"])
def test_an_image_is_the_same_in_any_batch_on_any_number_of_threads(settings):
    model = random_model(grid=(5, 6), vocabulary_size=200, width=64)
    threads = torch.get_num_threads()
    found = []
    try:
        for count, sizes in ((1, (1, 2, 3, 7, 16, 29, 30)), (2, (7,))):
            torch.set_num_threads(count)
            found += [sample_tokens(model, LABELS, settings, SEED, NUMBERS, size) for size in sizes]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(tokens, found[0]) for tokens in found)


@given(outputs=st.integers(1, 70), inputs=st.integers(1, 70), rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_laid_out_matrix_multiplies(outputs, inputs, rows, seed):
    torch.manual_seed(seed)
    weight, x, other = torch.randn(outputs, inputs), torch.randn(rows, inputs), torch.randn(rows, outputs)
    matrix = lay_out(weight)
    expected = x.double() @ weight.double().T
    for found, wanted in (
        (matrix.product(x), expected),
        (matrix.silu_of_product(x), torch.nn.functional.silu(expected)),
        (matrix.product_times(x, other), expected * other),
        (matrix.product_plus(x, other), expected + other),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    if can_pack(weight):
        alone = torch.cat([matrix.product(x[row : row + 1]) for row in range(rows)])
        assert torch.equal(alone, matrix.product(x))


def test_without_onednn_the_tokens_are_the_same(monkeypatch):
    model = random_model()
    packed = sample_tokens(model, LABELS, GUIDED, SEED, NUMBERS)
    monkeypatch.setattr(matrices, "can_pack", lambda weight: False)
    plain = sample_tokens(model, LABELS, GUIDED, SEED, NUMBERS)
    assert (plain == packed).float().mean() > 0.99  # rounding may move a draw over an edge


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (1, 5), (4, 4), (5, 6)])
def test_static_steps_as_a_gpu_holds_them(grid):
    """The graphs' masks, spans and filled-up batches, with steps that are called instead of captured."""
    model = random_model(grid=grid)
    expected = sample_tokens(model, LABELS, GUIDED, SEED, NUMBERS)
    decoder = Decoder(model, GUIDED, COUNT, capture=lambda step, reset: step)
    for rows in (slice(0, COUNT), slice(3, 20), slice(0, 1)):
        found = decoder.sample(LABELS[rows], SEED, NUMBERS[rows])
        assert (found == expected[rows]).float().mean() > 0.99  # attention adds up in another order


def warmed_up(step, reset):
    """As CUDA does it: a step runs a few times before it is captured, and at capture nothing is computed."""
    for _ in range(3):
        reset()
        step()
    return step


def test_warming_up_leaves_no_trace():
    model = random_model(grid=(3, 3))
    warm, cold = (Decoder(model, GUIDED, COUNT, capture=c) for c in (warmed_up, lambda step, reset: step))
    assert torch.equal(warm.sample(LABELS, SEED, NUMBERS), cold.sample(LABELS, SEED, NUMBERS))


def test_compiled_steps_share_a_graph_among_blocks_and_serve_many_decoders(monkeypatch):
    monkeypatch.setattr(matrices, "can_pack", lambda weight: False)  # as on a GPU
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compile_as = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_as(function, backend=graphs, **options))
    model = random_model(grid=(4, 4), depth=3)
    expected = sample_tokens(model, LABELS, GUIDED, SEED, NUMBERS)
    for number, size in enumerate((30, 8, 5, 3), start=1):
        decoder = Decoder(model, GUIDED, size, compiled=True, capture=warmed_up)
        assert (decoder.sample(LABELS, SEED, NUMBERS) == expected).float().mean() > 0.99
        assert 2 * number <= graphs.frame_count <= 5 * number  # the first step and four spans, whatever the depth


def test_a_compiler_that_does_not_work_is_done_without(monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no compiler found")

    compile_as = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_as(function, backend=broken, **options))
    model = random_model()
    decoder = Decoder(model, GUIDED, COUNT, compiled=True, capture=warmed_up)
    found = decoder.sample(LABELS, SEED, NUMBERS)
    assert (found == sample_tokens(model, LABELS, GUIDED, SEED, NUMBERS)).float().mean() > 0.99
    assert "fvq: torch's compiler does not work here" in capsys.readouterr().err


def test_a_decoder_serves_many_batches():
    model = random_model()
    decoder = Decoder(model, GUIDED, 8)
    whole = decoder.sample(LABELS, SEED, NUMBERS)
    parts = [decoder.sample(LABELS[rows], SEED, NUMBERS[rows]) for rows in torch.arange(COUNT).split(11)]
    assert torch.equal(torch.cat(parts), whole)
    assert decoder.sample(LABELS[:0], SEED, NUMBERS[:0]).shape == (0, model.config.tokens)


def test_progress_adds_up_to_the_images():
    told = []
    model = random_model()
    Decoder(model, GUIDED, 8).sample(LABELS, SEED, NUMBERS, told.append)
    assert len(told) == 4 * model.config.tokens
    assert sum(told) == pytest.approx(COUNT)


def test_bfloat16_weights():
    model = random_model(grid=(4, 4))
    exact = sample_tokens(model, LABELS, FREE, SEED, NUMBERS)
    rounded = sample_tokens(model.bfloat16(), LABELS, FREE, SEED, NUMBERS)
    assert (rounded[:, 0] == exact[:, 0]).float().mean() > 0.8
    assert (rounded == by_forward_passes(model, FREE)).float().mean() > 0.7  # what follows a changed token differs too


def test_weights_that_are_not_finite_are_named():
    model = random_model()
    torch.nn.init.constant_(model.layers[1].feed_forward.w2.weight[2], torch.nan)
    with pytest.raises(UserError, match=r"weights layers\.1\.feed_forward\.w2\.weight are not all finite"):
        Decoder(model, GUIDED, 4)


def test_bad_batches():
    model = random_model()
    with pytest.raises(UserError, match="batch_size: must be at least 1, not 0"):
        Decoder(model, GUIDED, 0)
    with pytest.raises(UserError, match="labels: 9 is no class"):
        Decoder(model, GUIDED, 4).sample(torch.tensor([9]), SEED, NUMBERS[:1])
