"""A study's stages and what files tell of each, without torch: ``params.yaml``, provenance records, status records."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.status import Queue, Record, Waiting, read_queue, read_records, read_waiting

# Each stage, and what the names of its rows are names of; in the data's order.
STAGES: dict[str, str | None] = {
    "prepare_data": None,
    "train_extractor": None,
    "train_tokenizer": "rows",
    "freeze_codebook": "rows",
    "evaluate_tokenizer": "rows",
    "prepare_evaluation_set": "evaluation_sets",
    "evaluate_elsewhere": "evaluated_elsewhere",
    "repeat_tokenizer": "repetitions",
    "evaluate_repeat": "repetitions",
    "list_further": None,
    "small_experiments": None,
    "map_codes": None,
    "cache_tokens": "cached_rows",
    "train_generator": "generators",
    "sample": "generators",
    "evaluate_generator": "generators",
    "sweep_guidance": "generators",
    "render": None,
}

State = Literal["done", "running", "queued", "failed", "interrupted", "lost", "to do"]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Repeats(_Parameters):
    rows: tuple[str, ...]
    seeds: tuple[int, ...]


class Study(_Parameters):
    """What ``params.yaml`` says of which stages there are; ``fvq.config`` checks the rest, and needs torch for it."""

    study: str
    rows: dict[str, Any]
    generators: dict[str, Any]
    evaluation_sets: dict[str, Any]
    evaluated_elsewhere: tuple[str, ...]
    cached_rows: tuple[str, ...]
    repeats: _Repeats

    @property
    def repetitions(self) -> tuple[str, ...]:
        """Names such as ``fvq-1``."""
        return tuple(f"{row}-{seed}" for row in self.repeats.rows for seed in self.repeats.seeds)

    def names(self, stage: str) -> tuple[str | None, ...]:
        """The names of a stage's rows; (None,) where it runs once."""
        group = STAGES[stage]
        return tuple(getattr(self, group)) if group else (None,)


def read_study(path: Path) -> Study:
    """The study of a ``params.yaml``.

    Raises:
        UserError: the file is missing or no YAML, or what names the stages is missing or of another kind.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (a study's status is told in the repository's root)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path), content)) from None


@dataclass(frozen=True)
class Stage:
    """A stage and its state; ``record`` is there for those running, failed, interrupted or lost."""

    name: str
    state: State
    record: Record | None = None
    log: str | None = None


@dataclass(frozen=True)
class Overview:
    """All stages by stage and row, at a moment.

    ``queue`` is of the head process, None where none is known; ``head_seen_at`` is when it last looked after jobs in
    Slurm, None where it has not.
    """

    study: Study
    stages: Mapping[tuple[str, str | None], Stage]
    looked_at: datetime
    queue: Queue | None
    head_seen_at: datetime | None


def look(study: Study, root: Path, now: datetime) -> Overview:
    """What the files below ``root`` tell of the study at the moment ``now``.

    A stage is done where it has a provenance record, and no newer status record and no queue says otherwise. Whether
    the record is of the present parameters and code is the engines' to say. What was interrupted or lost is queued
    where the head has seen since that its job waits to be started again.
    """
    folder = root / "runs" / study.study / "status"
    records, queue = read_records(folder), read_queue(folder / "queue.json")
    waiting = read_waiting(folder / "waiting.json")
    if waiting and (queue is None or queue.ended or waiting.seen_at < queue.written_at):
        waiting = None  # an earlier head's
    stages = {}
    for stage in STAGES:
        for row in study.names(stage):
            name = stage if row is None else f"{stage}@{row}"
            place = root / "reports" if stage == "render" else root / "results" / study.study / stage / (row or "")
            stages[stage, row] = _look_at(
                name, study, place / "provenance.json", records.get(name), queue, waiting, now
            )
    return Overview(study, stages, now, queue, waiting.seen_at if waiting else None)


def _look_at(
    name: str,
    study: Study,
    provenance: Path,
    record: Record | None,
    queue: Queue | None,
    waiting: Waiting | None,
    now: datetime,
) -> Stage:
    queued = queue is not None and not queue.ended and name in queue.stages
    if record is not None:
        state, log = record.state_at(now), record.log
        if state == "running":
            return Stage(name, state, record, log)
        if state != "failed" and waiting and name in waiting.stages and waiting.seen_at >= record.updated_at:
            return Stage(name, "queued")
        again = queued and queue is not None and record.updated_at < queue.written_at
        # One that was killed at its very end leaves a record, too; it had finished the files.
        since = record.started_at if state == "lost" else record.updated_at
        if not again and not _finished_since(provenance, since):
            return Stage(name, state, record, log)
    if queued and queue is not None and not _finished_since(provenance, queue.written_at):
        return Stage(name, "queued")
    if name == "render":  # the one folder that studies share
        own = _content(provenance).get("parameters")
        return Stage(name, "done" if isinstance(own, dict) and own.get("study") == study.study else "to do")
    return Stage(name, "done" if provenance.exists() else "to do")


def _finished_since(provenance: Path, moment: datetime) -> bool:
    """Whether the recorded run ended after ``moment``. The file's own date may be that of a copy or of a cache."""
    record = _content(provenance)
    try:
        started = datetime.fromisoformat(record["started_at"])
        finished = started + timedelta(seconds=record["wall_seconds"])
        return (finished if finished.tzinfo else finished.replace(tzinfo=UTC)) >= moment
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _content(path: Path) -> dict[str, Any]:
    """Of a JSON object's file; empty where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
