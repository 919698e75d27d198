"""What the head does while its jobs are in Slurm: requeue what is preempted, and tell ``fvq status`` what waits."""

import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from fvq.runtime.status import write_waiting
from pipeline import slurm

_INTERVAL = 20  # seconds; Slurm forgets jobs that have ended, by default after 300


def watch_jobs(waiting: Path) -> None:
    """Look after the jobs of this folder, from now on until Ctrl-C or the end of this process.

    ``waiting`` is the file for the status.

    Raises:
        UserError: Slurm does not answer.
    """
    # These are an earlier head's, and this one submits its own for their stages.
    known = (slurm.jobs_at_work(), slurm.preempted_jobs())
    earlier = {job for stages in known for jobs in stages.values() for job in jobs}
    ended = threading.Event()
    interrupt = signal.getsignal(signal.SIGINT)

    if callable(interrupt):  # else Ctrl-C is not for this process

        def stop(number: int, frame: FrameType | None) -> None:
            ended.set()  # Snakemake cancels its jobs now: none of them goes back
            interrupt(number, frame)

        signal.signal(signal.SIGINT, stop)
    threading.Thread(target=_watch, args=(waiting, earlier, ended), name="watch of jobs", daemon=True).start()


def _watch(waiting: Path, earlier: set[str], ended: threading.Event) -> None:
    refused: set[str] = set()
    while not ended.wait(_INTERVAL):
        with suppress(Exception):  # Slurm does not answer, a disk is full, ...: those who work tell
            requeue_preempted(earlier, refused)
            write_waiting(waiting, sorted(slurm.waiting_jobs()))


def requeue_preempted(earlier: set[str], refused: set[str]) -> None:
    """Requeue the jobs of this folder that Slurm has preempted by cancelling them, without the ``earlier`` ones.

    Snakemake's executor takes them for jobs that Slurm will start again, and waits. Those that Slurm refuses are told
    once, kept in ``refused``, and asked for again next time.

    Raises:
        UserError: Slurm does not answer.
    """
    preempted = [(stage, job) for stage, jobs in slurm.preempted_jobs().items() for job in jobs if job not in earlier]
    for stage, job in preempted:
        reason = slurm.requeue(job)
        if reason is None:
            _tell(f"{stage}: job {job} was preempted and goes back into the queue")
        elif job not in refused:
            refused.add(job)
            _tell(
                f"{stage}: job {job} was preempted, and Slurm does not queue it again ({reason}); if that stays so, "
                "kill this process (kill -9) and give the same command"
            )


def _tell(text: str) -> None:
    print(f"fvq: {text}", file=sys.stderr, flush=True)
