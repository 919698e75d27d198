"""Which device and how many cores a process uses."""

import os

import torch


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
