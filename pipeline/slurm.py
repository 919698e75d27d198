"""Slurm as the pipeline sees it: the jobs at work in this folder, the job that this process belongs to, its nodes."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fvq.runtime.errors import UserError
from pipeline import tickets

_COMMENT = "rule_"  # what Snakemake's executor writes before the name of a stage, as the comment of its job
_ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
    *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
}
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
_LOGS = Path("runs/logs")  # slurm-logdir in slurm/profile.v9+.yaml
_MARK = tickets.FOLDER / "slurm"
_PATIENCE = 120  # seconds for a controller that is busy or being restarted
_SILENT = re.compile(r"contact slurm controller|timed out|Zero Bytes|[Cc]onnection|[Cc]ommunication|[Tt]ry again")


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job, and how they find each other."""

    job: str
    nodes: tuple[str, ...]
    cores: int  # of each node
    address: str  # by which the other nodes reach the node of this process


def current_job() -> str | None:
    """The job that this process runs in; None outside of any."""
    return os.environ.get("SLURM_JOB_ID")


def mark_use() -> None:
    """Note that jobs of this folder go to Slurm: where it is not to be found from now on, they may be at work."""
    _MARK.parent.mkdir(parents=True, exist_ok=True)
    _MARK.touch()


def forget_use() -> None:
    """Note that none is there any more."""
    _MARK.unlink(missing_ok=True)


def jobs_at_work() -> dict[str, list[str]]:
    """The jobs of this folder that wait or run, by the name of their stage; none where there is no Slurm.

    Whoever submitted them: a ``snakemake`` that was killed leaves its jobs behind.

    Raises:
        UserError: Slurm does not answer.
    """
    return _jobs_here(lambda state: state not in _ENDED)


def waiting_jobs() -> dict[str, list[str]]:
    """Those that wait for their start, or to be started again; as above."""
    return _jobs_here(lambda state: state in _WAITING)


def preempted_jobs() -> dict[str, list[str]]:
    """Those that Slurm has ended for others' sake, and has not put back into the queue; as above."""
    return _jobs_here(lambda state: state == "PREEMPTED")


def is_at_work(job: str) -> bool:
    """Whether a job still waits or runs; one that is just coming to its end does not count. Raises as above."""
    return any(number == job and state not in {*_ENDED, "COMPLETING"} for number, state, *_ in _listed())


def was_restarted() -> bool:
    """Whether Slurm has started the job of this process before; UserError where it does not answer."""
    job = current_job()
    return job is not None and _fields(job).get("Restarts", "0") != "0"


def log_of(job: str) -> str | None:
    """The file that a job's output goes to; None where Slurm does not say."""
    try:
        return _fields(job).get("StdOut")
    except UserError:
        return None


def logs_of(stage: str) -> list[Path]:
    """The logs that Snakemake's executor keeps of a stage's jobs, those that failed; oldest first."""
    return sorted(_LOGS.glob(f"{_COMMENT}{stage}/*.log"), key=lambda path: path.stat().st_mtime)


def requeue(job: str) -> str | None:
    """Put a job back into the queue, which ends its processes. Returns Slurm's reason where it refuses that, else None.

    Raises:
        UserError: Slurm does not answer.
    """
    done = _ask("scontrol", "requeue", job)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or "no reason given"


def allocation() -> Allocation | None:
    """The nodes of the job that this process runs in; None outside of any, or where there is one only.

    ``$FVQ_ADDRESS`` names another address than Slurm's own of this node, such as that of a faster network.

    Raises:
        UserError: ``srun`` started this process several times, or Slurm does not answer.
    """
    job = current_job()
    if job is None:
        return None
    fields = _fields(job)
    if int(fields.get("NumNodes", "1").split("-")[0]) == 1:
        return None
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError("srun started this stage several times: start it once, it starts its processes on all nodes")
    nodes = tuple(_ask("scontrol", "show", "hostnames", fields["NodeList"]).stdout.split())
    here = os.environ.get("SLURMD_NODENAME", nodes[0])
    known = _pairs(_ask("scontrol", "show", "node", here, "--oneliner").stdout)
    address = os.environ.get("FVQ_ADDRESS") or known.get("NodeAddr") or socket.gethostname()
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    # The first process belongs to this node, which the address names.
    return Allocation(job, (here, *(node for node in nodes if node != here)), cores, address)


def without_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of the job step, which would confine ``srun`` to the nodes of that step."""
    kept = ("SLURM_CONF", "SLURM_JOB_ID")
    prefixes = ("SLURM_", "SRUN_", "SBATCH_")
    return {name: value for name, value in environment.items() if name in kept or not name.startswith(prefixes)}


def _jobs_here(counts: Callable[[str], bool]) -> dict[str, list[str]]:
    """The jobs of this folder whose state ``counts``."""
    here = Path.cwd().resolve()
    jobs = defaultdict(list)
    for job, state, comment, folder in _listed():
        if counts(state) and comment.startswith(_COMMENT) and Path(folder).resolve() == here:
            jobs[comment.removeprefix(_COMMENT)].append(job)
    return dict(jobs)


def _listed() -> list[tuple[str, str, str, str]]:
    """Number, state, comment and folder of each job that Slurm has not forgotten; none where no Slurm is set up."""
    # Asked for by state, squeue passes over those whose state has a flag: requeued and held, stopped.
    command = ("squeue", "--noheader", "--states=all", "--format=%A|%T|%k|%Z")
    done = _ask(*command) if shutil.which(command[0]) else None
    # Slurm's programs may be installed without one.
    if done is None or "configuration source" in done.stderr:
        if _MARK.exists():
            raise UserError(
                "squeue: there is no Slurm to be found, and jobs of this folder may be at work in one: is PATH or "
                f"SLURM_CONF as it was? If none is at work, remove {_MARK}"
            )
        return []
    if done.returncode != 0:
        raise UserError(f"squeue: Slurm does not answer ({' '.join(done.stderr.split()) or 'no reason given'})")
    # The comments of others may have several lines.
    lines = [[*line.split("|", 3), "", "", ""] for line in done.stdout.splitlines()]
    return [(job, state, comment, folder) for job, state, comment, folder, *_ in lines]


def _fields(job: str) -> dict[str, str]:
    """What Slurm says of a job; nothing of one that it does not know."""
    return _pairs(_ask("scontrol", "show", "job", job, "--oneliner").stdout)


def _pairs(text: str) -> dict[str, str]:
    """``A=1 B=with blanks C=2`` as a mapping."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", text))


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """What Slurm answers to a command, a refusal included; a job asks again for a while where it does not answer.

    Raises:
        UserError: it does not answer, or there is no such command.
    """
    end = time.monotonic() + (_PATIENCE if current_job() else 0)
    while True:
        try:
            # Of other people's jobs, it may print anything.
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
            reason = done.stderr
        except subprocess.TimeoutExpired:
            done, reason = None, "no answer within a minute"
        except OSError as error:
            raise UserError(f"{command[0]}: {error.strerror}") from None
        if done and (done.returncode == 0 or not _SILENT.search(reason)):
            return done
        if time.monotonic() >= end:
            raise UserError(f"{command[0]}: Slurm does not answer ({' '.join(reason.split())})")
        time.sleep(5)
