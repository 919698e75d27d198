"""LlamaGen's class-conditional checkpoints, which FVQ's released code writes as well, as generators and back.

Sources: ``autoregressive/models/gpt.py``, ``train/train_c2i.py`` and ``train_c2i_fsdp.py`` of FoundationVision/LlamaGen
and yfChang-cv/FVQ. The names are those of ``LlamaGen``, so that nothing is renamed or reshaped.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fvq.generate import LlamaGen, LlamaGenConfig
from fvq.generate.sizes import DROPOUT, GRID, MULTIPLE_OF, SIZES, size_name
from fvq.interop.reading import Checkpoint, differing_names
from fvq.runtime.errors import UserError, describe_validation_error

_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module)\.)+")  # of torch.compile and of DDP
_POSITIONS = "freqs_cis"
_TEXT = ("cls_embedding.cap_proj", "cls_embedding.uncond_embedding")
_TOKENS = "tok_embeddings.weight"
_CLASSES = "cls_embedding.embedding_table.weight"
_QUERY_KEY_VALUE = "layers.0.attention.wqkv.weight"
_FEEDFORWARD = "layers.0.feed_forward.w1.weight"
_EXACT = (torch.float32, torch.bfloat16, torch.float16)  # that float32 holds


@dataclass(frozen=True, eq=False)
class ImportedGenerator:
    """What ``generator_of`` made of a checkpoint."""

    generator: LlamaGen
    grid_told: bool
    """whether the grid was given or in the file; otherwise it is the published 16x16"""
    dtypes: tuple[str, ...]
    """that the file's tensors have; the generator's are float32"""
    null_class: bool
    """whether the file has an embedding for a hidden class; otherwise zeros stand in"""
    left_out: tuple[str, ...]
    """what the file holds beside the generator"""


def is_generator(names: Iterable[str]) -> bool:
    """Whether a checkpoint of these names holds a generator, not a tokenizer."""
    names = {_WRAPPERS.sub("", name) for name in names}
    return _TOKENS in names or any(name.startswith(("layers.0.attention.", "cls_embedding.")) for name in names)


def generator_of(
    checkpoint: Checkpoint, *, heads: int | None = None, grid: tuple[int, int] | None = None
) -> ImportedGenerator:
    """A published class-conditional checkpoint as a generator; sizes come from its tensors, every value stays.

    Bfloat16 and float16 become float32 of the same value. Dropouts, which only matter where training goes on, come from
    the training script's arguments where the file has them; otherwise they are the published 0.1.

    Args:
        checkpoint: what ``read_checkpoint`` gave.
        heads: attention heads; by default those of the published size, or of the model that the arguments name.
        grid: rows and columns of tokens; by default that of the arguments, otherwise the published 16x16.

    Raises:
        UserError: the checkpoint is none of a class-conditional LlamaGen, or its heads must be given; the message names
            what is wrong.
    """
    path, arguments = checkpoint.path, checkpoint.arguments
    tensors = _unwrapped(checkpoint.weights, path)
    left_out = [*checkpoint.others, *([_POSITIONS] if tensors.pop(_POSITIONS, None) is not None else [])]
    text = [name for name in tensors if name.startswith(_TEXT)]
    if text:
        raise UserError(f"{path}: generates from text ({text[0]}); only class-conditional checkpoints are read")
    if _number(arguments, "cls_token_num", path) not in (None, 1):
        raise UserError(f"{path}: its arguments tell {arguments['cls_token_num']} class tokens (cls_token_num), not 1")
    told = _told_grid(arguments, path)
    if grid and told and grid != told:
        raise UserError(f"{path}: its arguments tell a grid of {told[0]}x{told[1]}, not {grid[0]}x{grid[1]} (--grid)")
    config, null_class = _config(tensors, arguments, heads, grid or told or GRID, path)
    with torch.device("meta"):
        generator = LlamaGen(config)
    if not null_class:
        tensors[_CLASSES] = torch.cat([tensors[_CLASSES], tensors[_CLASSES].new_zeros(1, config.width)])
    _check_tensors(tensors, generator.state_dict(), path)
    generator.to_empty(device="cpu").load_state_dict(tensors)
    dtypes = tuple(sorted({_dtype(tensor) for tensor in tensors.values()}))
    return ImportedGenerator(generator.eval(), bool(grid or told), dtypes, null_class, tuple(left_out))


def published_model(config: LlamaGenConfig) -> str:
    """The model's name and settings in the published code, for a generator that it can hold.

    Raises:
        UserError: the published code's images have as many rows as columns of tokens.
    """
    rows, columns = config.grid
    if rows != columns:
        raise UserError(f"grid {rows}x{columns}: LlamaGen's layout has as many rows as columns")
    name = size_name(config)
    settings: dict[str, Any] = {} if name else {"dim": config.width, "n_layer": config.depth, "n_head": config.heads}
    if config.feedforward_multiple_of != MULTIPLE_OF and not name:
        settings["multiple_of"] = config.feedforward_multiple_of
    settings |= {"vocab_size": config.vocabulary_size, "block_size": config.tokens, "num_classes": config.classes}
    for field in ("norm_eps", "rope_base"):
        if getattr(config, field) != LlamaGenConfig.model_fields[field].default:
            settings[field] = getattr(config, field)
    listed = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{f'GPT-{name}' if name else 'Transformer'} with {listed}"


def _unwrapped(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        bare = _WRAPPERS.sub("", name)
        if bare in tensors:
            raise UserError(f"{path}: has {bare} twice, with and without a prefix")
        tensors[bare] = tensor
    return tensors


def _config(
    tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], heads: int | None, grid: tuple[int, int], path: Path
) -> tuple[LlamaGenConfig, bool]:
    """The configuration, and whether the embedding of classes has the row of the null class."""
    vocabulary, width = _shape(tensors, _TOKENS, path)
    rows, _ = _shape(tensors, _CLASSES, path)
    projected, _ = _shape(tensors, _QUERY_KEY_VALUE, path)
    if width < projected < 3 * width:
        raise UserError(
            f"{path}: {_QUERY_KEY_VALUE} has {projected} rows, not 3 * {width}: keys and values shared by heads "
            "(grouped queries) are not read"
        )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    hidden = _number(arguments, "class_dropout_prob", path)
    classes = _number(arguments, "num_classes", path)
    if hidden is None:
        hidden = 0.0 if classes == rows else DROPOUT
    null_class = hidden > 0
    if classes not in (None, rows - null_class):
        raise UserError(f"{path}: {_CLASSES} has {rows} rows, but its arguments tell {classes} classes")
    drop_path = _number(arguments, "drop_path_rate", path) or 0.0
    branches = 0.0 if drop_path else _default(_number(arguments, "dropout_p", path), DROPOUT)
    try:
        config = LlamaGenConfig(
            vocabulary_size=vocabulary,
            classes=rows - null_class,
            grid=grid,
            width=width,
            depth=depth,
            heads=_heads(width, depth, arguments, heads, path),
            feedforward_multiple_of=_multiple(width, _shape(tensors, _FEEDFORWARD, path)[0], path),
            class_dropout=hidden,
            token_dropout=_default(_number(arguments, "token_dropout_p", path), DROPOUT),
            residual_dropout=branches,
            feedforward_dropout=branches,
            drop_path=drop_path,
        )
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path))) from None
    return config, null_class


def _shape(tensors: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, int]:
    if name not in tensors:
        raise UserError(f"{path}: no class-conditional LlamaGen: {name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{path}: {name} is {shape} and must have 2 dimensions")
    return shape[0], shape[1]


def _number(arguments: Mapping[str, Any], name: str, path: Path) -> Any:
    value = arguments.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{path}: its argument {name} is {value!r:.80}, not a number")
    return value


def _default(value: Any, default: float) -> Any:
    return default if value is None else value


def _heads(width: int, depth: int, arguments: Mapping[str, Any], heads: int | None, path: Path) -> int:
    named = SIZES.get(str(arguments.get("gpt_model")).removeprefix("GPT-"))
    if named and named.width == width:
        if heads not in (None, named.heads):
            raise UserError(f"{path}: a {arguments['gpt_model']} of {named.heads} heads, not {heads} (--heads)")
        return named.heads
    found = heads or next((size.heads for size in SIZES.values() if (size.width, size.depth) == (width, depth)), None)
    if not found:
        raise UserError(f"{path}: {depth} blocks of width {width} are no published size; give its --heads")
    return found


def _multiple(width: int, found: int, path: Path) -> int:
    """What the feed-forward width is rounded up to: the published 256 where that fits, or the width itself."""
    least = 8 * width // 3
    if found < least:
        raise UserError(f"{path}: {_FEEDFORWARD} has {found} rows, fewer than 2/3 of 4 * {width}")
    return MULTIPLE_OF if found == math.ceil(least / MULTIPLE_OF) * MULTIPLE_OF else found


def _told_grid(arguments: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    image_size, ratio = (_number(arguments, name, path) for name in ("image_size", "downsample_size"))
    if image_size is None or ratio is None:
        return None
    if ratio < 1 or image_size < ratio:
        raise UserError(f"{path}: its arguments tell images of {image_size} pixels at ratio {ratio}")
    return (int(image_size // ratio),) * 2


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    differing = differing_names(tensors, expected)
    if differing:
        raise UserError(f"{path}: no class-conditional LlamaGen; tensors: {differing}")
    for name, tensor in tensors.items():
        if tensor.dtype not in _EXACT:
            raise UserError(f"{path}: {name} is {_dtype(tensor)}; {', '.join(map(_name, _EXACT))} are read")
        if tensor.shape != expected[name].shape:
            raise UserError(f"{path}: {name} is {tuple(tensor.shape)} and must be {tuple(expected[name].shape)}")


def _dtype(tensor: Tensor) -> str:
    return _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
