"""``fvq doctor``."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import fvq
from fvq.runtime.errors import UserError

if TYPE_CHECKING:
    from fvq.evaluate.networks.pretrained import PretrainedFile

_LITTLE_DISK = 5e9  # bytes
# By the names of fvq.evaluate.networks.pretrained, whose import takes seconds.
_DEFAULT_WEIGHTS = ("inception-2015", "alexnet", "vgg16")
_PURPOSES = {
    "inception-2015": "FID, sFID, Inception Score",
    "alexnet": "lpips_alex",
    "vgg16": "the perceptual loss, lpips_vgg, torch-fidelity's precision and recall",
    "squeezenet1_0": "fd_squeezenet1_0",
    "dinov2-vit-l14": "FD-DINOv2",
}
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
            line = Table.grid(Column(width=8), Column(width=16), Column(overflow="fold"))
            line.add_row(Text(finding.state, _COLOURS[finding.state]), finding.name, finding.detail)
            console.print(line)
        else:
            print(f"{finding.state:8}{finding.name:16}{finding.detail}", flush=True)
    print(f"broken: {', '.join(broken)}" if broken else "nothing that is needed is broken")
    return not broken


def fetch_weights(names: Sequence[str]) -> None:
    """Download what is missing of the named networks' weights, or else of the default protocols'; print where each is.

    Raises:
        UserError: a name is unknown, a file is there already and is another, or it cannot be fetched.
        OSError: it cannot be written.
    """
    try:
        from fvq.evaluate.networks.extractors import find_extractor, plug_in_names
        from fvq.evaluate.networks.pretrained import PUBLISHED, fetch, find_pretrained
    except (ImportError, OSError) as error:
        raise UserError(f"torch: cannot be imported ({error})") from None
    wanted = {}
    for name in names or _DEFAULT_WEIGHTS:  # all of them first: nothing is fetched where one is misspelt
        spec = None if name in PUBLISHED else find_extractor(name)
        if name not in PUBLISHED and spec is None:
            raise UserError(f"--fetch: {name}: no such weights (known: {', '.join([*PUBLISHED, *plug_in_names()])})")
        wanted[name] = spec.files if spec else PUBLISHED[name]
    for name, files in wanted.items():
        found = find_pretrained(files, None, name)
        print(f"{name}: {found} is there already" if found else f"{name}: fetched {fetch(files[0])}", flush=True)


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
    from fvq.evaluate.networks.extractors import EXTRACTORS, find_extractor, plug_in_names
    from fvq.evaluate.networks.pretrained import PUBLISHED

    for name, files in PUBLISHED.items():
        yield _weights_file(name, files, _PURPOSES[name])
    for name in plug_in_names():
        if name in EXTRACTORS:
            yield Finding("broken", name, "a plug-in has the name of an extractor of fvq, and is not used")
            continue
        try:
            spec = find_extractor(name)
        except UserError as error:
            yield Finding("broken", name, str(error))
            continue
        if spec is not None:
            yield _weights_file(name, spec.files, f"fd_{name}, of a plug-in")


def _weights_file(name: str, files: "tuple[PretrainedFile, ...]", purpose: str) -> Finding:
    import torch

    from fvq.evaluate.networks.pretrained import describe, find_pretrained

    try:
        found = find_pretrained(files, None, name)
    except UserError as error:
        return Finding("broken", name, str(error))
    if found is not None:
        return Finding("ok", name, f"{found}, for {purpose}")
    own = os.environ.get("FVQ_WEIGHTS")
    places = f"{own or 'the folder $FVQ_WEIGHTS'} or {Path(torch.hub.get_dir()) / 'checkpoints'}"
    how = f"; fvq doctor --fetch {name} does that" if files[0].address else ""
    return Finding("note", name, f"for {purpose}, put {files[0].name} ({describe(files[0])}) into {places}{how}")


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
