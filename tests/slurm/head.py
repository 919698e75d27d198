"""The study of a copy of this repository on a cluster: ``snakemake --profile slurm`` as its user gives it."""

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import yaml
from projects import Project

from slurm.cluster import Cluster, Job

RESULTS = Path("results/ci-photos")
COMMAND = ("snakemake", "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "3")


class Head:
    """A running ``snakemake --profile slurm``, in a session of its own."""

    def __init__(self, study: "Study", *arguments: str, **variables: str) -> None:
        self._log = study.project.path.parent / f"head-{study.heads}.log"
        study.heads += 1
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=study.project.path,
                env={**study.project.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def wait(self, code: int = 0, seconds: float = 1500) -> str:
        """Wait for its end with this exit status, and return what it printed."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the head does not end\n{self.said}") from None
        assert status == code, self.said
        return self.said

    def kill(self) -> None:
        """As the system does where memory runs out: nothing of it can clean up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Study:
    """A copy of this repository with the smallest study, whose commands use one cluster."""

    def __init__(self, project: Project, cluster: Cluster) -> None:
        self.project, self.cluster, self.heads = project, cluster, 0
        variables = {name: value for name, value in project.environment.items() if not name.startswith("SLURM")}
        # Often enough that a job which is cut off goes on in the midst.
        project.environment = {**variables, **cluster.environment, "FVQ_CHECKPOINT_EVERY": "20", "OMP_NUM_THREADS": "1"}

    @classmethod
    def new(cls, path: Path, cluster: Cluster, *overrides: str) -> "Study":
        """A fresh copy with the parameters of the scale ``ci`` and these."""
        study = cls(Project.copy(path / "project"), cluster)
        study.project.run("python", "-m", "pipeline.compose", "scale=ci", *overrides)
        study.project.commit("Parameters")
        return study

    def copy(self, path: Path) -> "Study":
        """All of it as it is, with results and cache, elsewhere."""
        shutil.copytree(self.project.path, path / "project", symlinks=True)
        return Study(Project(path / "project"), self.cluster)

    def start(self, *arguments: str, **variables: str) -> Head:
        return Head(self, *arguments, **variables)

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """The command from start to end; what it printed."""
        return self.start(*arguments, **variables).wait(code)

    def digests(self) -> dict[str, str]:
        """SHA-256 of all results but the records of when and where they were made."""
        files = [path for path in sorted((self.project.path / RESULTS).rglob("*")) if path.is_file()]
        return {
            str(path.relative_to(self.project.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in ("provenance.json", ".snakemake_timestamp")
        }

    def record(self, stage: str, row: str) -> bytes:
        """The record of when and where a stage ran: another run writes another one."""
        return (self.project.path / RESULTS / stage / row / "provenance.json").read_bytes()

    def recorded(self) -> set[str]:
        """The stages whose outputs of this study dvc.lock has."""
        stages = yaml.safe_load((self.project.path / "dvc.lock").read_text())["stages"]
        return {
            name
            for name, entry in stages.items()
            if any(Path(out["path"]).is_relative_to(RESULTS) for out in entry["outs"])
        }

    def jobs(self, stage: str) -> list[Job]:
        """All jobs of a stage in this copy, oldest first."""
        here = str(self.project.path.resolve())
        return [job for job in self.cluster.jobs() if job.comment == f"rule_{stage}" and job.workdir == here]

    def log(self, stage: str, job: Job) -> str:
        """The log of a job that failed, or of any with ``--slurm-keep-successful-logs``."""
        return (self.project.path / f"runs/logs/rule_{stage}/{job.id}.log").read_text()

    def states(self, stage: str) -> list[Path]:
        """The saved states of a training."""
        name, _, row = stage.partition("@")
        return sorted((self.project.path / "runs/ci-photos" / name).glob(f"{row}-*/step-*.pt"))

    def wait_for_receipt(self, stage: str) -> None:
        """Wait until a job of a stage has come to its end."""
        receipt = self.project.path / f".dvc/tmp/tickets/{stage}.receipt"
        self.cluster.wait_for(receipt.exists, 120, f"{stage} has run")

    def wait_for_state(self, stage: str) -> Job:
        """Wait until a training has saved a state, and return its job."""
        self.cluster.wait_for(lambda: self.states(stage), 120, f"{stage} has saved a state")
        return self.jobs(stage)[-1]
