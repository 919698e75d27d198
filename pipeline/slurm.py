"""Slurm as the pipeline sees it: the jobs at work in this folder, the job that this process belongs to, its nodes."""

import os
import re
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fvq.runtime.errors import UserError

_COMMENT = "rule_"  # what Snakemake's executor writes before the name of a stage, as the comment of its job
_AT_WORK = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
_LOGS = Path("runs/logs")  # slurm-logdir in slurm/profile.v9+.yaml


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


def jobs_at_work() -> dict[str, list[str]]:
    """The jobs of this folder that wait or run, by the name of their stage; none where there is no Slurm.

    Whoever submitted them: a ``snakemake`` that was killed leaves its jobs behind.

    Raises:
        UserError: Slurm does not answer.
    """
    return _jobs_here(f"{_AT_WORK},COMPLETING")


def preempted_jobs() -> dict[str, list[str]]:
    """Those that Slurm has ended for others' sake, and has not put back into the queue; as above."""
    return _jobs_here("PREEMPTED")


def is_at_work(job: str) -> bool:
    """Whether a job still waits or runs; one that is just coming to its end does not count. Raises as above."""
    return any(number == job for number, *_ in _listed(_AT_WORK))


def was_restarted() -> bool:
    """Whether Slurm has started the job of this process before."""
    job = current_job()
    return job is not None and _fields(job).get("Restarts", "0") != "0"


def log_of(job: str) -> str | None:
    """The file that a job's output goes to."""
    return _fields(job).get("StdOut")


def logs_of(stage: str) -> list[Path]:
    """The logs that Snakemake's executor keeps of a stage's jobs, those that failed; oldest first."""
    return sorted(_LOGS.glob(f"{_COMMENT}{stage}/*.log"), key=lambda path: path.stat().st_mtime)


def requeue(job: str) -> bool:
    """Put a job back into the queue, which ends its processes; False where Slurm refuses that."""
    return _output("scontrol", "requeue", job) is not None


def allocation() -> Allocation | None:
    """The nodes of the job that this process runs in; None outside of any, or where there is one only.

    ``$FVQ_ADDRESS`` names another address than Slurm's own of this node, such as that of a faster network.

    Raises:
        UserError: ``srun`` started this process several times.
    """
    job = current_job()
    if job is None:
        return None
    fields = _fields(job)
    if int(fields.get("NumNodes", "1").split("-")[0]) == 1:
        return None
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError("srun started this stage several times: start it once, it starts its processes on all nodes")
    nodes = tuple((_output("scontrol", "show", "hostnames", fields["NodeList"]) or "").split())
    here = os.environ.get("SLURMD_NODENAME", nodes[0])
    known = _pairs(_output("scontrol", "show", "node", here, "--oneliner") or "")
    address = os.environ.get("FVQ_ADDRESS") or known.get("NodeAddr") or socket.gethostname()
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    # The first process belongs to this node, which the address names.
    return Allocation(job, (here, *(node for node in nodes if node != here)), cores, address)


def without_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of the job step, which would confine ``srun`` to the nodes of that step."""
    kept = ("SLURM_CONF", "SLURM_JOB_ID")
    prefixes = ("SLURM_", "SRUN_", "SBATCH_")
    return {name: value for name, value in environment.items() if name in kept or not name.startswith(prefixes)}


def _jobs_here(states: str) -> dict[str, list[str]]:
    here = Path.cwd().resolve()
    jobs = defaultdict(list)
    for job, comment, folder in _listed(states):
        if comment.startswith(_COMMENT) and Path(folder).resolve() == here:
            jobs[comment.removeprefix(_COMMENT)].append(job)
    return dict(jobs)


def _listed(states: str) -> list[tuple[str, str, str]]:
    """Number, comment and folder of each job in one of the states; none where no Slurm is set up."""
    if not shutil.which("squeue"):
        return []
    command = ["squeue", "--noheader", f"--states={states}", "--format=%A|%k|%Z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Its programs alone may be installed.
        if "configuration source" in done.stderr:
            return []
        raise UserError(f"squeue: Slurm does not answer ({' '.join(done.stderr.split()) or 'no reason given'})")
    # The comments of others may have several lines.
    lines = [[*line.split("|", 2), "", ""] for line in done.stdout.splitlines()]
    return [(job, comment, folder) for job, comment, folder, *_ in lines]


def _fields(job: str) -> dict[str, str]:
    """What Slurm says of a job; nothing where it does not answer."""
    return _pairs(_output("scontrol", "show", "job", job, "--oneliner") or "")


def _pairs(text: str) -> dict[str, str]:
    """``A=1 B=with blanks C=2`` as a mapping."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", text))


def _output(*command: str) -> str | None:
    """What a command of Slurm prints, None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
