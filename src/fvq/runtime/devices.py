"""Which device and how many cores a process uses, and whether the GPUs that it was given are there."""

import os
import platform
import warnings
from itertools import takewhile

import torch

from fvq.runtime.driver import VERSION_FILE, driver_cuda, driver_version, usable_device_files
from fvq.runtime.errors import UserError


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(most: int | None = None) -> int:
    """Let torch use the cores that ``OMP_NUM_THREADS`` names, at most those available and ``most``; their number.

    More threads than cores make processes wait for each other: two by two on two cores run up to fifty times slower.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    cores = max(1, min(int(wanted) if wanted.isdecimal() else available_cores(), available_cores()))
    cores = min(cores, most or cores)
    torch.set_num_threads(cores)
    return cores


def best_device() -> torch.device:
    """The GPU of this process (the first one, or under ``torchrun`` the one of its local number), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def visible_gpus() -> int:
    """How many GPUs torch can use; torch's own count includes those of a driver that is too old for it."""
    with warnings.catch_warnings(action="ignore"):  # what they say, gpu_shortage says
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def allocated_gpus() -> int | None:
    """GPUs of this node that Slurm gave to this process's job step (or batch script); None where it gave none.

    Where each task is bound to some of them, those of this task.
    """
    # Seen with Slurm 22.05: with tasks bound to GPUs, only SLURM_STEP_GPUS is of this task; a step that was started
    # without any has neither of the first two, and its batch script's SLURM_JOB_GPUS.
    step, count = os.environ.get("SLURM_STEP_GPUS"), os.environ.get("SLURM_GPUS_ON_NODE", "")
    if step:
        return len(step.split(","))
    if count.isdecimal():
        return int(count) or None
    batch = os.environ.get("SLURM_JOB_GPUS")
    return len(batch.split(",")) if batch and "SLURM_STEP_ID" not in os.environ else None


def check_gpus(wanted: int | None = None) -> None:
    """Refuse to start with fewer GPUs than ``wanted``, by default those that the scheduler gave to this process.

    Raises:
        UserError: torch sees fewer; with the cause, as far as it can be told.
    """
    count, verb = (allocated_gpus(), "allocated") if wanted is None else (wanted, "wanted")
    cause = gpu_shortage(count or 0)
    if cause is not None:
        node = os.environ.get("SLURMD_NODENAME") or platform.node()
        gpus = "1 GPU is" if count == 1 else f"{count} GPUs are"
        raise UserError(
            f"{gpus} {verb} on node {node} and torch sees {visible_gpus()}: {cause}; fvq doctor on that node tells more"
        )


def gpu_shortage(wanted: int) -> str | None:
    """Why torch sees fewer than ``wanted`` GPUs, as far as can be told; None where it sees as many."""
    seen = visible_gpus()
    if seen >= wanted:
        return None
    if seen == 0 and (misfit := torch_misfit()):
        return misfit
    if seen == 0 and torch.version.cuda:
        if driver_version() is None and driver_cuda() is None:
            return f"no driver: {VERSION_FILE} is missing"
        if driver_cuda() is None:
            return (
                f"the driver ({driver_version()}) is loaded, but its libcuda.so.1 cannot be "
                "(containers need --nv or --gpus all)"
            )
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        value = os.environ.get(name)
        if value is not None and len(_named_devices(value)) < wanted:
            return f"{name}={value}"
    if torch.version.cuda and (usable := usable_device_files()) < wanted:
        return f"{usable} of the files /dev/nvidia0, 1, ... can be opened"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "nothing tells why"


def torch_misfit() -> str | None:
    """What keeps this build of torch from using any NVIDIA GPU with this driver, if anything does."""
    built_for = torch.version.cuda
    if built_for is None:
        return None if torch.version.hip else f"torch {torch.__version__} is a CPU build"
    newest = driver_cuda()
    if newest is None or newest[0] >= int(built_for.split(".")[0]):  # minor versions are compatible, from CUDA 11 on
        return None
    version = driver_version()
    known = f"{version}, " if version else ""
    return f"the driver ({known}CUDA {newest[0]}.{newest[1]}) is older than CUDA {built_for}, which torch is built for"


def _named_devices(value: str) -> list[str]:
    """What CUDA makes of a list: it ends at the first entry that names no device."""
    return list(takewhile(lambda entry: entry.strip() not in ("", "-1", "NoDevFiles"), value.split(",")))
