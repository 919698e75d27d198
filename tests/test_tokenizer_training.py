"""Training a tokenizer on a small table: it learns, resumes to the bit, and says what is wrong."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_tokenizer_model import config

from fvq.data.image_table import ImageTable, to_model_range, write_image_table
from fvq.data.records import ImageRecord
from fvq.evaluate.networks.pretrained import VGG16_FILE
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule
from fvq.tokenizer import step, training
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.step import TokenizerStep
from fvq.tokenizer.training import train_tokenizer

SCHEDULE = Schedule(warmup=0.1, warmup_from=0.005, constant=0.3, final=0.01, shape="linear")
SETTINGS = {
    "batch_size": 8,
    "accumulate": 1,
    "precision": "float32",
    "learning_rate": 3e-3,
    "reference_batch_size": None,
    "betas": (0.9, 0.95),
    "gradient_clip": 1.0,
    "ema_decay": None,
    "reconstruction_weight": 1.0,
    "perceptual_weight": 0.0,
    "perceptual_weights": None,
    "adversarial_weight": 0.0,
    "adversarial_start": 0,
    "crop": None,
    "flip": True,
    "log_every": 5,
    "grid_every": 0,
    "probe_images": 4,
}


def settings(**changes):
    return TokenizerTraining(**{**SETTINGS, **changes})


def write_table(path, side, count):
    """Images of two plain halves, each of one of four colours."""
    random = np.random.default_rng(0)
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [200, 200, 200]])
    records = []
    for number in range(count):
        image = np.empty((side, side, 3), np.uint8)
        image[:, : side // 2], image[:, side // 2 :] = colours[random.integers(4, size=2)]
        records.append(ImageRecord(image, number % 2, str(number)))
    write_image_table(path, records, dataset="halves", classes=["a", "b"], image_size=side, split="train")
    return ImageTable.open(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "train.parquet", 16, 64)


@pytest.fixture(scope="module")
def larger_table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "larger.parquet", 32, 8)


def error_of(tokenizer, table):
    images = to_model_range(table.images())
    return (tokenizer.decode(tokenizer.encode(images)) - images).square().mean().item()


@pytest.mark.parametrize("quantizer", ["vq", "fvq"])
def test_training_lowers_the_reconstruction_error(table, quantizer):
    fast = settings(learning_rate=1e-2)
    tokenizer, history = train_tokenizer(config(quantizer), table, fast, SCHEDULE, steps=120, seed=0)
    assert not tokenizer.training
    assert history[-1]["reconstruction"] < 0.65 * history[0]["reconstruction"]
    # No single image does as well for all.
    images = to_model_range(table.images())
    assert error_of(tokenizer, table) < 0.8 * images.var(0).mean()


def test_the_history(table):
    _, history = train_tokenizer(config(), table, settings(log_every=3), SCHEDULE, epochs=1.25, seed=0)
    assert [row["step"] for row in history] == [3, 6, 9, 10]
    assert [row["epoch"] for row in history] == [3 / 8, 6 / 8, 9 / 8, 10 / 8]
    # Warm-up of one step, three constant, six falling to 1 %.
    assert history[0]["learning_rate"] == 3e-3
    assert history[-1]["learning_rate"] == pytest.approx(3e-5)
    for row in history:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["codebook"] + row["commitment"], rel=1e-5)
        assert 0 < row["usage"] <= 1
        assert 1 <= row["perplexity"] <= 64
    assert [row["usage_tokens"] for row in history] == [3 * 8 * 16, 3 * 8 * 16, 3 * 8 * 16, 8 * 16]
    assert list(history[0])[:3] == ["step", "epoch", "learning_rate"]


def test_the_flip_is_drawn_anew_for_each_image(table, monkeypatch):
    seen = []
    forward = training.Tokenizer.forward
    monkeypatch.setattr(training.Tokenizer, "forward", lambda self, x: seen.append(x.clone()) or forward(self, x))
    shown = {}
    for flip in (False, True):
        seen.clear()
        train_tokenizer(config("vq"), table, settings(flip=flip), SCHEDULE, steps=8, seed=0)
        shown[flip] = torch.cat(seen)
    same = (shown[True] == shown[False]).flatten(1).all(1)
    mirrored = (shown[True] == shown[False].flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    # A quarter of the images are their own mirror image.
    assert 8 < (~same).sum() < 40
    assert 8 < (~mirrored).sum() < 40


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, step):
    """Let the run's step of this number fail."""
    real = training.TrainingBatches.__call__

    def failing(self, index):
        if index == step:
            raise Interrupted
        return real(self, index)

    monkeypatch.setattr(training.TrainingBatches, "__call__", failing)


