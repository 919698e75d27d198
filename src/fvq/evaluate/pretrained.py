"""Published weights as local files: where they lie, and whether they are the right ones. Nothing is downloaded."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file


@dataclass(frozen=True)
class PretrainedFile:
    """A published file of weights."""

    name: str
    sha256: str
    """of the bytes, or its beginning where only that is published"""
    size: int
    """in bytes"""


INCEPTION_2015_FILE = PretrainedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
# The trunks of LPIPS; torchvision publishes the first eight digits of the hash in the name.
VGG16_FILE = PretrainedFile(
    "vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 553_433_881
)
ALEXNET_FILE = PretrainedFile("alexnet-owt-7be5be79.pth", "7be5be79", 244_408_911)


def find_pretrained(file: PretrainedFile, path: Path | str | None, parameter: str) -> Path | None:
    """Where ``file`` lies: at ``path`` (the file or its folder), else in ``$FVQ_WEIGHTS``, else in torch hub's folder.

    None where it is in neither folder.

    Raises:
        UserError: ``path`` is given (as ``parameter``) and nothing is there, or the file found has another hash.
    """
    if path is not None:
        candidate = Path(path) / file.name if Path(path).is_dir() else Path(path)
        if not candidate.is_file():
            raise UserError(f"{parameter}: {candidate}: no such file")
        candidates = [candidate]
    else:
        candidates = [folder / file.name for folder in _folders()]
    for candidate in candidates:
        if candidate.is_file():
            _check_hash(candidate, file)
            return candidate
    return None


def where_to_put(file: PretrainedFile, parameter: str) -> str:
    """One line for a person who lacks ``file``: its name, size and hash, and the places that are looked at."""
    return (
        f"{parameter}: {file.name} ({file.size:,} bytes, SHA-256 {file.sha256}) is missing; put it into "
        f"$TORCH_HOME/hub/checkpoints ({_hub_folder()}) or into the folder $FVQ_WEIGHTS, or set {parameter} to its path"
    )


def _folders() -> list[Path]:
    own = os.environ.get("FVQ_WEIGHTS")
    return [*([Path(own)] if own else []), _hub_folder()]


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _check_hash(path: Path, file: PretrainedFile) -> None:
    found = sha256_file(path)
    if not found.startswith(file.sha256):
        raise UserError(f"{path}: SHA-256 is {found}, and that of {file.name} begins with {file.sha256}")
