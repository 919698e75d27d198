"""Token tables beside a file per image: what they take on disk, and how fast they are written and read."""

from cases import TINY, Case
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture
from token_cases import token_cases

from fvq.tokens import TableSize


@in_turns(token_cases)
def test_tokens(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    size = measure(benchmark, device, case, turn, rival)
    if isinstance(size, TableSize) and size.ratio:
        assert size.ratio < 1.05 or TINY
        benchmark.extra_info["rival"] += (
            f": {size.bits_per_token:.2f} bits per token, {size.ratio:.3f} times the entropy; measuring it included"
        )
