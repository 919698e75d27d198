"""A decoding step beside what bounds it and beside the published loop."""

from cases import Case
from decoding_cases import decoding_cases
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture


@in_turns(decoding_cases)
def test_decoding(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    measure(benchmark, device, case, turn, rival)
