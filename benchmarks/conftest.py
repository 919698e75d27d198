"""What the results say about the machine, and what no rival's time should include."""

import os
from typing import Any

import pytest
import torch
from cases import TINY

from fvq.quantize import build_quantizer
from fvq.quantize.shortlist import has_native_bfloat16


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add what the times depend on."""
    machine_info.update(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        processors=os.cpu_count(),
        native_bfloat16=has_native_bfloat16(torch.device("cpu")),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        tiny=TINY,
    )


@pytest.fixture(scope="session", autouse=True)
def first_step() -> None:
    """A process's first forward and backward pass imports parts of torch for a second."""
    z = torch.randn(1, 8, 2, 2, requires_grad=True)
    out = build_quantizer("vq", codebook_size=64, code_dim=8)(z)
    torch.autograd.backward((out.loss, out.quantized), (None, torch.ones_like(z)))
