"""Training steps of quantizers beside the dense form and other libraries, whose gradients must be the same."""

import pytest
import torch
from cases import Case
from measuring import in_turns, measure
from pytest_benchmark.fixture import BenchmarkFixture
from step_cases import AS_RELEASED, DENSE, FVQ, RELEASED, VQ, Build, agree, entropy_term, step_cases
from torch.distributions import Categorical


@pytest.mark.parametrize("rivals", [VQ, FVQ | AS_RELEASED], ids=["vq", "fvq"])
def test_gradients(rivals: dict[str, Build]) -> None:
    """The quantizer's loss and gradients are bit by bit those of the dense form, and the others' to rounding."""
    results = {name: build(64, 1024, "cpu")() for name, build in rivals.items()}
    expected, dense = next(iter(results.values())), results[DENSE]
    assert expected.keys() == dense.keys() >= {"indices", "loss", "z", "codebook"}
    for name, value in dense.items():
        torch.testing.assert_close(expected[name], value, rtol=0, atol=0, msg=name)
    for result in results.values():
        agree(result, expected)
    if RELEASED in results:
        assert results[RELEASED].keys() == expected.keys()
        for name, value in results[RELEASED].items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_entropy_term() -> None:
    """What the released form adds at weight 0."""
    distances_nk = torch.rand(9, 40) / 10
    assigned = Categorical(logits=-distances_nk / 0.01)
    entropies = assigned.entropy().mean() - Categorical(probs=assigned.probs.mean(0)).entropy()
    torch.testing.assert_close(entropy_term(distances_nk), entropies, rtol=0, atol=1e-3)


@in_turns(step_cases)
def test_step(benchmark: BenchmarkFixture, device: str, case: Case, turn: int, rival: str) -> None:
    """One rival's turn."""
    measure(benchmark, device, case, turn, rival)
