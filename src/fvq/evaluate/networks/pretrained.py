"""Published weights as local files: where they lie, whether they are the right ones, and how they are fetched.

Nothing is downloaded but by ``fetch``, which ``fvq doctor --fetch`` calls.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file, write_atomically
from fvq.runtime.progress import track

_BLOCK = 1 << 20  # bytes
_PATIENCE = 30.0  # seconds without a byte


@dataclass(frozen=True)
class PretrainedFile:
    """A published file of weights."""

    name: str
    sha256: str
    """of the bytes, or its beginning where only that is published"""
    size: int | None
    """in bytes; None where it is not published"""
    address: str | None = None
    """its publisher's; None where there is none"""


INCEPTION_2015_FILE = PretrainedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
VGG16_FILE = PretrainedFile(
    "vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    553_433_881,
    "https://download.pytorch.org/models/vgg16-397923af.pth",
)
ALEXNET_FILE = PretrainedFile(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
# Of this one torchvision tells the first digits of the hash, and the size only roughly (4.778 MiB).
SQUEEZENET1_0_FILE = PretrainedFile(
    "squeezenet1_0-b66bff10.pth",
    "b66bff10",
    None,
    "https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth",
)
# The same network with the weights of the paper's authors (songhan/SqueezeNet-Deep-Compression), decoded.
SQUEEZENET1_0_CAFFE_FILE = PretrainedFile(
    "squeezenet1_0-imagenet.safetensors",
    "608ed840bb5611a9945cfff33d2d2f520a4be5aadf3e2524985c5fa9da41e8eb",
    4_998_856,
)
DINOV2_VIT_L14_FILE = PretrainedFile(
    "dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    1_217_586_395,
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)

PUBLISHED = {
    "inception-2015": (INCEPTION_2015_FILE,),
    "alexnet": (ALEXNET_FILE,),
    "vgg16": (VGG16_FILE,),
    "squeezenet1_0": (SQUEEZENET1_0_FILE, SQUEEZENET1_0_CAFFE_FILE),
    "dinov2-vit-l14": (DINOV2_VIT_L14_FILE,),
}
"""What ``fvq doctor`` looks for, by the networks' names. Any of a network's files will do; the first is fetched."""


def find_pretrained(
    file: PretrainedFile | Sequence[PretrainedFile], path: Path | str | None, parameter: str
) -> Path | None:
    """Where ``file`` lies: at ``path`` (the file or its folder), else in ``$FVQ_WEIGHTS``, else in torch hub's folder.

    Of several files any one will do; the earlier is looked for first. None where none is in either folder.

    Raises:
        UserError: ``path`` is given (as ``parameter``) and nothing is there, or the file found has another hash.
    """
    files = [file] if isinstance(file, PretrainedFile) else list(file)
    if path is not None and not Path(path).is_dir():
        candidates = [Path(path)]
    else:
        folders = _folders() if path is None else [Path(path)]
        candidates = [folder / one.name for one in files for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            _check_hash(candidate, files)
            return candidate
    if path is not None:
        raise UserError(f"{parameter}: {candidates[0]}: no such file")
    return None


def require_pretrained(files: Sequence[PretrainedFile], path: Path | str | None, parameter: str) -> Path:
    """As ``find_pretrained``, but where none is there UserError says what to put where."""
    found = find_pretrained(files, path, parameter)
    if found is None:
        raise UserError(where_to_put(files[0], parameter))
    return found


def in_folder(path: Path | str | None, files: Sequence[PretrainedFile]) -> Path | None:
    """The first of ``files`` that lies in the folder ``path``; None where none does, or ``path`` is no folder."""
    if path is None:
        return None
    return next((found for file in files if (found := Path(path) / file.name).is_file()), None)


def where_to_put(file: PretrainedFile, parameter: str) -> str:
    """One line for a person who lacks ``file``: as ``missing_file``, and that ``parameter`` can name its path."""
    return f"{parameter}: {missing_file(file)}, or set {parameter} to its path"


def missing_file(file: PretrainedFile) -> str:
    """For a person who lacks ``file``: its name, size and hash, and the places that are looked at."""
    names = [name for name, files in PUBLISHED.items() if file == files[0]]
    fetch_it = f" (fvq doctor --fetch {names[0]} does that)" if names else ""
    return (
        f"{file.name} ({describe(file)}) is missing; put it into $TORCH_HOME/hub/checkpoints ({_hub_folder()}) or into "
        f"the folder $FVQ_WEIGHTS{fetch_it}"
    )


def describe(file: PretrainedFile) -> str:
    """Size and hash in words."""
    size = "" if file.size is None else f"{file.size:,} bytes, "
    return f"{size}SHA-256 {file.sha256}{'…' if len(file.sha256) < 64 else ''}"


def fetch(file: PretrainedFile) -> Path:
    """Download ``file`` from its publisher into ``$FVQ_WEIGHTS``, or where that is not set into torch hub's folder.

    It appears under its name when it is there whole and has its size and hash.

    Raises:
        UserError: it has no address, the address does not answer, or what comes is something else.
        OSError: the folder cannot be written, or the disk is full.
    """
    if file.address is None:
        raise UserError(f"{file.name}: nobody publishes it at an address")
    target = _folders()[0] / file.name
    digest, size = hashlib.sha256(), 0
    with (
        write_atomically(target) as temporary,
        temporary.open("wb") as out,
        track(file.name, round((file.size or 0) / 1e6), unit="MB") as advance,
    ):
        for block in _blocks(file.address):
            out.write(block)
            digest.update(block)
            size += len(block)
            advance(len(block) / 1e6)
        if file.size not in (None, size):
            raise UserError(f"{file.address}: {size:,} bytes came, and {file.name} has {file.size:,}")
        if not digest.hexdigest().startswith(file.sha256):
            raise UserError(
                f"{file.address}: SHA-256 is {digest.hexdigest()}, and that of {file.name} {_of_hash(file)}"
            )
    return target


def load_published(network: nn.Module, path: Path) -> None:
    """Give ``network`` the float32 tensors of a state dict at ``path``, all of them and no other; it is then frozen.

    The file is a safetensors one by its suffix, or else torch's; nothing that it contains is executed.

    Raises:
        UserError: the file holds no weights of this network.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(tensors, assign=True)
    except (RuntimeError, UnpicklingError, SafetensorError, LookupError, AttributeError, EOFError, TypeError) as error:
        raise UserError(f"{path}: holds no weights of this network ({type(error).__name__})") from None
    network.eval().requires_grad_(False)


def _folders() -> list[Path]:
    own = os.environ.get("FVQ_WEIGHTS")
    return [*([Path(own)] if own else []), _hub_folder()]


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _check_hash(path: Path, files: list[PretrainedFile]) -> None:
    found = sha256_file(path)
    if not any(found.startswith(file.sha256) for file in files):
        wanted = " or ".join(map(_of_hash, files))
        raise UserError(f"{path}: SHA-256 is {found}, and that of the weights {wanted}")


def _of_hash(file: PretrainedFile) -> str:
    return f"{'is' if len(file.sha256) == 64 else 'begins with'} {file.sha256}"


def _blocks(address: str) -> Iterator[bytes]:
    try:
        with urlopen(Request(address, headers={"User-Agent": "fvq"}), timeout=_PATIENCE) as response:
            while block := response.read(_BLOCK):
                yield block
    except (OSError, HTTPException) as error:
        reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
        raise UserError(f"{address}: cannot be fetched ({' '.join(reason.split())})") from None
