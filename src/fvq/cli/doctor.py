"""``fvq doctor``."""

import os
import platform
import shutil
import sys
import tempfile
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
_LITTLE_SHARED_MEMORY = 1e9
_SHARED_MEMORY = Path("/dev/shm")
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


def examine(gpus: int | None = None) -> bool:
    """Print what is found, as it is found (importing torch takes seconds); True where nothing needed is broken.

    ``gpus`` are needed, by default those that the scheduler gave to this process.
    """
    console = Console(highlight=False, markup=False)
    broken = []
    for finding in _findings(gpus):
        if finding.state == "broken":
            broken.append(finding.name)
        if console.is_terminal:
            line = Table.grid(Column(width=8), Column(width=16), Column(overflow="fold"))
            line.add_row(Text(finding.state, _COLOURS[finding.state]), finding.name, finding.detail)
            console.print(line)
        else:
            print(f"{finding.state:8}{finding.name:16}{finding.detail}", flush=True)
    print(f"broken: {', '.join(dict.fromkeys(broken))}" if broken else "nothing that is needed is broken")
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


def _findings(gpus: int | None) -> Iterator[Finding]:
    yield _python()
    yield from _disk()
    yield from _shared_memory()
    yield from map(_program, ("git", "dvc", "snakemake"))
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("broken", "torch", " ".join(str(error).split()))
        return
    platforms = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built_for = [f"built for {name} {number}" for name, number in platforms.items() if number]
    yield Finding("ok", "torch", f"{torch.__version__}, {(built_for or ['CPU build'])[0]}")
    yield _torchvision()
    yield _threads()
    yield _driver()
    yield from _gpus(gpus)
    yield _nccl()
    yield from _weights()
    yield from _parameters()


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


def _driver() -> Finding:
    from fvq.runtime.devices import gpu_shortage, torch_misfit
    from fvq.runtime.driver import driver_cuda, driver_version, usable_device_files

    version, cuda = driver_version(), driver_cuda()
    if version is None and cuda is None:
        files = usable_device_files()
        return Finding("note", "driver", f"no NVIDIA driver{f', though {files} of its device files' if files else ''}")
    serves = f"for CUDA up to {cuda[0]}.{cuda[1]}" if cuda else "without its libcuda.so.1"
    detail = f"{version or 'of unknown version'}, {serves}"
    cause = gpu_shortage(1)
    if cause is None:
        return Finding("ok", "driver", detail)
    how = "; make setup TORCH_BACKEND=auto, on this node, installs one that fits" if torch_misfit() else ""
    return Finding("note", "driver", f"{detail}; torch cannot use it: {cause}{how}")


def _gpus(wanted: int | None) -> Iterator[Finding]:
    import torch

    from fvq.runtime.devices import allocated_gpus, gpu_shortage, visible_gpus

    seen = visible_gpus()
    for index in range(seen):
        properties = torch.cuda.get_device_properties(index)
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        try:
            torch.ones(1, device=torch.device("cuda", index)).sum().item()
        except RuntimeError as error:  # a GPU in use by another alone, or too old for this build
            yield Finding("broken", f"GPU {index}", f"{detail}; cannot compute ({str(error).partition(chr(10))[0]})")
        else:
            yield Finding("ok", f"GPU {index}", detail)
    source = "allocated" if wanted is None else "asked for"
    wanted = allocated_gpus() if wanted is None else wanted
    if wanted:
        cause = gpu_shortage(wanted)
        detail = f"{seen} of {wanted} {source}"
        yield Finding("broken", "GPUs", f"{detail}: {cause}") if cause else Finding("ok", "GPUs", detail)
    elif seen == 0:
        yield Finding("note", "GPUs", "none; everything runs on the CPU")


def _nccl() -> Finding:
    import torch
    from torch import distributed

    from fvq.runtime.devices import visible_gpus

    seen = visible_gpus()
    if not (distributed.is_available() and distributed.is_nccl_available()):
        return Finding("broken" if seen > 1 else "note", "NCCL", "not in this torch; several GPUs need it")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("ok", "NCCL", version) if seen else Finding("note", "NCCL", f"{version}; only GPUs use it")


def _disk() -> Iterator[Finding]:
    try:
        here = Path.cwd()
    except FileNotFoundError:
        yield Finding("broken", "free disk", "this folder has been removed")
        return
    own = os.environ.get("TMPDIR")
    yield _folder("free disk", here)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # it has tried to write to each
        yield Finding("broken", "temporary files", str(error.strerror))
        return
    if own and not (Path(own).is_dir() and temporary.samefile(own)):
        yield Finding("note", "temporary files", f"nothing can be written to TMPDIR={own}; {temporary} is used")
    if temporary.stat().st_dev != here.stat().st_dev:
        yield _folder("temporary files", temporary)


def _folder(name: str, folder: Path) -> Finding:
    """Its free space, and whether a file can be written there."""
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB in {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # an empty file fits on a full disk, too
    except OSError as error:
        return Finding("broken", name, f"{detail}, where nothing can be written ({error.strerror})")
    return Finding("ok" if free >= _LITTLE_DISK else "note", name, detail)


def _shared_memory() -> Iterator[Finding]:
    """Where Linux keeps it as files: what a training's loading processes hand over goes through it."""
    if not _SHARED_MEMORY.is_dir():
        return
    total, _, free = shutil.disk_usage(_SHARED_MEMORY)
    detail = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free in {_SHARED_MEMORY}"
    if free >= _LITTLE_SHARED_MEMORY:
        yield Finding("ok", "shared memory", detail)
    else:
        yield Finding("note", "shared memory", f"{detail}; little for decoding processes (containers: --shm-size)")


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


def _parameters() -> Iterator[Finding]:
    from fvq.cli.study_inputs import missing_inputs
    from fvq.config import load_parameters

    path = Path("params.yaml")
    if not path.exists():
        yield Finding("note", path.name, "none in this folder; only the pipeline needs it")
        return
    try:
        parameters = load_parameters(path)
    except (UserError, OSError) as error:
        yield Finding("broken", path.name, str(error).removeprefix(f"{path}: "))
        return
    yield Finding("ok", path.name, f"study {parameters.study}: {len(parameters.rows)} tokenizers")
    for missing in missing_inputs(parameters):
        yield Finding("broken" if missing.stops else "note", missing.kind, missing.reason)
