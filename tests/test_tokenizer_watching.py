"""Watching a training: pictures that leave it alone, and a warning that is neither missed nor cried for nothing."""

import copy
import random
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_tokenizer_model import tokenizer, uint8_images

from fvq.data.image_table import to_model_range, to_uint8
from fvq.quantize.usage import usage_ceiling
from fvq.runtime import picture
from fvq.runtime.picture import draw_reconstructions
from fvq.tokenizer.config import QuantizerName
from fvq.tokenizer.watching import UsageWatch, save_grid

TILE, GAP = 128, 4


def tiles(image, rows, columns):
    """Every tile of a picture at its own size, (rows, columns, 16, 16, 3)."""
    pixels = np.asarray(image)
    left = pixels.shape[1] - columns * (TILE + GAP)
    return np.stack(
        [
            [pixels[y + GAP : y + GAP + TILE : 8, x : x + TILE : 8] for x in range(left, pixels.shape[1], TILE + GAP)]
            for y in range(0, rows * (TILE + GAP), TILE + GAP)
        ]
    )


def test_originals_reconstructions_and_errors():
    original, reconstruction = uint8_images(10), uint8_images(20)[10:]
    found = tiles(draw_reconstructions(original, reconstruction), 6, 8)
    a, b = (images.permute(0, 2, 3, 1).numpy() for images in (original, reconstruction))
    error = np.minimum(4 * np.abs(a.astype(int) - b), 255)
    for row, images in enumerate((a, b, error)):
        assert np.array_equal(found[row], images[:8])
        assert np.array_equal(found[row + 3, :2], images[8:])


# The files.


def in_training(quantizer):
    """A tokenizer after a step of training, with gradients and, for those that have them, statistics."""
    scales = {"options": {"scales": (1, 2, 4)}} if quantizer == "multiscale" else {}
    model = tokenizer(quantizer, **scales).train()
    model.decoder.eval()  # some part in another mode than the rest
    reconstruction, quantized = model(to_model_range(uint8_images()))
    (reconstruction.square().mean() + quantized.loss).backward()
    return model


