"""Sampling: guidance, truncation, draws, each image's own stream, labels, bad settings."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from test_generate_llamagen import random_model

from fvq.generate import SamplingSettings, class_labels
from fvq.generate.sampling import draw, truncate
from fvq.runtime.errors import UserError

PLAIN = {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
LABELS = torch.tensor([0, 1, 2, 3, 4, 2])


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{**PLAIN, "cfg_start": 0, **changes})


def greedy_by_forward(model, labels, scale=1.0, start=0):
    """Greedy tokens by whole forward passes, without a cache."""
    tokens = torch.zeros(len(labels), model.config.tokens, dtype=torch.int64)
    for position in range(model.config.tokens):
        logits = model(labels, tokens)[:, position]
        if scale > 1 and position >= start:
            free = model(torch.full_like(labels, model.config.classes), tokens)[:, position]
            logits = free + scale * (logits - free)
        tokens[:, position] = logits.argmax(-1)
    return tokens


@torch.no_grad()
def test_greedy_and_guided_greedy_equal_argmax_of_forward_passes():
    model = random_model()
    found = {}
    for scale, start in ((1.0, 0), (1.7, 0), (4.0, 0), (4.0, 3), (4.0, 99)):
        sampled = model.sample(LABELS, **{**PLAIN, "cfg_scale": scale, "temperature": 0.0}, seed=0, cfg_start=start)
        assert sampled.dtype == torch.int64
        assert torch.equal(sampled, greedy_by_forward(model, LABELS, scale, start))
        found[scale, start] = sampled
    assert not torch.equal(found[1.0, 0], found[4.0, 0])
    assert torch.equal(found[4.0, 3][:, :3], found[1.0, 0][:, :3])
    assert not torch.equal(found[4.0, 3], found[4.0, 0])
    assert torch.equal(found[4.0, 99], found[1.0, 0])


def test_scale_1_never_looks_at_the_null_class():
    model = random_model()
    expected = model.sample(LABELS, **PLAIN, seed=0)
    with torch.no_grad():
        model.cls_embedding.embedding_table.weight[-1] = 1e6
    assert torch.equal(model.sample(LABELS, **PLAIN, seed=0), expected)


def test_top_k_1_is_greedy_even_among_equals():
    model = random_model()
    for scale in (0.4, 0.0):  # the second makes all logits equal
        torch.nn.init.normal_(model.output.weight, std=scale)
        greedy = model.sample(LABELS, **{**PLAIN, "temperature": 0.0}, seed=0)
        assert torch.equal(model.sample(LABELS, **{**PLAIN, "top_k": 1}, seed=5), greedy)
        assert torch.equal(model.sample(LABELS, **{**PLAIN, "top_p": 1e-9}, seed=5), greedy)
    assert not greedy.any()


def test_low_temperature_nears_greedy_and_high_nears_uniform():
    model = random_model()
    greedy = model.sample(LABELS, **{**PLAIN, "temperature": 0.0}, seed=0)
    assert torch.equal(model.sample(LABELS, **{**PLAIN, "temperature": 1e-6}, seed=0), greedy)
    hot = model.sample(LABELS.repeat(200), **{**PLAIN, "temperature": 1e6}, seed=0)
    shares = torch.bincount(hot.flatten(), minlength=23) / hot.numel()
    torch.testing.assert_close(shares, torch.full((23,), 1 / 23), rtol=0, atol=0.015)


def smallest_set(probabilities: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    order = order[:top_k] if top_k else order
    total, chosen = sum(probabilities[i] for i in order), set()
    for index in order:
        chosen.add(index)
        if sum(probabilities[i] for i in chosen) / total >= top_p:
            break
    return chosen


def test_truncation_keeps_the_smallest_set():
    torch.manual_seed(0)
    logits = torch.randn(50, 12) * 2
    logits[10:20] = logits[10:20].round()  # equals among them
    logits[20] = 0.0
    for top_k, top_p in itertools.product((0, 1, 3, 12, 99), (1.0, 0.9, 0.55, 0.01)):
        kept = truncate(logits, top_k, top_p)
        for row, before in zip(kept, logits, strict=True):
            expected = smallest_set(before.double().softmax(0).tolist(), top_k, top_p)
            assert set(row.isfinite().nonzero().flatten().tolist()) == expected
            assert torch.equal(row[row.isfinite()], before[row.isfinite()])
    # Rounded probabilities may never add up to top_p.
    assert torch.equal(truncate(logits, 0, 1 - 1e-15), logits)


def test_truncated_sampling_stays_inside_the_kept_tokens():
    model = random_model()
    tokens = model.sample(LABELS.repeat(20), **{**PLAIN, "top_k": 3, "top_p": 0.8}, seed=1)
    with torch.no_grad():
        logits = model(LABELS.repeat(20), tokens)
    kept = truncate(logits.flatten(0, 1), 3, 0.8)
    assert kept.gather(1, tokens.flatten()[:, None]).isfinite().all()
    assert len(torch.unique(tokens[:, 0])) > 2


def test_draws_have_the_asked_probabilities():
    probabilities = torch.tensor([0.1, 0.0, 0.2, 0.3, 0.4, 0.0])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw(probabilities.log().expand(1000, -1), settings(), uniforms)
    assert torch.bincount(drawn, minlength=6).tolist() == [100, 0, 200, 300, 400, 0]
    squared = draw(probabilities.log().expand(1000, -1), settings(temperature=0.5), uniforms)
    torch.testing.assert_close(torch.bincount(squared, minlength=6) / 1000, probabilities**2 / 0.3, rtol=0, atol=2e-3)
    ends = torch.tensor([2.0**-53, 1.0], dtype=torch.float64)
    impossible_first_and_last = torch.tensor([-torch.inf, 0.3, 0.1, -torch.inf]).expand(2, -1)
    assert draw(impossible_first_and_last, settings(), ends).tolist() == [1, 2]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_does_not_depend_on_its_batch(scale):
    model = random_model()
    sampled = {**PLAIN, "cfg_scale": scale, "temperature": 1.5, "seed": 3}
    together = model.sample(LABELS, **sampled)
    split = [model.sample(LABELS[p], **sampled, image_numbers=torch.arange(6)[p]) for p in (slice(2), slice(2, 6))]
    assert torch.equal(together, torch.cat(split))
    reversed_ = model.sample(LABELS.flip(0), **sampled, image_numbers=torch.arange(6).flip(0))
    assert torch.equal(together, reversed_.flip(0))
    assert not torch.equal(together[2], together[5])  # the same class, another stream


def test_the_seed_names_the_images():
    model = random_model()
    first = model.sample(LABELS, **PLAIN, seed=0)
    torch.manual_seed(99)
    assert torch.equal(first, model.sample(LABELS, **PLAIN, seed=0))
    assert not torch.equal(first, model.sample(LABELS, **PLAIN, seed=1))


def test_sampling_ignores_and_keeps_training_mode():
    model = random_model()
    expected = model.sample(LABELS, **PLAIN, seed=0)
    model.train()
    assert torch.equal(model.sample(LABELS, **PLAIN, seed=0), expected)
    assert model.training


def test_no_images():
    none = torch.empty(0, dtype=torch.int64)
    assert random_model().sample(none, **PLAIN, seed=0).shape == (0, 6)


def test_class_labels():
    balanced = class_labels(23, 5, "balanced", seed=0)
    assert balanced.dtype == torch.int64
    assert sorted(torch.bincount(balanced).tolist()) == [4, 4, 5, 5, 5]
    uniform = class_labels(5000, 5, "uniform", seed=0)
    assert uniform.dtype == torch.int64
    assert torch.bincount(uniform).min() > 900
    assert torch.equal(uniform, class_labels(5000, 5, "uniform", seed=0))
    assert not torch.equal(uniform, class_labels(5000, 5, "uniform", seed=1))
    with pytest.raises(UserError, match="labels: 'even' is neither"):
        class_labels(5, 5, "even", seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "sample: temperature: .*, not -0.1"),
        ({"temperature": float("nan")}, "sample: temperature"),
        ({"top_p": 0.0}, "sample: top_p"),
        ({"top_p": 1.5}, "sample: top_p"),
        ({"top_k": -1}, "sample: top_k"),
        ({"cfg_scale": 0.5}, "sample: cfg_scale"),
        ({"cfg_start": -1}, "sample: cfg_start"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        random_model().sample(LABELS, **{**PLAIN, **changes}, seed=0)


def test_bad_labels():
    model = random_model()
    with pytest.raises(UserError, match=r"labels: 5 is no class of this generator \(0 to 4\)"):
        model.sample(torch.tensor([0, 5]), **PLAIN, seed=0)
    with pytest.raises(UserError, match="labels: -1 is no class"):
        model.sample(torch.tensor([-1]), **PLAIN, seed=0)
    with pytest.raises(UserError, match="cfg_scale: this generator was trained with class_dropout 0"):
        random_model(class_dropout=0.0).sample(LABELS, **{**PLAIN, "cfg_scale": 2.0}, seed=0)
    with pytest.raises(ValidationError, match="cfg"):
        SamplingSettings(**PLAIN, cfg_start=0, cfg=2.0)
