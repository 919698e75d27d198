"""What made an artifact: commit, parameters, inputs, seed, versions, hardware, wall time."""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fvq
from fvq.runtime.devices import available_cores
from fvq.runtime.files import sha256_file, write_json

_LIBRARIES = (
    "fvq",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "scikit-image",
    "scikit-learn",
)


class Stopwatch:
    """Wall time since it was made, in seconds, and the moment itself (UTC)."""

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the start, to the millisecond."""
        return round(time.monotonic() - self._start, 3)


def write_provenance(
    path: Path | str,
    *,
    stage: str,
    row: str | None,
    parameters: Mapping[str, Any],
    inputs: Iterable[Path | str],
    outputs: Iterable[Path | str],
    seed: int,
    stopwatch: Stopwatch,
    generated: Iterable[str] = (),
) -> None:
    """Write the record of a finished stage beside its outputs.

    ``generated`` names tracked files and folders that runs themselves rewrite: they do not make the tree dirty.
    """
    commit, dirty = git_state(generated)
    write_json(
        path,
        {
            "stage": stage,
            "row": row,
            "git_commit": commit,
            "git_dirty": dirty,
            "parameters": dict(parameters),
            "inputs": {str(name): sha256_file(name) for name in inputs},
            "outputs": {str(name): sha256_file(name) for name in outputs},
            "seed": seed,
            "versions": library_versions(),
            "hardware": hardware(),
            "started_at": stopwatch.started_at,
            "wall_seconds": stopwatch.seconds(),
            "peak_memory_mb": peak_memory_mb(),
        },
    )


def git_state(generated: Iterable[str] = ()) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files but ``generated`` differ from it) of the working folder.

    (None, None) outside a repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        others = [f":(exclude){path}" for path in generated]
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", *others))
    except (OSError, subprocess.SubprocessError):
        return None, None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape results."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def code_digest(part: str = "") -> str:
    """SHA-256 of the library's source, or of one subpackage's: what was half computed by one version stays with it."""
    root = Path(fvq.__file__).parent / part
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GB, and GPUs by name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(memory, 1) if memory else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float | None:
    """The most memory this process has held at once, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if platform.system() == "Darwin" else 1e3), 1)
