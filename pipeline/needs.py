"""What a stage asks a scheduler for: `meta` in dvc.yaml, as Snakemake's resources."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fvq.runtime.errors import UserError, describe_validation_error

# What Snakemake and its Slurm executor heed. They pass over any other name without a word.
# fmt: off
_RESOURCES = [
    "mem", "mem_mb", "mem_mb_per_cpu", "disk", "disk_mb", "runtime", "tmpdir",
    "mpi", "nodes", "tasks", "tasks_per_node", "tasks_per_gpu", "cpus_per_task",
    "cpus_per_gpu", "gpu", "gpu_model", "gres",
    "slurm_partition", "slurm_account", "slurm_extra", "slurm_cluster", "cluster", "clusters", "constraint", "qos",
]
# fmt: on


class Needs(BaseModel):
    """What a stage needs at one scale; what is not said, the cluster's profile says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0, description="of each node")
    gpu_type: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9_.]+$", description="as Slurm calls it: a100")
    cores: int | None = Field(default=None, ge=1, description="of each node")
    memory_gb: float | None = Field(default=None, gt=0, description="of each node, 1000 of what Slurm calls MB")
    hours: float | None = Field(default=None, gt=0, description="after which the job ends")

    @model_validator(mode="after")
    def _type_of_some(self) -> Self:
        if self.gpu_type and not self.gpus:
            raise ValueError("gpu_type without gpus")
        return self

    def resources(self) -> dict[str, Any]:
        """The resources of a Snakemake rule, as its Slurm executor knows them."""
        known: dict[str, Any] = {
            "mem_mb": round(self.memory_gb * 1000) if self.memory_gb else None,
            "runtime": max(1, round(self.hours * 60)) if self.hours else None,  # minutes
            # Of each node; the executor's `gpu` would count those of all nodes together, which no job step can ask for.
            "gres": ":".join(filter(None, ("gpu", self.gpu_type, str(self.gpus)))) if self.gpus else None,
            "nodes": self.nodes if self.nodes > 1 else None,
            # With GPUs, Slurm places one task on a node of itself.
            "tasks": self.nodes if self.nodes > 1 and not self.gpus else None,
        }
        return {name: value for name, value in known.items() if value is not None}


def read_needs(meta: Mapping[str, Any], stage: str) -> tuple[int, dict[str, Any]]:
    """A stage's threads and resources, from its `meta`: ``{threads: 2, scale: medium, needs: {medium: {gpus: 1}}}``.

    Raises:
        UserError: a key or a value under `needs` is wrong.
    """
    scale, needs, threads = meta.get("scale"), meta.get("needs") or {}, str(meta.get("threads", 1))
    if wrong := [key for key in meta if key not in ("threads", "scale", "needs")]:
        raise UserError(f"dvc.yaml: {stage}: meta.{wrong[0]}: no such key; known are threads, scale, needs")
    if not isinstance(needs, Mapping):
        raise UserError(f"dvc.yaml: {stage}: meta.needs: should be a mapping of scales to needs")
    scales = [path.stem for path in Path("conf/scale").glob("*.yaml")]
    if unknown := [name for name in needs if scales and name not in scales]:
        raise UserError(
            f"dvc.yaml: {stage}: meta.needs: {unknown[0]} is no scale; there are {', '.join(sorted(scales))}"
        )
    if not threads.isdecimal() or int(threads) < 1:
        raise UserError(f"dvc.yaml: {stage}: meta.threads: should be a number from 1, not {threads}")
    entry = needs.get(scale) or {}
    try:
        checked = Needs.model_validate(entry)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, f"dvc.yaml: {stage}: meta.needs.{scale}", entry)) from None
    return checked.cores or int(threads), checked.resources()


def check_resources(names: Iterable[str], option: str) -> None:
    """Raises UserError where a resource that an ``option`` of Snakemake sets has a name that nothing heeds."""
    for name in names:
        if name not in _RESOURCES:
            known = f"known are {', '.join(_RESOURCES)}"
            raise UserError(f"{option}: {name}: no such resource; {suggest(name, _RESOURCES, known)}")


def suggest(name: str, known: Sequence[str], otherwise: str) -> str:
    """What may have been meant by ``name``, for an error's line; ``otherwise`` where nothing known is like it."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else otherwise
