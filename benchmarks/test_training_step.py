"""A training step of the default study's tokenizers, row by row: what the projectors cost."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional as F

from fvq.config import load_parameters
from fvq.tokenizer import Tokenizer


@pytest.mark.parametrize("row", ["vq", "linear", "mlp5", "fvq"])
def test_training_step(benchmark: BenchmarkFixture, row: str) -> None:
    """Forward, backward and Adam on a batch of 32 images; plain VQ is the rival."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(load_parameters().tokenizer_config(row)).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-3, fused=True)
    size = tokenizer.config.image_size
    images = torch.rand(32, 3, size, size) * 2 - 1

    def step() -> None:
        reconstruction, quantized = tokenizer(images)
        optimizer.zero_grad()
        torch.autograd.backward(F.mse_loss(reconstruction, images) + quantized.loss)
        optimizer.step()

    benchmark.group = "training step of the default study"
    benchmark.pedantic(step, rounds=30, warmup_rounds=3)
