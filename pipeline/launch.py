"""A stage on several processes, one per GPU, here or on all nodes of a Slurm job; one exit status for all of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from fvq.runtime.devices import check_gpus, visible_gpus
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.interruption import REQUEUE_STATUS, SIGNALS
from pipeline.slurm import Allocation, without_step

_PATIENCE = 60  # seconds for the other nodes' processes to start


def processes_to_start() -> int:
    """``$FVQ_PROCESSES``, by default one per GPU; 1 in a process that was launched already."""
    if "RANK" in os.environ:
        return 1
    wanted = os.environ.get("FVQ_PROCESSES") or str(max(1, visible_gpus()))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UserError(f"FVQ_PROCESSES: must be a number from 1, not {wanted}")
    count, gpus = int(wanted), visible_gpus()
    if count > gpus > 0:
        raise UserError(f"FVQ_PROCESSES: {count} processes cannot share {gpus} GPU{'s' if gpus > 1 else ''}")
    return count


def launch(module: str, arguments: list[str], count: int) -> None:
    """Run ``python -m module arguments`` in ``count`` processes that find each other, and wait for them.

    Signals are passed on. Exits with status 75 where a scheduler's signal stopped them, 1 where one failed, and as a
    shell does at other signals.
    """
    _torchrun(["--standalone", f"--nproc-per-node={count}"], module, arguments)


def launch_on_nodes(module: str, arguments: list[str], count: int, allocation: Allocation) -> None:
    """The same with ``count`` processes on each node. Where one node's fail, Slurm ends the others."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    # srun would tell nothing of status 75 where the nodes' processes do not leave at the very same moment.
    interrupted = Path("runs", f".interrupted-{allocation.job}-{os.getpid()}")
    interrupted.parent.mkdir(exist_ok=True)
    nodes = len(allocation.nodes)
    srun = [
        *("srun", f"--jobid={allocation.job}", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}"),
        *("--ntasks-per-node=1", f"--cpus-per-task={allocation.cores}", "--kill-on-bad-exit=1", "--input=none"),
    ]
    here = [sys.executable, "-m", "pipeline.launch", ",".join(allocation.nodes), allocation.address, str(port)]
    process = subprocess.Popen(
        [*srun, *here, str(count), str(interrupted), module, *arguments], env=without_step(os.environ)
    )

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGUSR1)  # at SIGTERM, srun would kill the processes

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        status = process.wait()
        if status != 0:
            raise SystemExit(1)
        if interrupted.exists():
            raise SystemExit(REQUEUE_STATUS)
    finally:
        interrupted.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_on_node(
    nodes: str, address: str, port: str, count: str, interrupted: str, module: str, *arguments: str
) -> None:
    """One node's part of ``launch_on_nodes``."""
    check_gpus()
    names = nodes.split(",")
    here = os.environ["SLURMD_NODENAME"]
    rank = names.index(here)
    if rank:
        _wait_for_first(names[0], here, address, int(port))
    options = [f"--nnodes={len(names)}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
    try:
        _torchrun([*options, f"--nproc-per-node={count}"], module, list(arguments))
    except SystemExit as end:
        if end.code != REQUEUE_STATUS:
            raise
        Path(interrupted).touch()


def _wait_for_first(first: str, here: str, address: str, port: int) -> None:
    """Return when the first node listens; UserError where it cannot be reached."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(1.0, end - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"node {here} cannot reach node {first} at {address}, port {port} ({error}): is there a firewall? "
                    "FVQ_ADDRESS names another address of the first node"
                ) from None
        time.sleep(0.2)


def _torchrun(options: list[str], module: str, arguments: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    def stop_once(number: int, _: FrameType | None) -> None:
        # Slurm and srun tell several times, and torchrun would leave its processes at the third.
        for told in SIGNALS:
            signal.signal(told, signal.SIG_IGN)
        raise SignalException(f"process {os.getpid()} got {signal.Signals(number).name}", signal.Signals(number))

    for number in SIGNALS:
        signal.signal(number, stop_once)
    options = [*options, "--signals-to-handle=SIGINT,SIGHUP,SIGQUIT"]
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds for a large state to be written
    try:
        main([*options, "--module", module, *arguments])
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        raise SystemExit(REQUEUE_STATUS if statuses == {REQUEUE_STATUS} else 1) from None
    except SignalException as stop:
        raise SystemExit(REQUEUE_STATUS if stop.sigval in SIGNALS else 128 + stop.sigval) from None


if __name__ == "__main__":
    with one_line_errors():
        _run_on_node(*sys.argv[1:])
