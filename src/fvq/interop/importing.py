"""A published checkpoint as a tokenizer."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fvq.interop.convert import from_published, to_published
from fvq.interop.layouts import DESCRIPTIONS, LABELS, POSITIONS, Layout, recognise
from fvq.interop.reading import Checkpoint, differing_names, read_checkpoint, shortened
from fvq.interop.sizes import infer_config
from fvq.quantize.bridge_blocks import grid_positions
from fvq.runtime.errors import UserError
from fvq.tokenizer import Tokenizer, TokenizerConfig

_USAGE = "quantize.codebook_used"
_LOSS = "loss."
_POSITION_TOLERANCE = 1e-6  # float32 rounding of values in ±1


@dataclass(frozen=True, eq=False)
class ImportedTokenizer:
    """What ``import_tokenizer`` made of a file."""

    tokenizer: Tokenizer
    layout: Layout
    left_out: tuple[str, ...]
    """what the file holds beside the tokenizer"""


def import_tokenizer(
    path: Path | str, *, layout: Layout | None = None, ema: bool = False, heads: int = 4, image_size: int = 256
) -> ImportedTokenizer:
    """``tokenizer_of`` a file; ``ema`` takes the averaged weights."""
    return tokenizer_of(read_checkpoint(path, ema=ema), layout=layout, heads=heads, image_size=image_size)


def tokenizer_of(
    checkpoint: Checkpoint, *, layout: Layout | None, heads: int = 4, image_size: int = 256
) -> ImportedTokenizer:
    """A published checkpoint as a tokenizer; sizes come from its tensors, and every value stays as it is.

    Of a label embedding (``fvq-dit``) only the unconditional row, the last, is kept, as the released conversion does.

    Args:
        checkpoint: what ``read_checkpoint`` gave.
        layout: what it is; by default recognised, where its names tell.
        heads: attention heads of the bridge; 4 in all published configurations.
        image_size: height and width of the images in pixels.

    Raises:
        UserError: the checkpoint is of no published layout; the message names what is unlike it.
    """
    path, weights = checkpoint.path, checkpoint.weights
    layout = _choose_layout(weights, layout, path)
    tensors = {name: tensor for name, tensor in weights.items() if name != _USAGE and not name.startswith(_LOSS)}
    config = infer_config(tensors, layout, heads=heads, image_size=image_size, path=path)
    with torch.device("meta"):
        blank = Tokenizer(config).state_dict()
    if layout == "fvq-dit":
        tensors = _without_fixed_parts(tensors, config, path)
    _check_tensors(tensors, to_published(blank, config, layout), layout, path)
    tokenizer = Tokenizer(config)
    tokenizer.load_state_dict(from_published(tensors, blank, config, layout))
    return ImportedTokenizer(tokenizer.eval(), layout, (*checkpoint.others, *_left_out(weights, layout)))


def _choose_layout(names: Iterable[str], layout: Layout | None, path: Path | str) -> Layout:
    possible = recognise(names)
    if not possible:
        raise UserError(f"{path}: of no published layout; its tensors are {shortened(list(names))}")
    if layout is not None and layout not in possible:
        raise UserError(f"{path}: not of the layout {layout}, but of {' or '.join(possible)}")
    if layout is None and len(possible) > 1:
        choices = " or ".join(f"{name} ({DESCRIPTIONS[name]})" for name in possible)
        raise UserError(f"{path}: its names fit two layouts; choose --layout {choices}")
    return layout or possible[0]


def _without_fixed_parts(tensors: Mapping[str, Tensor], config: TokenizerConfig, path: Path | str) -> dict[str, Tensor]:
    """The tensors without positions, which must be the fixed ones, and without labels but the unconditional one."""
    tensors = dict(tensors)
    found = tensors.pop(POSITIONS)
    assert config.bridge is not None and config.bridge.patch is not None and config.bridge.width is not None
    wanted_td = grid_positions(math.isqrt(config.codebook_size // config.bridge.patch), config.bridge.width)
    if found.shape != (1, *wanted_td.shape) or not torch.allclose(
        found[0].float(), wanted_td, rtol=0, atol=_POSITION_TOLERANCE
    ):
        raise UserError(
            f"{path}: {POSITIONS} is not the fixed sin-cos table (1, {len(wanted_td)}, {wanted_td.shape[1]})"
        )
    if LABELS in tensors:
        tensors[LABELS] = tensors[LABELS][-1:]
    return tensors


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], layout: Layout, path: Path | str
) -> None:
    differing = differing_names(tensors, expected)
    if differing:
        raise UserError(f"{path}: of another architecture than the layout {layout}; tensors: {differing}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise UserError(f"{path}: {name} is {str(tensor.dtype)[6:]}; the published tensors are float32")
    wrong = [
        f"{name} is {tuple(tensors[name].shape)} and must be {tuple(blank.shape)}"
        for name, blank in expected.items()
        if tensors[name].shape != blank.shape
    ]
    if wrong:
        raise UserError(f"{path}: of another architecture than the layout {layout}: {shortened(wrong)}")


def _left_out(weights: Mapping[str, Tensor], layout: Layout) -> list[str]:
    losses = sum(name.startswith(_LOSS) for name in weights)
    left_out = [f"{losses} tensors of the losses ({_LOSS}*)"] if losses else []
    left_out += [_USAGE] if _USAGE in weights else []
    if layout == "fvq-dit":
        left_out += [f"{POSITIONS} (fixed)"]
        labels = len(weights[LABELS]) - 1
        left_out += [f"{labels:,} class labels of the bridge"] if labels else []
    return left_out
