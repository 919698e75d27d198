"""``fvq doctor``."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import fvq
from fvq.runtime.errors import UserError

_LITTLE_DISK = 5e9  # bytes
_COLOURS = {"ok": "green", "note": "yellow", "broken": "bold red"}


class Finding(NamedTuple):
    """What is said of one thing. ``note`` is for what can be done without."""

    state: Literal["ok", "note", "broken"]
    name: str
    detail: str


def examine() -> bool:
    """Print what is found, as it is found (importing torch takes seconds); True where nothing needed is broken."""
    console = Console(highlight=False, markup=False)
    broken = []
    for finding in _findings():
        if finding.state == "broken":
            broken.append(finding.name)
        if console.is_terminal:
            line = Table.grid(Column(width=8), Column(width=13), Column(overflow="fold"))
            line.add_row(Text(finding.state, _COLOURS[finding.state]), finding.name, finding.detail)
            console.print(line)
        else:
            print(f"{finding.state:8}{finding.name:13}{finding.detail}", flush=True)
    print(f"broken: {', '.join(broken)}" if broken else "nothing that is needed is broken")
    return not broken


def _findings() -> Iterator[Finding]:
    yield _python()
    yield _disk()
    yield from map(_program, ("git", "dvc", "snakemake"))
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("broken", "torch", " ".join(str(error).split()))
        return
    cuda = torch.version.cuda
    yield Finding("ok", "torch", f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'CPU build'}")
    yield _torchvision()
    yield _threads()
    yield from _gpus()
    yield from _weights()
    yield _parameters()


def _python() -> Finding:
    state: Literal["ok", "broken"] = "ok" if sys.version_info >= (3, 11) else "broken"
    return Finding(state, "python", f"{platform.python_version()}, {sys.executable}; fvq {fvq.__version__}")


def _torchvision() -> Finding:
    try:
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:  # the last where it was built for another torch
        return Finding("broken", "torchvision", f"does not fit this torch ({' '.join(str(error).split())})")
    return Finding("ok", "torchvision", torchvision.__version__)


def _threads() -> Finding:
    from fvq.runtime.devices import available_cores, use_cores

    wanted = os.environ.get("OMP_NUM_THREADS")
    source = f" (OMP_NUM_THREADS={wanted})" if wanted else ""
    return Finding("ok", "threads", f"{use_cores()} on {available_cores()} cores{source}")


def _gpus() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        reason = "nvidia-smi is there, but this torch cannot use CUDA" if shutil.which("nvidia-smi") else "none"
        yield Finding("note", "GPU", f"{reason}; everything runs on the CPU")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("ok" if free >= _LITTLE_DISK else "note", "free disk", f"{free / 1e9:.1f} GB in {Path.cwd()}")


def _program(name: str) -> Finding:
    # An environment that is used without being activated has its programs beside its Python.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=places)
    if found is None:
        how = "" if name == "git" else "; pip install 'fvq[pipeline]' brings it"
        return Finding("note", name, f"not found; only the pipeline needs it{how}")
    try:
        return Finding("ok", name, f"{version(name)}, {found}")
    except PackageNotFoundError:
        return Finding("ok", name, found)


def _weights() -> Iterator[Finding]:
    import torch

    from fvq.evaluate.pretrained import ALEXNET_FILE, INCEPTION_2015_FILE, VGG16_FILE, find_pretrained

    own = os.environ.get("FVQ_WEIGHTS")
    places = f"{own or 'the folder $FVQ_WEIGHTS'} or {Path(torch.hub.get_dir()) / 'checkpoints'}"
    for file, name, purpose in (
        (INCEPTION_2015_FILE, "Inception", "FID"),
        (VGG16_FILE, "VGG-16", "the perceptual loss"),
        (ALEXNET_FILE, "AlexNet", "LPIPS"),
    ):
        try:
            found = find_pretrained(file, None, name)
        except UserError as error:
            yield Finding("broken", name, str(error))
            continue
        missing = f"for {purpose}, put {file.name} ({file.size / 1e6:.0f} MB) into {places}"
        yield Finding("note", name, missing) if found is None else Finding("ok", name, str(found))


def _parameters() -> Finding:
    from fvq.config import load_parameters

    path = Path("params.yaml")
    if not path.exists():
        return Finding("note", path.name, "none in this folder; only the pipeline needs it")
    try:
        parameters = load_parameters(path)
    except (UserError, OSError) as error:
        return Finding("broken", path.name, str(error).removeprefix(f"{path}: "))
    return Finding("ok", path.name, f"study {parameters.study}: {len(parameters.rows)} tokenizers")
