"""What ran where: the provenance records of a study's stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json


@dataclass(frozen=True)
class StageRun:
    """A stage's provenance record; None where there is no record or it lacks the entry."""

    stage: str
    row: str | None
    wall_seconds: float | None
    commit: str | None
    dirty: bool | None
    hardware: str | None
    peak_memory_mb: float | None


def read_runs(
    results: Path, rows: Sequence[str], cached: Sequence[str], generators: Sequence[str], swept: Sequence[str]
) -> tuple[StageRun, ...]:
    """The stages in the data's order, each with its provenance record where there is one."""
    stages: list[tuple[str, Sequence[str | None]]] = [
        ("prepare_data", [None]),
        ("train_extractor", [None]),
        ("small_experiments", [None]),
        ("train_tokenizer", rows),
        ("freeze_codebook", rows),
        ("evaluate_tokenizer", rows),
        ("map_codes", [None]),
        ("cache_tokens", cached),
        ("train_generator", generators),
        ("sample", generators),
        ("evaluate_generator", generators),
        ("sweep_guidance", swept),
    ]
    return tuple(_read_run(results, stage, row) for stage, names in stages for row in names)


def _read_run(results: Path, stage: str, row: str | None) -> StageRun:
    path = results / stage / (row or "") / "provenance.json"
    record = read_json(path) if path.exists() else {}
    if not isinstance(record, dict):
        raise UserError(f"{path}: must hold one object, not {type(record).__name__}")

    def entry(key: str, *kinds: type) -> Any:
        value = record.get(key)
        return value if isinstance(value, kinds) else None

    return StageRun(
        stage=stage,
        row=row,
        wall_seconds=entry("wall_seconds", int, float),
        commit=entry("git_commit", str),
        dirty=entry("git_dirty", bool),
        hardware=_describe_hardware(record.get("hardware")),
        peak_memory_mb=entry("peak_memory_mb", int, float),
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
