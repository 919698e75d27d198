"""What the head tells Snakemake's rules, and through a file the jobs on nodes, which need no DVC."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fvq.runtime.files import read_json, write_json
from pipeline import tickets

_FILE = tickets.FOLDER / "stages.json"


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml. Paths are relative to the repository root."""

    name: str
    command: str
    threads: int
    resources: dict[str, Any]
    files: list[str]
    folders: list[str]
    upstream: list[str]  # the outputs, as `watched` has them, of the stages that it reads

    @property
    def ticket(self) -> str:
        return str(tickets.ticket(self.name))

    @property
    def watched(self) -> list[str]:
        """The outputs that Snakemake knows: a stage's files; of one that makes nothing else, its folders.

        Snakemake empties folders that it knows before a job, even if an earlier job has just made them.
        """
        return self.files or self.folders


class Plan(NamedTuple):
    """What Snakemake's rules are made of."""

    study: str
    stages: list[Stage]  # upstream first
    fresh: set[str]  # names of those that need not run
    earlier: Mapping[str, list[str]]  # Slurm's jobs that an earlier snakemake left at work, by the name of their stage

    def queue_behind(self, stage: Stage, options: str) -> dict[str, str]:
        """The resource by which Slurm starts a stage's job after those that are at work on it.

        ``options`` are the profile's for all stages, in the quotes that Snakemake wants there.
        """
        jobs = self.earlier.get(stage.name)
        options = options.strip("'\"")
        return {"slurm_extra": f"{options} --dependency=afterany:{':'.join(jobs)}".strip()} if jobs else {}


def write_stages(stages: list[Stage]) -> None:
    """Leave the stages for jobs on nodes."""
    write_json(_FILE, [asdict(stage) for stage in stages])


def read_stages() -> list[Stage]:
    """The stages that the head left; UserError where there are none."""
    return [Stage(**stage) for stage in read_json(_FILE)]