@pytest.mark.parametrize("quantizer", ["mlp5", "fvq", "vq-ema", "cvq"])
def test_interrupted_equals_uninterrupted(table, tmp_path, monkeypatch, quantizer):
    recipe = {"steps": 14, "seed": 3, "checkpoint_every": 4}
    whole, whole_history = train_tokenizer(config(quantizer), table, settings(), SCHEDULE, **recipe)
    for stop in (2, 7, 13):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_at(patch, stop)
            train_tokenizer(config(quantizer), table, settings(), SCHEDULE, **recipe, checkpoint_folder=tmp_path)
    torch.rand(3)
    resumed, history = train_tokenizer(
        config(quantizer), table, settings(), SCHEDULE, **recipe, checkpoint_folder=tmp_path
    )
    assert history == whole_history
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_interrupted_equals_uninterrupted_with_the_adversary(larger_table, tmp_path, monkeypatch):
    with_adversary = settings(batch_size=2, adversarial_weight=0.1, adversarial_start=2, log_every=2)
    arguments = (config("vq", image_size=32), larger_table, with_adversary, SCHEDULE)
    recipe = {"steps": 6, "seed": 0, "checkpoint_every": 2}
    whole, whole_history = train_tokenizer(*arguments, **recipe)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 5)
        train_tokenizer(*arguments, **recipe, checkpoint_folder=tmp_path)
    assert (tmp_path / "step-00000004.pt").is_file()
    resumed, history = train_tokenizer(*arguments, **recipe, checkpoint_folder=tmp_path)
    assert history == whole_history
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    # The discriminator begins at its step.
    assert "discriminator" not in whole_history[0]
    assert "adversarial" not in whole_history[0]
    assert whole_history[1]["discriminator"] > 0
    row = whole_history[-1]
    terms = row["reconstruction"] + row["codebook"] + row["commitment"] + row["adversarial"]
    assert row["loss"] == pytest.approx(terms, rel=1e-5)


def test_the_adversary_changes_the_tokenizer(larger_table):
    def train(weight):
        chosen = settings(batch_size=2, adversarial_weight=weight)
        return train_tokenizer(config("vq", image_size=32), larger_table, chosen, SCHEDULE, steps=2, seed=0)[0]

    without, with_adversary = train(0.0), train(0.5)
    assert not torch.equal(without.decoder.conv_out.weight, with_adversary.decoder.conv_out.weight)


def test_images_too_small_for_the_discriminator(table):
    with pytest.raises(UserError, match=r"train_tokenizer\.adversarial_weight: .* at least 24 pixels, not 16"):
        train_tokenizer(config("vq"), table, settings(adversarial_weight=0.1), SCHEDULE, steps=1, seed=0)


def test_missing_perceptual_weights_name_the_parameter(table, tmp_path, monkeypatch):
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        train_tokenizer(config("vq"), table, settings(perceptual_weight=1.0), SCHEDULE, steps=1, seed=0)
    text = str(caught.value)
    assert text.startswith(f"train_tokenizer.perceptual_weights: {VGG16_FILE.name} ")
    assert "\n" not in text
    given = settings(perceptual_weight=1.0, perceptual_weights=str(tmp_path / "vgg.pth"))
    with pytest.raises(UserError, match=r"^train_tokenizer\.perceptual_weights: .*vgg\.pth: no such file$"):
        train_tokenizer(config("vq"), table, given, SCHEDULE, steps=1, seed=0)


