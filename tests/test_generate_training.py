"""Training: the loss, the optimiser, what is learnt, precision, compiled blocks, exact resume, bad data."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_generate_llamagen import random_model, small_config

from fvq.generate import GeneratorTraining, Recipe, TokensInMemory, train_generator
from fvq.generate import step as training_step
from fvq.generate.loss import linear_cross_entropy
from fvq.generate.step import GeneratorStep, build_optimizer
from fvq.runtime.errors import UserError

SCHEDULE = {"warmup": 0.0, "warmup_from": 1.0, "constant": 0.05, "final": 0.01, "shape": "linear"}
RECIPE = {"batch_size": 8, "epochs": 1.0, "steps": None, "learning_rate": 1e-2, "schedule": SCHEDULE}
SETTINGS = {
    "weight_decay": 0.05,
    "betas": (0.9, 0.95),
    "gradient_clip": 1.0,
    "accumulate": 1,
    "precision": "float32",
    "compile": False,
    "sharding": "none",
    "log_every": 10,
}
NO_DROPOUT = dict.fromkeys(("class_dropout", "token_dropout", "residual_dropout", "feedforward_dropout"), 0.0)


def small_recipe(**changes) -> Recipe:
    return Recipe(**{**RECIPE, **changes})


def small_settings(**changes) -> GeneratorTraining:
    return GeneratorTraining(**{**SETTINGS, **changes})


def counting_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class c counts round and round through its own three tokens 3c … 3c+2, from a start of its own."""
    labels = torch.arange(count) % 2
    start = torch.randint(3, (count, 1), generator=torch.Generator().manual_seed(0))
    return 3 * labels[:, None] + (start + torch.arange(6)) % 3, labels


def counting_source(count: int) -> TokensInMemory:
    tokens, labels = counting_images(count)
    return TokensInMemory(tokens[:, None], labels)


