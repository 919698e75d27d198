"""The evaluator beside the libraries whose figures it gives, and how far a distance is from the exact one."""

import pytest
from cases import Case
from evaluation_cases import evaluation_cases
from feature_cases import Distance
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@in_turns(evaluation_cases)
def test_evaluation(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    result = measure(benchmark, device, case, turn, rival)
    if isinstance(result, Distance) and result.exact is not None:
        benchmark.extra_info["note"] = f"off by {abs(result.value / result.exact - 1):.0e}"