def test_the_perceptual_term_is_weighted(table, monkeypatch):
    class Blur(torch.nn.Module):
        def forward(self, a, b):
            return (a.mean((1, 2, 3), keepdim=True) - b.mean((1, 2, 3), keepdim=True)).square()

    monkeypatch.setattr(step, "find_pretrained", lambda *_: "somewhere")
    monkeypatch.setattr(step, "load_lpips_network", lambda trunk, path: Blur())
    rows = {}
    for weight in (0.0, 1.0, 2.0):
        weighted = settings(perceptual_weight=weight)
        rows[weight] = train_tokenizer(config("vq"), table, weighted, SCHEDULE, steps=1, seed=0)[1][0]
    assert "perceptual" not in rows[0.0]
    assert rows[1.0]["perceptual"] > 0
    assert rows[2.0]["perceptual"] == pytest.approx(2 * rows[1.0]["perceptual"])
    assert rows[1.0]["loss"] == pytest.approx(rows[0.0]["loss"] + rows[1.0]["perceptual"])


def test_images_of_another_size(table):
    with pytest.raises(UserError, match=r"train\.parquet: holds images of 16 pixels, not 32"):
        train_tokenizer(config(image_size=32), table, settings(), SCHEDULE, steps=1, seed=0)


def test_fewer_images_than_a_batch(table):
    with pytest.raises(UserError, match="batch_size: 65 samples are asked for at once, and there are 64"):
        train_tokenizer(config(), table, settings(batch_size=65), SCHEDULE, steps=1, seed=0)


def test_a_training_that_diverges_is_one_line(table):
    constant = Schedule(warmup=0, warmup_from=1, constant=1, final=1, shape="none")
    wild = settings(learning_rate=1e30, gradient_clip=1e30, log_every=100)
    with pytest.raises(UserError, match=r"^training the tokenizer: .* at step \d+; a smaller learning rate may help$"):
        train_tokenizer(config("vq"), table, wild, constant, steps=20, seed=0)


def test_parts_of_a_batch_give_its_gradients(table):
    rows = {}
    for parts in (1, 2, 4):
        chosen = settings(accumulate=parts, log_every=1)
        rows[parts] = train_tokenizer(config("fvq"), table, chosen, SCHEDULE, steps=6, seed=0)[1]
    for parts in (2, 4):
        for row, whole in zip(rows[parts], rows[1], strict=True):
            for name in ("loss", "reconstruction", "commitment", "gradient_norm"):
                assert row[name] == pytest.approx(whole[name], rel=2e-4)
            assert row["usage_tokens"] == whole["usage_tokens"]
    assert rows[2] != rows[1]


def test_the_learning_rate_is_scaled_without_rounding():
    assert settings(learning_rate=1e-4, batch_size=32, reference_batch_size=128).scaled_learning_rate == 2.5e-5
    assert settings(learning_rate=1e-4, batch_size=192, reference_batch_size=128).scaled_learning_rate == pytest.approx(
        1.5e-4
    )
    assert settings(learning_rate=1e-4, batch_size=48).scaled_learning_rate == 1e-4


def test_the_scaled_rate_is_the_one_that_trains(table):
    scaled = settings(learning_rate=6e-3, reference_batch_size=16)
    plain, history = train_tokenizer(config("vq"), table, settings(), SCHEDULE, steps=3, seed=0)
    other, other_history = train_tokenizer(config("vq"), table, scaled, SCHEDULE, steps=3, seed=0)
    assert other_history == history
    assert torch.equal(other.to_codes.weight, plain.to_codes.weight)


