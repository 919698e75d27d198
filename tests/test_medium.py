"""The preset for photographs of one's own, on real ones: 128×128, random crops from the originals."""

import os
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump

from fvq.config import Parameters, load_parameters
from fvq.data.image_table import to_model_range
from fvq.data.open import LabelledImages, open_images
from fvq.data.prepare import prepare_images
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.training import train_tokenizer

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = Path(os.environ.get("FVQ_TEST_ASSETS", ROOT / ".." / "shared")) / "data" / "clothing-small"


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Parameters, LabelledImages, LabelledImages]:
    """The preset's parameters, training and validation images."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"the photographs are not in {PHOTOGRAPHS}")
    overrides = ["scale=medium", f"prepare_data.train='{PHOTOGRAPHS.resolve()}'", "steps=36"]
    compose_and_dump(tmp_path / "params.yaml", str(ROOT / "conf"), None, "config", "conf", overrides)
    parameters = load_parameters(tmp_path / "params.yaml")
    paths = tmp_path / "train.parquet", tmp_path / "validation.parquet"
    prepare_images(parameters.prepare_data, 0, *paths)
    train, validation = map(open_images, paths)
    return parameters, train, validation


def error_on(images: LabelledImages, tokenizer: Tokenizer) -> float:
    batch = to_model_range(images.images(torch.arange(16)))
    return (tokenizer.decode(tokenizer.encode(batch)) - batch).square().mean().item()


def test_the_error_falls_on_real_photographs(prepared: tuple[Parameters, LabelledImages, LabelledImages]) -> None:
    parameters, train, validation = prepared
    assert (len(train), len(validation), len(train.classes)) == (299, 73, 10)
    assert validation.images([0]).shape == (1, 3, 128, 128)
    torch.manual_seed(0)
    untrained = Tokenizer(parameters.tokenizer_config("fvq")).eval()
    settings = parameters.train_tokenizer.model_copy(update={"log_every": 6})
    tokenizer, history = train_tokenizer(
        parameters.tokenizer_config("fvq"), train, settings, parameters.schedule("fvq"), steps=36, seed=0
    )
    errors = [row["reconstruction"] for row in history]
    assert errors[-1] < 0.6 * errors[0]
    assert error_on(validation, tokenizer) < 0.6 * error_on(validation, untrained)
