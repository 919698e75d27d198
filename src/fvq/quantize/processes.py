"""The same result on several processes as on one with the joined batch. Without torch.distributed these do nothing."""

from typing import Any

import torch.distributed
from torch import Tensor


def number_of_processes() -> int:
    """Processes of the default group; 1 where there is none."""
    return torch.distributed.get_world_size() if _grouped() else 1


def process_number() -> int:
    """This process's place in the default group, from 0."""
    return torch.distributed.get_rank() if _grouped() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's values, without gradient."""
    values = values.detach()
    if number_of_processes() > 1:
        values = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of every process's values, with gradient: each process's share flows back to it."""
    count = number_of_processes()
    if count == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total / count


def gather_over_processes(values: Tensor) -> Tensor:
    """Every process's rows (n, …), in the order of the processes and without gradient; n is the same on all."""
    count = number_of_processes()
    if count == 1:
        return values.detach()
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(count)]
    torch.distributed.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return sum_over_processes(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