def test_the_result_is_the_moving_average_where_asked_for(table):
    seen = []

    class Watched(TokenizerStep):
        def __call__(self, *arguments):
            figures = super().__call__(*arguments)
            seen.append({name: tensor.clone() for name, tensor in self.tokenizer.state_dict().items()})
            return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TokenizerStep", Watched)
        averaged, _ = train_tokenizer(config("fvq"), table, settings(ema_decay=0.5), SCHEDULE, steps=4, seed=0)
    plain, _ = train_tokenizer(config("fvq"), table, settings(), SCHEDULE, steps=4, seed=0)
    for name, tensor in averaged.state_dict().items():
        expected = seen[0][name].double()
        for later in seen[1:]:
            expected = 0.5 * expected + 0.5 * later[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
        # The average watches: the weights themselves go their way.
        assert torch.equal(seen[-1][name], plain.state_dict()[name])


@pytest.mark.parametrize("quantizer", ["fvq", "vq-ema"])
def test_bfloat16_learns_and_quantizes_in_float32(table, monkeypatch, quantizer):
    kinds = set()

    def watch(self, index, *arguments):
        hooks = [
            self.tokenizer.encoder.register_forward_hook(lambda _, __, out: kinds.add(("encoder", out.dtype))),
            self.tokenizer.quantizer.register_forward_hook(
                lambda _, __, out: kinds.add(("quantizer", out.quantized.dtype))
            ),
        ]
        figures = call(self, index, *arguments)
        for hook in hooks:
            hook.remove()
        return figures

    call = TokenizerStep.__call__
    monkeypatch.setattr(TokenizerStep, "__call__", watch)
    lower = settings(precision="bfloat16", learning_rate=1e-2)
    tokenizer, history = train_tokenizer(config(quantizer), table, lower, SCHEDULE, steps=60, seed=0)
    assert kinds == {("encoder", torch.bfloat16), ("quantizer", torch.float32)}
    assert history[-1]["reconstruction"] < 0.8 * history[0]["reconstruction"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in tokenizer.state_dict().values())


def test_the_state_before_a_loss_that_is_no_number_is_kept(table, tmp_path, monkeypatch):
    call = TokenizerStep.__call__

    def poisoned(self, index, *arguments):
        figures = call(self, index, *arguments)
        return {**figures, "loss": figures["loss"] * math.nan} if index == 9 else figures

    monkeypatch.setattr(TokenizerStep, "__call__", poisoned)
    with pytest.raises(UserError) as caught:
        train_tokenizer(
            config(), table, settings(log_every=100), SCHEDULE, steps=40, seed=0,
            checkpoint_folder=tmp_path, checkpoint_every=4,
        )  # fmt: skip
    assert str(caught.value) == (
        "training the tokenizer: loss is nan at step 12; a smaller learning rate may help; "
        f"the state after step 8 is kept in {tmp_path}"
    )
    assert {path.name for path in tmp_path.glob("*.pt")} == {"step-00000004.pt", "step-00000008.pt"}


def test_dying_codes_are_told_once(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.UsageWatch, "add", lambda self, row: f"row {row['step']}" if row["step"] > 2 else None)
    recipe = {"steps": 6, "seed": 0, "checkpoint_folder": tmp_path, "checkpoint_every": 2}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 4)
        train_tokenizer(config(), table, settings(log_every=2), SCHEDULE, **recipe)
    train_tokenizer(config(), table, settings(log_every=2), SCHEDULE, **recipe)
    told = [f"fvq: training the tokenizer: row {step}" for step in (4, 6)]
    assert capsys.readouterr().err.splitlines() == told


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"accumulate": 3},
        {"precision": "float16"},
        {"ema_decay": 1.0},
        {"crop": (1.0, 0.8)},
        {"crop": (0.0, 0.8)},
        {"reference_batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"betas": (0.9, 1.0)},
        {"gradient_clip": 0},
        {"adversarial_weight": -1},
        {"beta": 1},
    ],
)
def test_settings_out_of_range(changes):
    with pytest.raises(ValidationError):
        settings(**changes)


def test_the_configuration_survives_json():
    assert type(config()).model_validate(json.loads(json.dumps(config().model_dump(mode="json")))) == config()
