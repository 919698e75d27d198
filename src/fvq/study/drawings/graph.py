"""The study's stages as a drawing: which read files of which, how long each took, and what else is recorded of them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fvq.runtime.text import count, duration, percent
from fvq.study.drawings.layered import Edge, Placement, place
from fvq.study.results import Study
from fvq.study.runs import StageRun

_WIDTH, _GAP, _PADDING = 144.0, 27.0, 7.0
# Around the whole, so that lines on its border are drawn in full.
_MARGIN = 2.0
# How much smaller it may be shown before it scrolls.
_LEGIBLE = 0.85
# As many columns as the page is wide.
_COLUMNS = 7
# Within a node: baselines of the name and the time, the bar, the first line of small type and from line to line.
_NAME, _TIME, _BAR, _SMALL, _LINE = 19.0, 37.0, 43.0, 62.0, 15.0
# Letters of small type that a line has room for.
_LETTERS = 20

_STYLE = """
.chain-svg{display:block;height:auto;font-size:11px}
.chain-svg text{fill:var(--soft)}
.chain-svg .chain-name{fill:var(--ink);font-size:12px;font-weight:600}
.chain-svg .chain-time{fill:var(--ink)}
.chain-node{text-decoration:none}
.chain-box{fill:var(--tint);stroke:var(--rule)}
.chain-unrecorded .chain-box{fill:none;stroke:var(--soft);stroke-dasharray:4 3}
.chain-node:is(:hover,:focus-visible) .chain-box{stroke:currentColor}
.chain-track{fill:var(--rule)}
.chain-share{fill:currentColor}
.chain-edge{fill:none;stroke:var(--soft);stroke-width:1.2;stroke-linejoin:round;stroke-linecap:round}
.chain-svg:has(.chain-node:is(:hover,:focus-visible)) .chain-edge{opacity:.2}
"""


def chain_svg(study: Study) -> Markup:
    """The stages from left to right as an inline SVG in the page's colours, each linked to its first run's anchor.

    An edge leads from a stage to one that read files of it; a stage without any record is dashed. Each stage has its
    wall time, a bar for its share of the study's, how many rows it ran for, their largest peak memory, the longest of
    them, and, where not all is recorded or it ran on other hardware than most, that. All rows stand in its tooltip. The
    rendering, which has no record, is left out.

    Raises:
        UserError: stages read each other's files.
    """
    edges = stage_edges(study)
    stages = [
        _Stage(name, tuple(run for run in study.runs if run.stage == name))
        for name in dict.fromkeys(run.stage for run in study.runs)
    ]
    total = sum(stage.seconds for stage in stages)
    usual = next(iter(_hardware(study.runs)), None)
    lines = {stage.name: _small_lines(stage, usual) for stage in stages}
    heights = {name: _SMALL + (len(texts) - 1) * _LINE + _PADDING for name, texts in lines.items()}
    placement = place(heights, edges, _COLUMNS)
    numbers = {stage.name: number for number, stage in enumerate(stages)}
    width = max(placement.width * (_WIDTH + _GAP) - _GAP, 0) + 2 * _MARGIN
    height = math.ceil(placement.height + 2 * _MARGIN)
    rules = Markup(_STYLE + "".join(_highlight(number) for number in numbers.values()))
    paths = [
        Markup('<path class="chain-edge chain-from-{} chain-to-{}" d="{}"/>').format(
            numbers[maker], numbers[reader], path
        )
        for (maker, reader), path in _paths(placement, heights).items()
    ]
    nodes = [
        _node(
            stage,
            left=_left(placement.columns[stage.name]),
            top=_MARGIN + placement.centres[stage.name] - heights[stage.name] / 2,
            height=heights[stage.name],
            total=total,
            lines=lines[stage.name],
            tooltip=_tooltip(stage, total, edges),
        )
        for stage in stages
    ]
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chain-svg" viewBox="0 0 {:.0f} {}" role="group"'
        ' style="min-width: {:.0f}px; max-width: {:.0f}px" aria-label="{}"><style>{}</style>\n{}\n</svg>'
    ).format(
        width,
        height,
        _LEGIBLE * width,
        width,
        _in_a_sentence(stages, total),
        rules,
        Markup("\n").join([*paths, *nodes]),
    )


def stage_edges(study: Study) -> dict[Edge, int]:
    """Which stage (first) made files that another one (second) read, and how many, as the records say.

    A file's maker is the stage that recorded it as its output; where none did, the one whose folder it lies in.
    """
    made = {path: run.stage for run in study.runs for path in run.outputs}
    folders = {f"/{study.name}/{run.name.replace('@', '/', 1)}/": run.stage for run in study.runs}
    read: dict[Edge, set[str]] = {}
    for run in study.runs:
        for path in run.inputs:
            maker = made.get(path) or next((stage for folder, stage in folders.items() if folder in f"/{path}"), None)
            if maker is not None and maker != run.stage:
                read.setdefault((maker, run.stage), set()).add(path)
    return {edge: len(paths) for edge, paths in read.items()}


@dataclass(frozen=True)
class _Stage:
    name: str
    runs: tuple[StageRun, ...]

    @property
    def title(self) -> str:
        return _in_words(self.name)

    @property
    def times(self) -> list[tuple[float, StageRun]]:
        """The runs that are recorded, with their wall time in seconds."""
        return [(run.wall_seconds, run) for run in self.runs if run.wall_seconds is not None]

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.times)

    @property
    def rows(self) -> str:
        """How many rows it ran for."""
        if self.runs[0].row is None:
            return "once"
        return "1 row" if len(self.runs) == 1 else f"{count(len(self.runs))} rows"

    @property
    def peak_memory(self) -> str | None:
        """The largest of its runs."""
        peaks = [run.peak_memory_mb for run in self.runs if run.peak_memory_mb is not None]
        return f"peak {count(max(peaks))} MB" if peaks else None

    def wall_time(self, total: float) -> tuple[str, str]:
        """The wall time and its share of the study's."""
        if not self.times:
            return "not recorded", ""
        return duration(self.seconds), percent(self.seconds / total) if total else ""


