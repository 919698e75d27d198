"""A generator and the tokenizer of its codes: what fits, and what is refused though its sizes fit."""

import hashlib

import pytest
import torch
from test_generate_llamagen import random_model
from test_tokenizer_model import tokenizer

from fvq.generate import LlamaGen
from fvq.generate.pairing import load_pair
from fvq.runtime.errors import UserError
from fvq.tokenizer.freezing import freeze_tokenizer


@pytest.fixture
def files(tmp_path):
    """Paths of a study's tokenizer before and after freezing, and of a generator on the latter's codes."""
    trained = tokenizer("fvq", codebook_size=64).eval()
    images = torch.randint(256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    class Images:
        def __len__(self):
            return len(images)

        def images(self, indices):
            return images[indices]

    frozen, _ = freeze_tokenizer(trained, Images())
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("trained", "frozen", "generator")}
    trained.save(paths["trained"])
    frozen.save(paths["frozen"])
    sha256 = hashlib.sha256(paths["frozen"].read_bytes()).hexdigest()
    generator(paths["generator"], tokenizer_sha256=sha256)
    return paths


def generator(path, **changes):
    random_model(**{"vocabulary_size": 64, "grid": (4, 4), **changes}).save(path)


def refused(generator_path, tokenizer_path):
    with pytest.raises(UserError) as caught:
        load_pair(generator_path, tokenizer_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_generator_with_its_tokenizer(files):
    model, decoder = load_pair(files["generator"], files["frozen"])
    assert isinstance(model, LlamaGen) and decoder.config.frozen
    assert model.config.tokenizer_sha256 == hashlib.sha256(files["frozen"].read_bytes()).hexdigest()


def test_the_tokenizer_before_freezing_has_the_same_sizes_and_is_refused(files):
    trained, frozen = (hashlib.sha256(files[name].read_bytes()).hexdigest() for name in ("trained", "frozen"))
    assert refused(files["generator"], files["trained"]) == (
        f"{files['generator']}: learned the codes of the tokenizer with SHA-256 {frozen}, and {files['trained']} has "
        f"{trained}; a study's generator goes with the file of its stage freeze_codebook"
    )


def test_a_generator_that_does_not_know_its_tokenizer_is_checked_by_its_sizes(files):
    generator(files["generator"])
    load_pair(files["generator"], files["trained"])
    generator(files["generator"], grid=(3, 8))
    assert refused(files["generator"], files["frozen"]) == (
        f"{files['generator']}: was trained on 3×8 tokens of 64 codes, and {files['frozen']} has 4×4 of 64"
    )
    generator(files["generator"], vocabulary_size=1024)
    assert "4×4 tokens of 1,024 codes, and" in refused(files["generator"], files["frozen"])


def test_several_codes_a_place_are_refused(files, tmp_path):
    residual = tokenizer("residual")
    residual.save(tmp_path / "residual.safetensors")
    generator(files["generator"], vocabulary_size=residual.config.codebook_size)
    assert f"has 4×4×{residual.config.index_shape[2]} of" in refused(
        files["generator"], tmp_path / "residual.safetensors"
    )


def test_files_of_another_kind_are_named(files):
    assert "trained.safetensors: holds a tokenizer" in refused(files["trained"], files["frozen"])
    assert "generator.safetensors: holds a generator" in refused(files["generator"], files["generator"])
