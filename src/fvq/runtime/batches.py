"""Which samples a training step sees: a function of the step alone, so that a resumed run sees the same."""

from functools import lru_cache

import torch
from torch import Tensor

from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in ``count`` samples; UserError where there is none."""
    if batch_size > count:
        raise UserError(f"batch_size: {batch_size} samples are asked for at once, and there are {count}")
    return count // batch_size


def check_length(epochs: float | None, steps: int | None) -> None:
    """ValueError unless a training's length is given once."""
    if (epochs is None) == (steps is None):
        raise ValueError("one of epochs and steps must be a number and the other null")


def total_steps(epochs: float | None, steps: int | None, per_epoch: int) -> int:
    """The length of a training that is given either in epochs or in steps; at least one step."""
    try:
        check_length(epochs, steps)
    except ValueError as error:
        raise UserError(str(error)) from None
    return steps if steps is not None else max(1, round((epochs or 0) * per_epoch))


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices int64 (batch_size,) of a step (from 0); shuffled anew each epoch, the last incomplete batch dropped."""
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    return _permutation(count, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch order", epoch))
