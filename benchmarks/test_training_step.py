"""Training steps of quantizers beside the dense form and other libraries, whose gradients must be the same."""

import pytest
import torch
from cases import Case
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture
from step_cases import DENSE, FVQ, VQ, Build, agree, step_cases


@pytest.mark.parametrize("rivals", [VQ, FVQ], ids=["vq", "fvq"])
def test_gradients(rivals: dict[str, Build]) -> None:
    """The quantizer's loss and gradients are bit by bit those of the dense form, and the libraries' to rounding."""
    results = {name: build(64, 1024, "cpu")() for name, build in rivals.items()}
    expected, dense = next(iter(results.values())), results[DENSE]
    assert expected.keys() == dense.keys() >= {"indices", "loss", "z", "codebook"}
    for name, value in dense.items():
        torch.testing.assert_close(expected[name], value, rtol=0, atol=0, msg=name)
    for result in results.values():
        agree(result, expected)


@in_turns(step_cases)
def test_step(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    measure(benchmark, device, case, turn, rival)
