"""Rivals in turns: how a case becomes benchmarks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import Case
from memory import peak_bytes, prepared_elsewhere
from pytest_benchmark.fixture import BenchmarkFixture

# The first rival's result of the case that is running.
_expected: dict[tuple[str, str], Any] = {}


def in_turns(cases: Callable[[str], list[Case]]) -> pytest.MarkDecorator:
    """Parametrize a test by ``device``, ``case``, ``turn`` and ``rival``: every rival once, then every rival again."""
    return pytest.mark.parametrize(("device", "case", "turn", "rival"), list(_parameters(cases)))


def _parameters(cases: Callable[[str], list[Case]]) -> Iterator[Any]:
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            yield pytest.param(device, None, 0, "", marks=pytest.mark.skip(reason="no CUDA device"), id=device)
            continue
        for case in cases(device):
            for turn in range(case.turns):
                for rival in case.rivals:
                    # Without the commas, which -k does not take.
                    name = f"{device}-{case.title}-turn {turn}-{rival}".replace(",", "")
                    yield pytest.param(device, case, turn, rival, id=name)


def measure(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> Any:
    """Time a rival, hold its result against the first one's and, in the first turn, measure its memory.

    Returns the result.
    """
    key = (device, case.title)
    benchmark.extra_info.update(device=device, case=case.title, base=case.base, rival=rival, turn=turn, rate=case.rate)
    if case.in_own_process:
        with prepared_elsewhere(device, case, rival) as call:
            result, benchmark.extra_info["peak_bytes"] = benchmark.pedantic(call)
        return result
    try:
        work = case.rivals[rival]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    if turn == 0 and benchmark.enabled:
        benchmark.extra_info["peak_bytes"] = peak_bytes(device, case, rival)
    result = benchmark.pedantic(work, rounds=case.rounds, warmup_rounds=int(case.rounds > 1))
    if key not in _expected:
        _expected.clear()
        _expected[key] = result
    case.agree(result, _expected[key])
    return result
