"""LlamaGen's published sizes (``autoregressive/models/gpt.py`` of FoundationVision/LlamaGen).

The paper's B to 3B are class-conditional; the code names XXXL, 1B and 7B as well.
"""

from dataclasses import dataclass
from typing import Any

from fvq.generate.llamagen import LlamaGenConfig
from fvq.runtime.errors import UserError


@dataclass(frozen=True)
class Size:
    """What the sizes differ in; all else is the same."""

    width: int
    depth: int
    heads: int


SIZES = {
    "B": Size(width=768, depth=12, heads=12),
    "L": Size(width=1024, depth=24, heads=16),
    "XL": Size(width=1280, depth=36, heads=20),
    "XXL": Size(width=1536, depth=48, heads=24),
    "XXXL": Size(width=2560, depth=48, heads=40),
    "1B": Size(width=2048, depth=22, heads=32),
    "3B": Size(width=3200, depth=24, heads=32),
    "7B": Size(width=4096, depth=32, heads=32),
}
MULTIPLE_OF = 256  # that the feed-forward width is rounded up to
DROPOUT = 0.1  # of classes, tokens, residual and feed-forward branches
CLASSES = 1000
VOCABULARY_SIZE = 16384
GRID = (16, 16)


def published_config(name: str, **changes: Any) -> LlamaGenConfig:
    """The configuration of a published size ("B"), by default for ImageNet's classes and 16x16 of 16,384 codes.

    Args:
        name: one of ``SIZES``.
        changes: other fields of ``LlamaGenConfig``, such as ``vocabulary_size``.

    Raises:
        UserError: the name is of no published size.
    """
    if name not in SIZES:
        raise UserError(f"size: {name!r} is none of {', '.join(SIZES)}")
    size = SIZES[name]
    fields = {
        "vocabulary_size": VOCABULARY_SIZE,
        "classes": CLASSES,
        "grid": GRID,
        "width": size.width,
        "depth": size.depth,
        "heads": size.heads,
        "feedforward_multiple_of": MULTIPLE_OF,
        "class_dropout": DROPOUT,
        "token_dropout": DROPOUT,
        "residual_dropout": DROPOUT,
        "feedforward_dropout": DROPOUT,
    }
    return LlamaGenConfig(**{**fields, **changes})


def size_name(config: LlamaGenConfig) -> str | None:
    """The published name of a generator's size, None where it has none."""
    size = Size(config.width, config.depth, config.heads)
    found = next((name for name, published in SIZES.items() if published == size), None)
    usual = config.model_copy(update={"feedforward_multiple_of": MULTIPLE_OF})
    return found if config.feedforward_width == usual.feedforward_width else None
