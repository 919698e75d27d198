"""What ran where: the provenance records of a study's stages, and whether the files are still those they record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json, sha256_file

# What the rendering reads of each stage, except images by the thousand and weights, whose hashes take minutes.
_READ = {
    "prepare_data": ("validation.parquet",),
    "small_experiments": ("trajectories.parquet", "trajectories.json", "sizes.csv"),
    "train_tokenizer": ("history.csv",),
    "evaluate_tokenizer": ("metrics.json", "reconstructions.npz"),
    "evaluate_elsewhere": ("metrics/*.json",),
    "evaluate_repeat": ("metrics.json",),
    "map_codes": ("code_map.parquet", "code_map.json"),
    "cache_tokens": ("size.json",),
    "evaluate_generator": ("metrics.json",),
    "sweep_guidance": ("guidance.csv",),
}


@dataclass(frozen=True)
class StageRun:
    """A stage's provenance record; None where there is no record or it lacks the entry.

    ``path`` is the record's file; ``inputs`` and ``outputs`` map paths, as the stage saw them, to their SHA-256;
    ``parameters`` are those that the result depends on.
    """

    stage: str
    row: str | None
    path: Path
    wall_seconds: float | None
    commit: str | None
    dirty: bool | None
    hardware: str | None
    peak_memory_mb: float | None
    seed: int | None
    started_at: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    parameters: Mapping[str, Any]

    @property
    def recorded(self) -> bool:
        """Whether there is a record."""
        return self.wall_seconds is not None

    @property
    def name(self) -> str:
        """``stage@row``, or the stage alone where it runs once."""
        return self.stage if self.row is None else f"{self.stage}@{self.row}"


def read_runs(
    results: Path,
    *,
    rows: Sequence[str],
    repeated: Mapping[str, int],
    sets: Sequence[str],
    elsewhere: Sequence[str],
    cached: Sequence[str],
    generators: Sequence[str],
    swept: Sequence[str],
) -> tuple[StageRun, ...]:
    """The stages in the data's order, each with its provenance record where there is one.

    ``repeated`` has the seeds of repeated rows by their names, such as ``fvq-1``.

    Raises:
        UserError: a record is damaged or another run's, a file of figures is not what the stage wrote that recorded it,
            or a stage read another file than the one that its maker recorded.
    """
    stages: list[tuple[str, Sequence[str | None]]] = [
        ("prepare_data", [None]),
        ("train_extractor", [None]),
        ("small_experiments", [None]),
        ("train_tokenizer", rows),
        ("freeze_codebook", rows),
        ("evaluate_tokenizer", rows),
        ("prepare_evaluation_set", sets),
        ("evaluate_elsewhere", elsewhere),
        ("repeat_tokenizer", list(repeated)),
        ("evaluate_repeat", list(repeated)),
        ("map_codes", [None]),
        ("cache_tokens", cached),
        ("train_generator", generators),
        ("sample", generators),
        ("evaluate_generator", generators),
        ("sweep_guidance", swept),
    ]
    runs = tuple(_read_run(results, stage, row) for stage, names in stages for row in names)
    for run in runs:
        if run.stage in ("repeat_tokenizer", "evaluate_repeat") and run.recorded and run.seed != repeated[str(run.row)]:
            raise UserError(f"{run.path}: its seed is {run.seed}, not that of {run.name}; run that stage again")
    _check_outputs(results, runs)
    _check_chain(runs)
    return runs


def _check_outputs(results: Path, runs: Sequence[StageRun]) -> None:
    """Figures that somebody changed by hand, or put beside those of the stage, are none."""
    for run in runs:
        if not run.recorded:
            continue
        place = "/".join(["", run.stage, *([run.row] if run.row else []), ""])
        folder = results / run.stage / (run.row or "")
        # The record names files from where the stage ran; here they lie below this study's results.
        digests = {name.rpartition(place)[2]: digest for name, digest in run.outputs.items()}
        for path in (path for pattern in _READ.get(run.stage, ()) for path in sorted(folder.glob(pattern))):
            if digests.get(path.relative_to(folder).as_posix()) != sha256_file(path):
                raise UserError(
                    f"{path}: is not what {run.name} wrote (its SHA-256 is not in {run.path}); run that stage again"
                )


def _check_chain(runs: Sequence[StageRun]) -> None:
    """What a stage read is what its maker wrote: figures of another run of an earlier stage do not stand beside it."""
    made = {name: (digest, run) for run in runs for name, digest in run.outputs.items()}
    for run in runs:
        for name, digest in run.inputs.items():
            if name in made and made[name][0] != digest:
                raise UserError(
                    f"{run.path}: {run.name} read another {name} than {made[name][1].name} wrote last; run {run.name} "
                    "again"
                )


def _read_run(results: Path, stage: str, row: str | None) -> StageRun:
    path = results / stage / (row or "") / "provenance.json"
    record = read_json(path) if path.exists() else {}
    if not isinstance(record, dict):
        raise UserError(f"{path}: must hold one object, not {type(record).__name__}")

    if record and (record.get("stage"), record.get("row")) != (stage, row):
        raise UserError(
            f"{path}: is the record of {record.get('stage')} {record.get('row') or ''}, not of {stage} {row or ''}; "
            "run that stage again"
        )

    def entry(key: str, *kinds: type) -> Any:
        value = record.get(key)
        return value if isinstance(value, kinds) else None

    return StageRun(
        stage=stage,
        row=row,
        path=path,
        wall_seconds=entry("wall_seconds", int, float),
        commit=entry("git_commit", str),
        dirty=entry("git_dirty", bool),
        hardware=_describe_hardware(record.get("hardware")),
        peak_memory_mb=entry("peak_memory_mb", int, float),
        seed=entry("seed", int),
        started_at=entry("started_at", str),
        inputs=entry("inputs", dict) or {},
        outputs=entry("outputs", dict) or {},
        versions=entry("versions", dict) or {},
        parameters=entry("parameters", dict) or {},
    )


def _describe_hardware(hardware: Any) -> str | None:
    """One line for the record's hardware."""
    if isinstance(hardware, str):
        return hardware or None
    if not isinstance(hardware, dict):
        return None
    cores, memory = hardware.get("cores"), hardware.get("memory_gb")
    parts = [
        *(str(name) for name in hardware.get("gpus") or []),
        str(hardware.get("processor") or ""),
        f"{cores} cores" if cores else "",
        f"{memory} GB" if memory else "",
    ]
    return ", ".join(part for part in parts if part) or None
