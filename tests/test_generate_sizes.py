"""The published sizes: parameters counted on the meta device, where nothing is allocated."""

import pytest
import torch

from fvq.generate import LlamaGen
from fvq.generate.sizes import SIZES, published_config, size_name
from fvq.runtime.errors import UserError

# (width, blocks, heads, as published in README and code, parameters of the published class at its defaults).
PUBLISHED = {
    "B": (768, 12, 12, "111M", 110_888_448),
    "L": (1024, 24, 16, "343M", 342_910_976),
    "XL": (1280, 36, 20, "775M", 774_699_520),
    "XXL": (1536, 48, 24, "1.4B", 1_410_972_672),
    "XXXL": (2560, 48, 40, "3.9B", 3_893_027_840),
    "1B": (2048, 22, 32, "1.2B", 1_199_616_000),
    "3B": (3200, 24, 32, "3.1B", 3_096_659_200),
    "7B": (4096, 32, 32, "6.6B", 6_614_589_440),
}


def layers(width: int, depth: int, vocabulary: int, classes: int) -> int:
    """Counted from the published layers: two tables, and per block wqkv, wo, w1, w2, w3 and two norms."""
    inner = int(2 * 4 * width / 3)
    while inner % 256:
        inner += 1
    block = 3 * width * width + width * width + 3 * width * inner + 2 * width
    return (classes + 1) * width + vocabulary * width + depth * block + width + width * vocabulary


def on_meta(name: str, **changes) -> LlamaGen:
    with torch.device("meta"):
        return LlamaGen(published_config(name, **changes))


def count(model: LlamaGen) -> int:
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def rounded(number: int) -> str:
    return f"{number / 1e6:.0f}M" if number < 1e9 else f"{number / 1e9:.1f}B"


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    width, depth, heads, published, exact = PUBLISHED[name]
    assert count(on_meta(name)) == layers(width, depth, 16384, 1000) == exact
    assert rounded(exact) == published
    config = published_config(name)
    assert (config.width, config.depth, config.heads) == (width, depth, heads)
    assert config.feedforward_multiple_of == 256 and config.grid == (16, 16) and config.class_dropout == 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_largest_vocabulary(name):
    width, depth, *_ = PUBLISHED[name]
    model = on_meta(name, vocabulary_size=262144, classes=10, grid=(24, 32))
    assert count(model) == layers(width, depth, 262144, 10)
    logits = model(torch.zeros(2, dtype=torch.int64, device="meta"), torch.zeros(2, 768, dtype=int, device="meta"))
    assert logits.shape == (2, 768, 262144) and logits.is_meta


def test_names_of_sizes():
    assert SIZES.keys() == PUBLISHED.keys()
    assert size_name(published_config("XL", vocabulary_size=64, grid=(2, 3))) == "XL"
    assert size_name(published_config("B", heads=6)) is None
    assert size_name(published_config("B", feedforward_multiple_of=128)) == "B"
    assert size_name(published_config("L", feedforward_multiple_of=4096)) is None
    with pytest.raises(UserError, match="size: 'GPT-B' is none of B, L, XL, XXL, XXXL, 1B, 3B, 7B"):
        published_config("GPT-B")
