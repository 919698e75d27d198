"""Checkpoint files as plain data: nothing that a file contains is executed."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fvq.runtime.errors import UserError


class _NameOnly:
    """Stands in for a class that a checkpoint mentions by name; no code of that class runs."""


# Training scripts store their arguments, Lightning keys the states of its callbacks by their class.
_ALLOWED: list[Any] = [argparse.Namespace, (_NameOnly, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    weights: dict[str, Tensor]
    others: tuple[str, ...]
    """names of what the file holds beside the weights"""
    arguments: Mapping[str, Any]
    """those of the training script (``args``), empty where the file has none"""


def read_checkpoint(path: Path | str, *, ema: bool = False) -> Checkpoint:
    """A ``.pt``, ``.pth``, ``.ckpt`` or ``.safetensors`` file.

    Its weights are ``model``, ``module`` (DeepSpeed), ``state_dict`` (Lightning) or, where ``ema`` says so, ``ema``; or
    the file is a state dict.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, wants more than plain data, or lacks these weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content = _load(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no checkpoint but a {type(content).__name__}")
    if not ema and _is_state_dict(content):
        return Checkpoint(path, _with_values(content, path), (), {})
    others = list(map(str, content))
    wanted = ["ema"] if ema else ["model", "module", "state_dict"]
    found = next((name for name in wanted if name in content), None)
    if found is None:
        raise UserError(f"{path}: holds no {' or '.join(wanted)}, but {shortened(others)}")
    weights = content[found]
    if not _is_state_dict(weights):
        raise UserError(f"{path}: {found} is not a state dict (names and tensors)")
    others.remove(found)
    arguments = content.get("args")
    known = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return Checkpoint(path, _with_values(weights, path), tuple(others), known if isinstance(known, dict) else {})


def shortened(names: list[str]) -> str:
    """The first three names, and how many there are more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def differing_names(found: Collection[str], expected: Collection[str]) -> str:
    """The unexpected and the missing ones, shortened; empty where there are none."""
    there, known = set(found), set(expected)
    parts = {
        "unexpected": [name for name in found if name not in known],
        "missing": [name for name in expected if name not in there],
    }
    return "; ".join(f"{len(names)} {what} ({shortened(names)})" for what, names in parts.items() if names)


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_ALLOWED):
            # Mapped, an optimiser's state is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make torch's readers fail in any way
        if isinstance(error, OSError) and error.filename:  # the file itself could not be opened
            raise
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise UserError(f"{path}: refused: it asks for {asked[1]}, and only plain data is read") from None
        raise UserError(f"{path}: damaged, or not a checkpoint of torch") from None


def _with_values(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(f"{path}: {name} is no dense tensor with values")
    return weights


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