def everything(model):
    """All that a picture must leave alone."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "gradients": {name: copy.deepcopy(one.grad) for name, one in model.named_parameters()},
        "requires": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),  # noqa: NPY002
    }


@pytest.mark.parametrize("quantizer", get_args(QuantizerName))
def test_a_picture_leaves_the_training_alone(quantizer, tmp_path):
    model = in_training(quantizer)
    before, twin = everything(model), copy.deepcopy(model)
    save_grid(model, uint8_images(), tmp_path, 1500)
    torch.testing.assert_close(everything(model), before, rtol=0, atol=0, equal_nan=True)
    # Nor does anything that no state shows: the next step is the same.
    images = to_model_range(uint8_images(3))
    torch.testing.assert_close(model(images)[0], twin(images)[0], rtol=0, atol=0)


def test_the_picture_shows_what_the_weights_give(tmp_path):
    model, images = in_training("fvq"), uint8_images(5)
    path = save_grid(model, images, tmp_path / "grids", 1500)
    assert path == tmp_path / "grids" / "step-00001500.png"
    indices = model.encode(to_model_range(images))
    with Image.open(path) as opened:
        assert np.array_equal(
            np.asarray(opened), np.asarray(draw_reconstructions(images, to_uint8(model.decode(indices))))
        )
    content = path.read_bytes()
    save_grid(model, images, tmp_path / "grids", 1500)
    assert path.read_bytes() == content


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def cut_off(self, path):
        path.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(picture.Image.Image, "save", cut_off)
    with pytest.raises(OSError, match="No space left"):
        save_grid(tokenizer(), uint8_images(), tmp_path, 1500)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers(tmp_path):
    model = tokenizer()
    torch.nn.init.constant_(model.to_codes.weight, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        save_grid(model, uint8_images(), tmp_path, 1500)
    assert list(tmp_path.iterdir()) == []


# The warning.


def rows(usages, tokens=51200, every=25):
    return [{"step": every * number, "usage": usage, "usage_tokens": tokens} for number, usage in enumerate(usages, 1)]


def warnings(history, codebook_size=1024):
    """What is said after each row, by its number from 1."""
    watch = UsageWatch(codebook_size)
    said = {count: watch.add(row) for count, row in enumerate(history, 1)}
    return {count: text for count, text in said.items() if text}


# Training usage of the default study's rows, a row every 25 steps.
DEFAULT_STUDY = {
    "vq": [0.2734, 0.0615, 0.0557, 0.0684, 0.0811, 0.0811, 0.083, 0.0957, 0.0957, 0.1025, 0.1064, 0.1074, 0.1104,
           0.1123, 0.1152, 0.1182, 0.1182, 0.1201, 0.1221, 0.1221, 0.124, 0.126, 0.125, 0.127],
    "linear": [0.2031, 0.0479, 0.0576, 0.0918, 0.1104, 0.1377, 0.1592, 0.1797, 0.2021, 0.2217, 0.2402, 0.2588, 0.2793,
               0.293, 0.3066, 0.3184, 0.334, 0.3457, 0.3545, 0.3652, 0.3711, 0.3799, 0.3818, 0.3857],
    "mlp5": [0.0537, 0.0234, 0.0645, 0.1758, 0.25, 0.2754, 0.3613, 0.4707, 0.5869, 0.6807, 0.793, 0.8975, 0.9463,
             0.9893, 0.9746, 0.9863, 0.9697, 0.9932, 0.9824, 0.9863, 0.9854, 0.9854, 0.9844, 0.9824],
    "fvq": [0.4248, 0.9795, 0.9268, 0.9492, 0.9815, 1.0, 1.0, 1.0, 1.0, 0.9971, 0.998, 0.998, 0.999, 1.0, 0.9951,
            0.9961, 0.9971, 0.999, 1.0, 1.0, 0.9971, 0.9971, 1.0, 0.999],
    # The same, a row every 5 steps.
    "vq, fine": [0.269, 0.122, 0.087, 0.059, 0.062, 0.06, 0.056, 0.059, 0.058, 0.063, 0.062, 0.07, 0.07, 0.07, 0.07,
                 0.079, 0.079, 0.077, 0.078, 0.087, 0.084, 0.084, 0.076, 0.084],
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULT_STUDY)
def test_silence_on_the_default_study(name):
    assert warnings(rows(DEFAULT_STUDY[name])) == {}


@pytest.mark.parametrize("name", DEFAULT_STUDY)
def test_a_collapse_at_the_end_of_any_of_them(name):
    usages = DEFAULT_STUDY[name]
    best = max(usages[5:])
    assert list(warnings(rows([*usages, 0.7 * best, 0.6 * best]))) == [len(usages) + 2]


def test_what_it_says():
    history = rows([0.9, 0.95, 0.981, 0.97, 0.8, 0.714], every=400)
    assert warnings(history)[len(history)] == (
        "usage fell from 98.1 % at step 1,200 to 71.4 % at step 2,400: codes are dying; "
        "a smaller learning rate, a warm-up or the quantizer fvq may help"
    )


def test_one_low_row_is_no_fall():
    assert warnings(rows([0.9, 0.99, 0.6, 0.98, 0.7, 0.97])) == {}


def test_once_per_fall():
    full, low = [0.98, 0.99, 1.0], [0.7] * 5
    assert list(warnings(rows(full + low))) == [5]
    # Another tenth further down, for two rows.
    assert list(warnings(rows([*full, *low, 0.62, 0.61, 0.58, 0.58, 0.58]))) == [5, 12]
    # Up again, though not to where it was, and down again.
    assert list(warnings(rows([*full, *low, 0.89, 0.91, *low]))) == [5]
    assert list(warnings(rows([*full, *low, 0.96, *low]))) == [5, 11]


def test_a_collapse_from_the_start_is_told_after_ten_rows():
    assert list(warnings(rows([0.98 - 0.05 * row for row in range(14)]))) == [13]
    assert list(warnings(rows([1.0, 1.0, 0.8, 0.7]))) == [4]


def test_a_few_codes_come_and_go():
    steady = [0.15, 0.152]
    assert warnings(rows([*steady, 0.13, 0.127, 0.13]), 256) == {}
    assert list(warnings(rows([*steady, 0.13, 0.127, 0.13]), 16384)) == [4]
    assert list(warnings(rows([*steady, 0.05, 0.05]), 256)) == [4]


def test_rows_of_fewer_tokens_are_measured_by_what_these_can_reach():
    ceiling = usage_ceiling(1000, 16384)
    few = [{"step": step, "usage": 0.95 * ceiling, "usage_tokens": 1000} for step in (75, 80)]
    assert warnings(rows([0.9, 0.94], tokens=51200) + few, 16384) == {}
    fewer = [{**row, "usage": 0.7 * ceiling} for row in few]
    assert list(warnings(rows([0.9, 0.94], tokens=51200) + fewer, 16384)) == [4]


@given(st.lists(st.floats(0.001, 1.0), max_size=30))
def test_two_rows_near_the_best_keep_silent(usages):
    """An independent reading of the rule: without two successive low rows no warning, whatever came before."""
    for count in warnings(rows(usages)):
        best = max(usages[:count])
        assert max(usages[count - 2 : count]) < 0.9 * best + 1e-12
        assert count > 2
