"""Peak memory of a rival, in a process of its own."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import Case, Work
from decoding_cases import decoding_cases
from evaluation_cases import evaluation_cases
from search_cases import search_cases
from step_cases import step_cases
from token_cases import token_cases

# Its processes have imported what takes long and used nothing of it.
_fresh = multiprocessing.get_context("forkserver")
_fresh.set_forkserver_preload(
    ["torch", "fvq.config", "fvq.evaluate.networks.inception", "fvq.generate", "fvq.quantize", "fvq.tokenizer"]
)


def peak_bytes(device: str, case: Case, rival: str) -> int | None:
    """What the rival's first call adds at its peak: on CUDA to the device, else to the process. None off Linux."""
    if not _can_measure(device):
        return None
    with ProcessPoolExecutor(1, mp_context=_fresh) as process:
        return process.submit(_measure, device, case.title, rival).result()


@contextmanager
def prepared_elsewhere(device: str, case: Case, rival: str) -> Iterator[Callable[[], tuple[Any, int | None]]]:
    """The rival's work, prepared in a process of its own: a call gives its result and what ``peak_bytes`` gives."""
    with ProcessPoolExecutor(1, mp_context=_fresh) as process:
        process.submit(_prepare, device, case.title, rival).result()
        yield lambda: process.submit(_call, device).result()


def _can_measure(device: str) -> bool:
    return device != "cpu" or Path("/proc/self/clear_refs").exists()


def _measure(device: str, title: str, rival: str) -> int | None:
    _prepare(device, title, rival)
    return _call(device)[1]


# What the process was started for.
_prepared: list[Work] = []


def _prepare(device: str, title: str, rival: str) -> None:
    everything = (search_cases, step_cases, token_cases, decoding_cases, evaluation_cases)
    case = next(case for cases in everything for case in cases(device) if case.title == title)
    _prepared.append(case.rivals[rival]())
    # A process's first backward pass from a given gradient imports sympy, whoever asks for it.
    torch.ones(1, requires_grad=True).backward(torch.ones(1))


def _call(device: str) -> tuple[Any, int | None]:
    results: list[Any] = []

    def work() -> None:
        results.append(_prepared[-1]())

    added = None
    if not _can_measure(device):
        work()
    else:
        added = _added_to_process(work) if device == "cpu" else _added_to_device(work)
    return results[0], added


def _added_to_process(work: Work) -> int:
    # Sets the peak (VmHWM) back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak()
    work()
    return _resident_peak() - before


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _added_to_device(work: Work) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
