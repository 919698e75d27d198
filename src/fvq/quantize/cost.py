"""What a projector costs: multiply-adds of a pass over the codebook, and parameters."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fvq.quantize.bridge import VQBridge
from fvq.quantize.checks import check_positive
from fvq.quantize.codebook import mlp


def multiply_adds(projector: nn.Module, codebook_size: int, code_dim: int) -> int:
    """Multiply-adds of ``projector(codebook)`` for a codebook (K, d), without computing or allocating it.

    Counts the matrix products of the forward pass, those of attention included, and no element-wise work. The paper's
    Table 10 gives these as FLOPs; its counter (fvcore) adds 4 for each normalised element and 1/2 for each element that
    is put back into place, which makes 55.89 G of 55.83 G.

    Args:
        projector: on any device.
        codebook_size: number of codes K.
        code_dim: dimension d of the codes that the projector takes.

    Raises:
        ValueError: a size is below 1.
    """
    check_positive(codebook_size=codebook_size, code_dim=code_dim)
    tensors = {**dict(projector.named_parameters()), **dict(projector.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    codebook_kd = torch.empty(codebook_size, code_dim, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(projector, shapes, (codebook_kd,))
    return counter.get_total_flops() // 2


def projector_costs(sizes: Iterable[int], code_dim: int) -> dict[tuple[str, int], int]:
    """``multiply_adds`` of the paper's projectors by name and codebook size: ``linear``, ``mlp5`` and ``vqbridge``."""
    with torch.device("meta"):
        return {
            (name, size): multiply_adds(projector, size, code_dim)
            for size in sizes
            for name, projector in (
                ("linear", nn.Linear(code_dim, code_dim)),
                ("mlp5", mlp(code_dim)),
                ("vqbridge", VQBridge(size, code_dim)),
            )
        }


def parameter_count(module: nn.Module) -> int:
    """Number of trained and untrained parameters; buffers such as fixed positions are none."""
    return sum(parameter.numel() for parameter in module.parameters())
