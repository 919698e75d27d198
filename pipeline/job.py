"""What Snakemake runs for a stage, here or on a node: ``python -m pipeline.job train_tokenizer@fvq``.

It runs the stage's command and leaves a receipt if that succeeds. Where Slurm warns the job before its time is over, or
before it takes the node for others, the stage saves its state and exits with status 75, and the job goes back into the
queue by itself; so it does where SIGTERM ends a stage that saves none, and Slurm is not ending the job.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.interruption import REQUEUE_STATUS, SIGNALS
from pipeline import slurm, tickets
from pipeline.plan import Stage, read_stages


def run_job(stage: Stage) -> int:
    """Run a stage's command and write its receipt. Returns the command's exit status, 128 and more after a signal.

    Where an earlier ``snakemake`` left a job for this stage, which has meanwhile made the outputs, nothing is run.
    """
    with tickets.turn(stage.name) as (lock, waited):
        if (_had_earlier_job(stage.name) or waited or slurm.was_restarted()) and _is_made(stage):
            print(f"{stage.name}: made by an earlier job", file=sys.stderr)
            return 0
        return _run_in_turn(stage, lock)


def _run_in_turn(stage: Stage, lock: IO[str]) -> int:
    tickets.receipt(stage.name).unlink(missing_ok=True)
    ticket = tickets.ticket(stage.name).read_text(encoding="utf-8")
    for folder in stage.folders:
        shutil.rmtree(folder, ignore_errors=True)  # a file of before would be taken for one of now
    status, was_told = _run(stage, lock)
    if status == 0:
        tickets.write_receipt(stage.name, ticket, stage.files)
        tickets.drop_state(stage.name)
    elif status == REQUEUE_STATUS or was_told:
        _go_on_later(stage.name)
    elif status == 128 + signal.SIGKILL:
        print(f"fvq: error: {stage.name}: killed, as the system does where memory runs out", file=sys.stderr)
    return status


def _had_earlier_job(name: str) -> bool:
    """Whether another job, which came before this one, was to run the stage; it may be this job that came first."""
    jobs, current = tickets.earlier_jobs(name), slurm.current_job()
    listed = jobs.read_text(encoding="utf-8").split() if jobs.exists() else []
    return any(current is None or int(job) < int(current) for job in listed)


def _is_made(stage: Stage) -> bool:
    return tickets.has_receipt(stage.name) and all(Path(path).exists() for path in stage.files + stage.folders)


def _run(stage: Stage, lock: IO[str]) -> tuple[int, bool]:
    """The exit status of a stage's command, and whether SIGTERM came meanwhile; signals of schedulers are passed on.

    Only a stage that can save its state heeds SIGUSR1: the others use the time that is left.
    """
    was_told = False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal was_told
        was_told = was_told or number == signal.SIGTERM
        process.send_signal(number)

    # "python" is this one, even where its environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process = subprocess.Popen(
        _script(stage.command),
        shell=True,
        env={**os.environ, "PATH": path, tickets.STATE_VARIABLE: str(tickets.state(stage.name))},
        preexec_fn=_ignore_warning,
        pass_fds=[lock.fileno()],  # a stage may outlive this process
    )
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (status if status >= 0 else 128 - status), was_told


def _script(command: str) -> str:
    """The command for sh, which a plain last line replaces: a shell would die of SIGTERM before its stage has saved."""
    earlier, line_break, last = command.rstrip().rpartition("\n")
    is_plain = re.fullmatch(r"\S*python[\w.]* [\w.@/= -]+", last) is not None
    return f"set -e\n{earlier}{line_break}{'exec ' if is_plain else ''}{last}"


def _ignore_warning() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _go_on_later(name: str) -> None:
    """Put this job back into Slurm's queue, unless Slurm is ending it anyway, and wait for the end that this brings."""
    job = slurm.current_job()
    try:
        if job is None or not slurm.is_at_work(job):
            return
        refusal = slurm.requeue(job)
    except UserError as silence:
        refusal = str(silence)
    if refusal is not None:
        print(f"fvq: {name}: not queued again: {refusal}", file=sys.stderr)
        return
    print(f"fvq: {name}: job {job} goes back into the queue", file=sys.stderr, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    with one_line_errors():
        (chosen,) = (stage for stage in read_stages() if stage.name == sys.argv[1])
        sys.exit(run_job(chosen))
