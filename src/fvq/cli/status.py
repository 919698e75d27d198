"""``fvq status``."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import SegmentLines
from rich.table import Column, Table
from rich.text import Text

from fvq.cli.stages import Overview, Stage, State, Study, look, read_study
from fvq.runtime.errors import UserError
from fvq.runtime.progress import duration

_REFRESH_SECONDS = 5.0
_SILENCE = timedelta(minutes=5)  # of a head that looks after jobs in Slurm, every 20 seconds
_STYLES: dict[State, str] = {
    "done": "green",
    "running": "bold cyan",
    "queued": "yellow",
    "interrupted": "bold yellow",
    "lost": "bold red",
    "failed": "bold red",
    "to do": "",
}
_TOLD: tuple[State, ...] = ("failed", "lost", "interrupted", "running")  # below the tables, each with a record
# What a row is, what the rows are names of, and the stages by the words above their columns.
_TABLES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "tokenizer",
        "rows",
        {
            "train": "train_tokenizer",
            "freeze": "freeze_codebook",
            "evaluate": "evaluate_tokenizer",
            "elsewhere": "evaluate_elsewhere",
            "tokens": "cache_tokens",
        },
    ),
    (
        "generator",
        "generators",
        {
            "train": "train_generator",
            "sample": "sample",
            "evaluate": "evaluate_generator",
            "sweep": "sweep_guidance",
        },
    ),
    ("repeat", "repetitions", {"train": "repeat_tokenizer", "evaluate": "evaluate_repeat"}),
)


def print_status(path: Path, *, watch: bool) -> None:
    """Print what the stages of the study of the parameters at ``path`` do; with ``watch`` anew, until Ctrl-C.

    Read from files alone: the study from the parameters, finished stages from ``results/`` and ``reports/`` beside
    them, the others from ``runs/<study>/status``. It speaks of files: whether a finished stage is that of the present
    parameters, ``dvc status`` and ``snakemake -n`` tell.

    Raises:
        UserError: the parameters cannot be read, or there is no terminal to watch on.
    """
    console = _console()
    if watch and not console.is_terminal:
        raise UserError("--watch: needs a terminal; without it the status is printed once")
    study = read_study(path)
    if watch:
        study = _watch(console, study, path)
    console.print(_view(look(study, path.parent, datetime.now(UTC))))


def _console() -> Console:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 10_000  # what reads a pipe wants whole lines
    return console


def _watch(console: Console, study: Study, path: Path) -> Study:
    """The study as it was last when Ctrl-C ended it."""
    stamp = _stamp(path)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                if _stamp(path) != stamp:
                    try:
                        now = _stamp(path)
                        study, stamp = read_study(path), now
                    except UserError:
                        pass  # it may be half written; the next time it is not
                overview = look(study, path.parent, datetime.now(UTC))
                view: RenderableType = _view(overview)
                if len(console.render_lines(view)) > console.height:
                    view = _cut(_view(overview, brief=True), console)
                live.update(view, refresh=True)
                time.sleep(_REFRESH_SECONDS)
    except KeyboardInterrupt:
        return study


def _cut(view: RenderableType, console: Console) -> RenderableType:
    """What fits on the terminal, with a last line that tells how much does not."""
    lines = console.render_lines(view, pad=False)
    if (left := len(lines) - console.height) <= 0:
        return view
    return Group(
        SegmentLines(lines[: -left - 1], new_lines=True), Text(f"{left + 1} lines more: make the window higher")
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _view(overview: Overview, *, brief: bool = False) -> Group:
    """All that is shown. When ``brief``, first what went wrong, and then of the tables rows of that or what runs."""
    everything = list(overview.stages.values())
    told = [state for state in _TOLD if not (brief and state == "running")]
    details = [_details(stage) for state in told for stage in everything if stage.state == state]
    tables: list[RenderableType] = []
    for title, group, columns in _TABLES:
        if names := getattr(overview.study, group):
            stages = {word: stage for word, stage in columns.items() if overview.study.names(stage)}
            rows = {name: [overview.stages.get((stage, name)) for stage in stages.values()] for name in names}
            tables += [*_table(title, list(stages), rows, brief), ""]
    in_rows = {stage for _, _, columns in _TABLES for stage in columns.values()}
    others = {stage.name: [stage] for key, stage in overview.stages.items() if key[0] not in in_rows}
    tables += [*_table("stage", [""], others, brief), ""]
    parts = [*details, "", *tables] if brief and details else [*tables, *details]
    return Group(_headline(overview), "", *parts)


def _headline(overview: Overview) -> Text:
    counts = Counter(stage.state for stage in overview.stages.values())
    others = [f"{counts[state]} {state}" for state in (*_TOLD, "queued") if counts[state]]
    told = f"study {overview.study.study}: {counts['done']} of {counts.total()} stages done"
    text, queue, seen = ", ".join([told, *others]), overview.queue, overview.head_seen_at
    if queue is not None:
        text += f"; head process {queue.process} on {queue.host} since {_moment(queue.written_at)}"
        if queue.ended:
            text += ", which is gone: give its command again"
        elif seen is not None and overview.looked_at - seen > _SILENCE:
            text += f", not heard of since {_moment(seen)}: if it is gone, give its command again"
    return Text(text)


def _table(
    title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Stage | None]], brief: bool
) -> list[RenderableType]:
    table = Table(
        Column(title, no_wrap=True),  # on a narrow terminal the cells are wrapped
        *columns,
        box=SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name, stages in rows.items():
        if not brief or any(stage and stage.state in _TOLD for stage in stages):
            table.add_row(name, *(_cell(stage) if stage else "" for stage in stages))
    parts: list[RenderableType] = [table] if table.rows else []
    if left_out := len(rows) - len(table.rows):
        parts.append(f"{left_out} {title}{'s' if left_out > 1 else ''} without anything that runs or went wrong")
    return parts


def _cell(stage: Stage) -> Text:
    text: str = stage.state
    if stage.state == "to do":
        text = "–"
    elif stage.state == "running" and stage.record and (standing := stage.record.progress) and standing.total > 0:
        # Rounded down: 100 % is all.
        text = f"{int(100 * min(standing.done / standing.total, 1) + 1e-6)} %"
        if standing.seconds_left is not None:
            text += f" {' '.join(duration(standing.seconds_left).split()[:2])} left"  # the larger unit
    return Text(text, _STYLES[stage.state])


def _details(stage: Stage) -> Text:
    """Where, since when, how far or what went wrong, and below it the log."""
    record = stage.record
    assert record is not None
    place = f"on {record.host}, " + (f"job {record.job}" if record.job else f"process {record.process}")
    standing = record.progress
    position = f"{standing.description}: {standing.facts()}" if standing else None
    match stage.state:
        case "running":
            facts = [f"running {place}, since {_moment(record.started_at)}", position]
        case "lost":
            facts = [f"lost {place}, last heard of {_moment(record.updated_at)}", position]
        case _:
            facts = [f"{stage.state} {place}, {_moment(record.updated_at)}", record.message]
    log = f"\n  log {stage.log}" if stage.log else ""
    return Text.assemble((stage.name, _STYLES[stage.state]), " ", "; ".join(filter(None, facts)), log)


def _moment(when: datetime) -> str:
    """In this machine's time zone."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M")
