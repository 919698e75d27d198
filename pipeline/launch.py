"""A stage on several processes of this machine, one per GPU: what ``torchrun`` does, with one exit status for all."""

import os

import torch

from fvq.runtime.errors import UserError
from fvq.runtime.interruption import REQUEUE_STATUS, SIGNALS


def processes_to_start() -> int:
    """``$FVQ_PROCESSES``, by default one per GPU; 1 in a process that was launched already."""
    if "RANK" in os.environ:
        return 1
    wanted = os.environ.get("FVQ_PROCESSES") or str(max(1, torch.cuda.device_count()))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UserError(f"FVQ_PROCESSES: must be a number from 1, not {wanted}")
    count, gpus = int(wanted), torch.cuda.device_count()
    if count > gpus > 0:
        raise UserError(f"FVQ_PROCESSES: {count} processes cannot share {gpus} GPU{'s' if gpus > 1 else ''}")
    return count


def launch(module: str, arguments: list[str], count: int) -> None:
    """Run ``python -m module arguments`` in ``count`` processes that find each other, and wait for them.

    Signals are passed on. Exits with status 75 where a scheduler's signal stopped them, 1 where one failed, and as a
    shell does at other signals.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    options = ["--standalone", f"--nproc-per-node={count}", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds for a large state to be written
    try:
        main([*options, "--module", module, *arguments])
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        raise SystemExit(REQUEUE_STATUS if statuses == {REQUEUE_STATUS} else 1) from None
    except SignalException as stop:
        raise SystemExit(REQUEUE_STATUS if stop.sigval in SIGNALS else 128 + stop.sigval) from None