class TestTokensInMemory:
    tokens = torch.arange(12)[:, None, None] * 10 + torch.arange(3)[:, None] + torch.zeros(4, dtype=torch.int64)
    source = TokensInMemory(tokens, torch.arange(12))

    def test_an_epoch_shows_each_image_once_in_one_view(self):
        shown = [self.source.batch(step, 4, 7) for step in range(6)]
        for epoch in (shown[:3], shown[3:]):
            labels = torch.cat([labels for _, labels in epoch])
            tokens = torch.cat([tokens for tokens, _ in epoch])
            assert sorted(labels.tolist()) == list(range(12))
            assert torch.equal(tokens // 10, labels[:, None].expand(12, 4))
        views = torch.cat([tokens[:, 0] % 10 for tokens, _ in shown])
        assert set(views.tolist()) == {0, 1, 2}
        assert self.source.batch(0, 4, 8)[1].tolist() != shown[0][1].tolist()

    def test_parts_of_a_batch_make_the_batch(self):
        tokens, labels = self.source.batch(5, 6, 7)
        parts = [self.source.batch(5, 6, 7, part) for part in (slice(0, 2), slice(2, 6))]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)

    @pytest.mark.parametrize("shape", [(4, 6), (4, 0, 6), (3, 1, 6)])
    def test_bad_shapes(self, shape):
        with pytest.raises(UserError, match=r"tokens: must be \(images, views, tokens\) with a label per image"):
            TokensInMemory(torch.zeros(shape, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("rows", [1, 255, 256, 700])
def test_loss_equals_cross_entropy_of_all_logits(rows):
    torch.manual_seed(0)
    weight = torch.randn(40, 12, dtype=torch.float64, requires_grad=True)
    features = (3 * torch.randn(rows, 12, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(40, (rows,))
    logits = features @ weight.T
    expected = F.cross_entropy(logits, targets)
    gradients = torch.autograd.grad(2 * expected, (features, weight))
    loss, accuracy = linear_cross_entropy(features, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(accuracy.double(), (logits.argmax(1) == targets).double().mean(), check_dtype=False)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, (features, weight)), gradients)


def test_loss_of_extreme_logits():
    weight = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss, accuracy = linear_cross_entropy(torch.tensor([[1.0], [1.0]]), weight, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert accuracy.item() == 0.5
    torch.testing.assert_close(weight.grad, torch.tensor([[0.5], [-0.5]]))


def test_loss_in_bfloat16_rounds_nothing_but_the_products():
    torch.manual_seed(0)
    features = torch.randn(700, 64).requires_grad_()
    weight = (0.3 * torch.randn(500, 64)).requires_grad_()
    targets = torch.randint(500, (700,))
    exact = [part.detach().bfloat16().double().requires_grad_() for part in (features, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets)
    gradients = torch.autograd.grad(expected, exact)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(features, weight, targets)
    assert loss.dtype == torch.float32
    # A logit is off by up to 2^-9 of itself, up to 0.02 here, and the mean of 700 by much less.
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)
    for found, wanted in zip(torch.autograd.grad(loss, (features, weight)), gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 5e-3 * wanted.norm()


def test_only_matrices_and_embeddings_decay():
    model = random_model()
    decayed, free = build_optimizer(model, small_settings()).param_groups
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in free["params"]} == {"attention_norm", "ffn_norm", "norm"}
    assert {"tok_embeddings.weight", "cls_embedding.embedding_table.weight", "output.weight"} < {
        names[id(p)] for p in decayed["params"]
    }
    assert len(names) == len(decayed["params"]) + len(free["params"])
    assert decayed["betas"] == (0.9, 0.95)


def test_each_step_follows_the_schedule_and_the_clip(monkeypatch):
    rates, norms = [], []

    def watch(optimizer, *_):
        rates.append([group["lr"] for group in optimizer.param_groups])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    def watched(model, settings):
        optimizer = build_optimizer(model, settings)
        optimizer.register_step_pre_hook(watch)
        return optimizer

    monkeypatch.setattr(training_step, "build_optimizer", watched)
    schedule = {**SCHEDULE, "warmup": 0.2, "warmup_from": 0.5, "constant": 0.5}
    config, source = small_config(vocabulary_size=6, classes=2), counting_source(16)
    settings = small_settings(gradient_clip=1e-3, log_every=1)
    _, history = train_generator(config, source, small_recipe(epochs=5, schedule=schedule), settings, seed=0)
    factors = [0.5, 0.75, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01]
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-2 * factor for factor in factors])
    assert rates == [[row["learning_rate"]] * 2 for row in history]
    assert norms == pytest.approx([1e-3] * 10, rel=1e-2)
    assert min(row["gradient_norm"] for row in history) > 1e-2  # as it was before clipping


def test_a_tiny_model_learns_its_classes():
    config, seen = small_config(vocabulary_size=6, classes=2), []
    recipe = small_recipe(epochs=15)
    model, history = train_generator(config, counting_source(64), recipe, small_settings(), seed=0, on_row=seen.append)
    assert not model.training
    assert seen == history
    assert [row["step"] for row in history] == list(range(10, 121, 10))
    assert history[-1]["epoch"] == 15
    assert history[0]["learning_rate"] > history[-1]["learning_rate"] == pytest.approx(1e-4)
    assert history[0]["loss"] > 1
    # Only the first token is uncertain: one of three, or of six where the class was hidden.
    assert history[-1]["loss"] < 0.4
    assert history[-1]["perplexity"] == math.exp(history[-1]["loss"])
    assert history[-1]["accuracy"] > 0.8
    wanted = torch.arange(40) % 2
    drawn = model.sample(wanted, cfg_scale=1.5, temperature=1.0, top_k=0, top_p=0.95, seed=0)
    assert (drawn // 3 == wanted[:, None]).float().mean() > 0.95
    assert ((drawn[:, 1:] - drawn[:, :-1]) % 3 == 1).float().mean() > 0.95
    assert len(torch.unique(drawn[:, 0])) == 6


def trained(**changes) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """History and weights after six steps without dropout."""
    config = small_config(vocabulary_size=6, classes=2, **NO_DROPOUT)
    settings = small_settings(**{"log_every": 1, **changes})
    model, history = train_generator(config, counting_source(24), small_recipe(epochs=2), settings, seed=3)
    return history, model.state_dict()


def test_parts_of_a_batch_add_up_to_it():
    (whole, weights), (parts, of_parts) = trained(), trained(accumulate=4)
    for row, expected in zip(parts, whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(of_parts, weights, rtol=1e-3, atol=1e-4)


def test_bfloat16_stays_near_float32_and_keeps_float32_weights():
    (exact, weights), (rounded, of_rounded) = trained(), trained(precision="bfloat16")
    assert {tensor.dtype for tensor in of_rounded.values()} == {torch.float32}
    assert any(not torch.equal(of_rounded[name], weights[name]) for name in weights)
    for row, expected in zip(rounded, exact, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-2)


def test_compiled_blocks_compute_the_same(monkeypatch):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    (plain, weights), (history, of_compiled) = trained(), trained(compile=True)
    assert len(compiled) == 1  # of a model with two blocks
    assert history == plain
    torch.testing.assert_close(of_compiled, weights)


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    source, config = counting_source(32), small_config(vocabulary_size=6, classes=2)
    arguments = (config, source, small_recipe(epochs=3), small_settings(log_every=5, accumulate=2), 7)
    whole, history = train_generator(*arguments)
    calls, call = [], GeneratorStep.__call__

    def dying(*inputs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return call(*inputs)

    monkeypatch.setattr(GeneratorStep, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        train_generator(*arguments, tmp_path, checkpoint_every=3)
    resumed, resumed_history = train_generator(*arguments, tmp_path, checkpoint_every=3)
    assert len(calls) == 8 + 12 - 6
    assert resumed_history == history
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    other_seed, _ = train_generator(*arguments[:-1], 8)
    assert not torch.equal(other_seed.output.weight, whole.output.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: (t[..., :5], n), r"grid: \(2, 3\) means 6 tokens per image, and the data has 5"),
        (lambda t, n: (t + 1, n), "vocabulary_size: the data holds 6, and with 6 the largest is 5"),
        (lambda t, n: (t - 1, n), "vocabulary_size: the data holds -1"),
        (lambda t, n: (t, n + 1), "classes: the data holds 2, and with 2 the largest is 1"),
        (lambda t, n: (t[:0], n[:0]), "batch_size: 8 samples are asked for at once, and there are 0"),
        (lambda t, n: (t[:7], n[:7]), "batch_size: 8 samples are asked for at once, and there are 7"),
    ],
)
def test_bad_data(change, message):
    tokens, labels = counting_images(16)
    source = TokensInMemory(*change(tokens[:, None], labels))
    with pytest.raises(UserError, match=message):
        train_generator(small_config(vocabulary_size=6, classes=2), source, small_recipe(), small_settings(), seed=0)


def test_a_batch_that_does_not_divide():
    config, source = small_config(vocabulary_size=6, classes=2), counting_source(16)
    with pytest.raises(UserError, match=r"^batch_size: 8 images do not divide into 3 equal parts \(1 processes"):
        train_generator(config, source, small_recipe(), small_settings(accumulate=3), seed=0)


def test_length_in_steps():
    arguments = (small_config(vocabulary_size=6, classes=2), counting_source(16))
    recipe, settings = small_recipe(epochs=None, steps=3), small_settings(log_every=2)
    model, history = train_generator(*arguments, recipe, settings, seed=0)
    assert [(row["step"], row["epoch"]) for row in history] == [(2, 1.0), (3, 1.5)]
    same, _ = train_generator(*arguments, small_recipe(epochs=1.5), small_settings(), seed=0)
    assert torch.equal(same.output.weight, model.output.weight)


def test_a_diverging_run_stops():
    config, source = small_config(vocabulary_size=6, classes=2), counting_source(16)
    with pytest.raises(UserError, match=r"(loss|gradient_norm) is .* a smaller learning rate may help"):
        train_generator(config, source, small_recipe(epochs=20, learning_rate=1e30), small_settings(), seed=0)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (small_settings, {"betas": (0.9, 1.0)}, "betas"),
        (small_settings, {"gradient_clip": -1}, "gradient_clip"),
        (small_settings, {"momentum": 0.9}, "momentum"),
        (small_settings, {"precision": "float16"}, "precision"),
        (small_settings, {"sharding": "half"}, "sharding"),
        (small_settings, {"accumulate": 0}, "accumulate"),
        (small_recipe, {"epochs": 0}, "epochs"),
        (small_recipe, {"epochs": None}, "one of epochs and steps must be a number and the other null"),
        (small_recipe, {"steps": 3}, "one of epochs and steps must be a number and the other null"),
        (small_recipe, {"learning_rate": math.inf}, "learning_rate"),
    ],
)
def test_bad_settings(make, changes, message):
    with pytest.raises(ValidationError, match=message):
        make(**changes)


def test_settings_have_no_defaults():
    for kind, names in ((GeneratorTraining, SETTINGS), (Recipe, RECIPE)):
        with pytest.raises(ValidationError) as caught:
            kind()
        assert {error["loc"][0] for error in caught.value.errors()} == set(names)
