"""What the head does for jobs that Slurm preempts by cancelling them: it puts them back into the queue.

Snakemake's executor takes the state PREEMPTED for that of a job which Slurm will start again, and waits for it.
"""

import sys
import threading
import time

from fvq.runtime.errors import UserError
from pipeline import slurm

_INTERVAL = 20  # seconds; Slurm forgets jobs that have ended, by default after 300


def watch_for_preemption() -> None:
    """Requeue what is preempted, from now on until this process ends.

    Not the jobs that are there already: they are an earlier head's, and this one submits its own for their stages.

    Raises:
        UserError: Slurm does not answer.
    """
    known = (slurm.jobs_at_work(), slurm.preempted_jobs())
    earlier = {job for stages in known for jobs in stages.values() for job in jobs}
    threading.Thread(target=_watch, args=(earlier,), daemon=True).start()


def _watch(earlier: set[str]) -> None:
    refused: set[str] = set()
    while True:
        time.sleep(_INTERVAL)
        requeue_preempted(earlier, refused)


def requeue_preempted(earlier: set[str], refused: set[str]) -> None:
    """Requeue the preempted jobs of this folder without the ``earlier`` ones, and tell it.

    Those that Slurm refuses are told once, kept in ``refused``, and asked for again next time.
    """
    try:
        preempted = slurm.preempted_jobs()
    except UserError:  # Slurm does not answer, which the executor tells
        return
    for stage, job in [(stage, job) for stage, jobs in preempted.items() for job in jobs if job not in earlier]:
        if slurm.requeue(job):
            print(f"fvq: {stage}: job {job} was preempted and goes back into the queue", file=sys.stderr, flush=True)
        elif job not in refused:
            refused.add(job)
            print(
                f"fvq: {stage}: job {job} was preempted, and Slurm does not queue it again; to let the stage go on, "
                "kill this process (kill -9) and give the same command",
                file=sys.stderr,
                flush=True,
            )
