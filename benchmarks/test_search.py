"""Nearest-code search beside the matrix product that it cannot do without, and beside other libraries."""

from cases import Case
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture
from search_cases import search_cases


@in_turns(search_cases)
def test_search(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    measure(benchmark, device, case, turn, rival)
