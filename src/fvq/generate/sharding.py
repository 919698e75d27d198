"""Weights, gradients and optimiser divided among the processes (FSDP), and their states, which are whole."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from fvq.quantize.processes import number_of_processes
from fvq.runtime.processes import is_first


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Divide the parameters among the processes; each block's are whole while it computes, the rest for all the time.

    They are whole in ``dtype``; gradients are averaged over the processes in float32. What computes with parameters
    must be the forward of ``module`` or of a block.
    """
    mesh = init_device_mesh(device.type, (number_of_processes(),))
    # Inputs stay as they are: rotary angles would lose their precision.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)


class WholeWeights:
    """A divided module's state as it is without division: the state goes on with any number of processes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        """On the CPU of the first process; elsewhere None for each tensor."""
        return {name: _gather(value) for name, value in self._module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Take this process's part of each tensor."""
        own = self._module.state_dict()
        self._module.load_state_dict({name: _divide(value, own[name]) for name, value in state.items()})


class WholeOptimizer:
    """The same of the optimiser of such a module."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """On the CPU of the first process; elsewhere None for each divided tensor."""
        state = self._optimizer.state_dict()
        moments = {
            number: {name: _gather(value) for name, value in of_one.items()}
            for number, of_one in state["state"].items()
        }
        return {**state, "state": moments}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take this process's part of each tensor that has its parameter's shape."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                name: _divide(value, parameters[number]) if value.shape == parameters[number].shape else value
                for name, value in of_one.items()
            }
            for number, of_one in state["state"].items()
        }
        self._optimizer.load_state_dict({**state, "state": moments})


def _gather(value: Tensor) -> Tensor | None:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu() if is_first() else None


def _divide(whole: Tensor, like: Tensor) -> Tensor:
    assert isinstance(like, DTensor)
    # Every process has read the whole: none need be sent.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