def _in_words(stage: str) -> str:
    return stage.replace("_", " ")


def _hardware(runs: Sequence[StageRun]) -> list[str]:
    """What the runs ran on, the most usual first."""
    return [name for name, _ in Counter(run.hardware for run in runs if run.hardware is not None).most_common()]


def _small_lines(stage: _Stage, usual: str | None) -> list[tuple[str, str]]:
    """What stands below a stage's time: texts at the left and at the right."""
    lines = [(stage.rows, stage.peak_memory or "")]
    if len(stage.rows + lines[0][1]) >= _LETTERS:
        lines = [(text, "") for text in lines[0]]
    if len(stage.times) > 1:
        seconds, run = max(stage.times, key=lambda timed: timed[0])
        longest = f"longest {duration(seconds)}:"
        row = run.row or ""
        together = f"{longest} {row}"
        texts = [together] if len(together) <= _LETTERS else [longest, row]
        lines += [(_shortened(text), "") for text in texts]
    if 0 < len(stage.times) < len(stage.runs):
        lines.append((f"{count(len(stage.times))} of {count(len(stage.runs))} recorded", ""))
    hardware = _hardware(stage.runs)
    if len(hardware) > 1:
        lines.append((f"on {len(hardware)} kinds of machines", ""))
    elif hardware and hardware[0] != usual:
        lines.append((_shortened(f"on {hardware[0]}"), ""))
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _tooltip(stage: _Stage, total: float, edges: dict[Edge, int]) -> str:
    """All that is recorded of a stage, a line each."""
    time, share = stage.wall_time(total)
    read = [
        f"{files} {'file' if files == 1 else 'files'} of {_in_words(maker)}"
        for (maker, reader), files in edges.items()
        if reader == stage.name
    ]
    return "\n".join(
        [
            f"{stage.title}: {time}" + (f", {share} of the wall time that is recorded" if share else ""),
            *([stage.peak_memory.replace("peak", "peak memory")] if stage.peak_memory else []),
            *_hardware(stage.runs),
            *([f"reads {', '.join(read)}"] if read else []),
            *(
                f"{run.row}: {'not recorded' if run.wall_seconds is None else duration(run.wall_seconds)}"
                for run in stage.runs
                if run.row is not None
            ),
        ]
    )


