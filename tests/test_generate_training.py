"""Training: the loss, the optimiser, what is learnt, exact resume, bad data."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_generate_llamagen import random_model, small_config

from fvq.generate import GeneratorTraining, train_generator, training
from fvq.generate.training import build_optimizer, linear_cross_entropy
from fvq.runtime.errors import UserError

SCHEDULE = {"warmup": 0.0, "warmup_from": 1.0, "constant": 0.05, "final": 0.01, "shape": "linear"}
SETTINGS = {
    "epochs": 1.0,
    "steps": None,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "weight_decay": 0.05,
    "betas": (0.9, 0.95),
    "gradient_clip": 1.0,
    "schedule": SCHEDULE,
    "log_every": 10,
}


def small_settings(**changes) -> GeneratorTraining:
    return GeneratorTraining(**{**SETTINGS, **changes})


def counting_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class c counts round and round through its own three tokens 3c … 3c+2, from a start of its own."""
    labels = torch.arange(count) % 2
    start = torch.randint(3, (count, 1), generator=torch.Generator().manual_seed(0))
    return 3 * labels[:, None] + (start + torch.arange(6)) % 3, labels


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

    monkeypatch.setattr(training, "build_optimizer", watched)
    schedule = {**SCHEDULE, "warmup": 0.2, "warmup_from": 0.5, "constant": 0.5}
    settings = small_settings(epochs=5, gradient_clip=1e-3, schedule=schedule, log_every=1)
    _, history = train_generator(small_config(vocabulary_size=6, classes=2), *counting_images(16), settings, seed=0)
    factors = [0.5, 0.75, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01]
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-2 * factor for factor in factors])
    assert rates == [[row["learning_rate"]] * 2 for row in history]
    assert norms == pytest.approx([1e-3] * 10, rel=1e-2)


def test_a_tiny_model_learns_its_classes():
    tokens, labels = counting_images(64)
    config = small_config(vocabulary_size=6, classes=2)
    model, history = train_generator(config, tokens, labels, small_settings(epochs=15), seed=0)
    assert not model.training
    assert [row["step"] for row in history] == list(range(10, 121, 10))
    assert history[-1]["epoch"] == 15
    assert history[0]["learning_rate"] > history[-1]["learning_rate"] == pytest.approx(1e-4)
    assert history[0]["loss"] > 1
    # Only the first token is uncertain: one of three, or of six where the class was hidden.
    assert history[-1]["loss"] < 0.4
    assert history[-1]["perplexity"] == math.exp(history[-1]["loss"])
    assert history[-1]["accuracy"] > 0.8
    wanted = labels[:40]
    drawn = model.sample(wanted, cfg_scale=1.5, temperature=1.0, top_k=0, top_p=0.95, seed=0)
    assert (drawn // 3 == wanted[:, None]).float().mean() > 0.95
    assert ((drawn[:, 1:] - drawn[:, :-1]) % 3 == 1).float().mean() > 0.95
    assert len(torch.unique(drawn[:, 0])) == 6


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    tokens, labels = counting_images(32)
    arguments = (small_config(vocabulary_size=6, classes=2), tokens, labels, small_settings(epochs=3, log_every=5), 7)
    whole, history = train_generator(*arguments)
    calls = []

    def dying(*inputs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return linear_cross_entropy(*inputs)

    monkeypatch.setattr(training, "linear_cross_entropy", dying)
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
        (lambda t, n: (t[:, :5], n), r"grid: \(2, 3\) means 6 tokens per image"),
        (lambda t, n: (t, n[:-1]), r"labels: \(15,\) for 16 images"),
        (lambda t, n: (t + 1, n), "vocabulary_size: the data holds 6, and with 6 the largest is 5"),
        (lambda t, n: (t - 1, n), "vocabulary_size: the data holds -1"),
        (lambda t, n: (t, n + 1), "classes: the data holds 2, and with 2 the largest is 1"),
        (lambda t, n: (t[:0], n[:0]), "tokens: there are no images"),
        (lambda t, n: (t[:7], n[:7]), "batch_size: 8 samples are asked for at once, and there are 7"),
    ],
)
def test_bad_data(change, message):
    with pytest.raises(UserError, match=message):
        train_generator(
            small_config(vocabulary_size=6, classes=2), *change(*counting_images(16)), small_settings(), seed=0
        )


def test_length_in_steps():
    config = small_config(vocabulary_size=6, classes=2)
    arguments = (config, *counting_images(16))
    settings = small_settings(epochs=None, steps=3, log_every=2)
    _, history = train_generator(*arguments, settings, seed=0)
    assert [(row["step"], row["epoch"]) for row in history] == [(2, 1.0), (3, 1.5)]
    same, _ = train_generator(*arguments, small_settings(epochs=1.5), seed=0)
    assert torch.equal(same.output.weight, train_generator(*arguments, settings, seed=0)[0].output.weight)
    for bad in ({"epochs": None}, {"steps": 3}):
        with pytest.raises(UserError, match="one of epochs and steps"):
            train_generator(*arguments, small_settings(**bad), seed=0)


def test_a_diverging_run_stops():
    tokens, labels = counting_images(16)
    config = small_config(vocabulary_size=6, classes=2)
    with pytest.raises(UserError, match=r"loss is .* a smaller learning rate may help"):
        train_generator(config, tokens, labels, small_settings(epochs=20, learning_rate=1e30), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"gradient_clip": -1}, "gradient_clip"),
        ({"momentum": 0.9}, "momentum"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_settings(**changes)


def test_settings_have_no_defaults():
    with pytest.raises(ValidationError) as caught:
        GeneratorTraining()
    assert {error["loc"][0] for error in caught.value.errors()} == set(SETTINGS)
