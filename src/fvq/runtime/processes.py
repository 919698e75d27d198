"""Several processes that train together: ``torchrun`` starts them, each joins the group, the first one writes."""

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.interruption import REQUEUE_STATUS

# The first process may evaluate or write while the others wait; to find each other they need not that long.
_PATIENCE, _PATIENCE_AT_START = timedelta(hours=1), timedelta(minutes=3)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started for the time of the block; alone, do nothing.

    Tensors on GPUs travel by NCCL, those on the CPU by gloo. An error in the block ends this process at once, its
    traceback printed: taking leave of a group waits for all its processes, and the others wait for this one.
    ``torchrun`` then ends them.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=_PATIENCE_AT_START)
    # Its name until torch 2.15 had an underscore.
    set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
    set_timeout(_PATIENCE)
    distributed_c10d._get_default_store().set_timeout(_PATIENCE)  # by which processes on GPUs meet later
    try:
        yield
    except SystemExit as end:
        if end.code != REQUEUE_STATUS:  # at which all processes leave together
            _end_now(end.code if isinstance(end.code, int) else 1)
        dist.destroy_process_group()
        raise
    except BaseException:
        traceback.print_exc()
        _end_now(1)
    dist.destroy_process_group()


def _end_now(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return process_number() == 0


def in_any_process(flag: bool) -> bool:
    """Whether ``flag`` is set in some process; each must ask at the same place."""
    if number_of_processes() == 1:
        return flag
    flags = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def wait_for_all() -> None:
    """Return when every process is here."""
    in_any_process(False)


def is_orphaned(parent: int) -> bool:
    """Whether ``torchrun``, which had the process number ``parent``, is gone: its processes outlive it otherwise."""
    return number_of_processes() > 1 and os.getppid() != parent


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes, on each of them; it must pickle."""
    values = [value] * number_of_processes()
    if number_of_processes() > 1:
        dist.all_gather_object(values, value)
    return values


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over the processes as they are computed; alone, the module itself.

    Parameters without ``requires_grad`` take no part. Buffers stay each process's own: what must agree is computed from
    all processes' values (``fvq.quantize.processes``).
    """
    if number_of_processes() == 1:
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed by torch 2.15
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **options)