def _node(
    stage: _Stage,
    *,
    left: float,
    top: float,
    height: float,
    total: float,
    lines: Sequence[tuple[str, str]],
    tooltip: str,
) -> Markup:
    """A stage's box with its texts, linked."""
    start, end = left + _PADDING, left + _WIDTH - _PADDING
    time, share = stage.wall_time(total)
    parts = [
        Markup("<title>{}</title>").format(tooltip),
        _rectangle("box", left, top, _WIDTH, height),
        _text(start, top + _NAME, stage.title, "name"),
        _text(start, top + _TIME, time, "time" if stage.times else "small"),
        _text(end, top + _TIME, share, "small", end=True),
    ]
    if stage.times and total:
        parts.append(_rectangle("track", start, top + _BAR, end - start, 4))
        parts.append(_rectangle("share", start, top + _BAR, (end - start) * stage.seconds / total, 4))
    for number, (first, last) in enumerate(lines):
        parts.append(_text(start, top + _SMALL + number * _LINE, first, "small"))
        parts.append(_text(end, top + _SMALL + number * _LINE, last, "small", end=True))
    return Markup('<a class="chain-node chain-{}" href="#run-{}">{}</a>').format(
        "recorded" if stage.times else "unrecorded", stage.runs[0].name.replace("@", "-"), Markup("").join(parts)
    )


def _rectangle(kind: str, left: float, top: float, width: float, height: float) -> Markup:
    return Markup('<rect class="chain-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{:.0f}"/>').format(
        kind, left, top, width, height, 5 if kind == "box" else 2
    )


def _text(x: float, y: float, text: str, kind: str, *, end: bool = False) -> Markup:
    if not text:
        return Markup("")
    return Markup('<text class="chain-{}" x="{:.1f}" y="{:.1f}"{}>{}</text>').format(
        kind, x, y, Markup(' text-anchor="end"' if end else ""), text
    )


def _paths(placement: Placement, heights: dict[str, float]) -> dict[Edge, str]:
    """Every edge as a path with an arrow head: from the maker's right along its lanes to the reader's left."""
    centres, columns = placement.centres, placement.columns
    before = {edge: lanes[-1][1] if lanes else centres[edge[0]] for edge, lanes in placement.lanes.items()}
    paths = {}
    for (maker, reader), lanes in placement.lanes.items():
        # Arrows enter a node side by side, in the order in which they come.
        entering = sorted((edge for edge in before if edge[1] == reader), key=lambda edge: (before[edge], edge))
        place_of = (entering.index((maker, reader)) + 1) / (len(entering) + 1)
        x, y = _left(columns[maker]) + _WIDTH, _MARGIN + centres[maker]
        path = f"M{x:.1f} {y:.1f}"
        for column, lane in lanes:
            path += _curve(x, y, _left(column), _MARGIN + lane)
            x, y = _left(column) + _WIDTH, _MARGIN + lane
            path += f"H{x:.1f}"
        end, entry = _left(columns[reader]), _MARGIN + centres[reader] + (place_of - 0.5) * heights[reader]
        path += _curve(x, y, end, entry)
        paths[maker, reader] = f"{path}m-5 -3.5l5 3.5l-5 3.5"
    return paths


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    middle = (x + to_x) / 2
    return f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"


def _left(column: int) -> float:
    return _MARGIN + column * (_WIDTH + _GAP)


def _highlight(number: int) -> str:
    """The rule by which a stage that is pointed at shows its edges."""
    pointed = f".chain-svg:has(.chain-node:nth-of-type({number + 1}):is(:hover,:focus-visible))"
    return f"{pointed} :is(.chain-from-{number},.chain-to-{number}){{opacity:1;stroke:var(--ink)}}\n"


def _in_a_sentence(stages: Sequence[_Stage], total: float) -> str:
    """What the drawing shows, for those who do not see it."""
    runs = sum(len(stage.runs) for stage in stages)
    recorded = sum(len(stage.times) for stage in stages)
    text = (
        f"The study's {len(stages)} stages from left to right, each joined to those whose files it read. "
        f"{count(recorded)} of {count(runs)} runs are recorded"
    )
    if not recorded:
        return f"{text}."
    longest = max(stages, key=lambda stage: stage.seconds)
    return (
        f"{text}, with {duration(total)} of wall time; {longest.title} took the longest, {duration(longest.seconds)}."
    )
