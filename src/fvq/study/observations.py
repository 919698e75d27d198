"""What the small experiments show, in sentences made from their figures alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fvq.runtime.text import count, expected, percent, significant, uniform_ceiling
from fvq.study.experiments import SizeCurve, Trajectory
from fvq.study.history import Stability, Window
from fvq.study.results import Study, TokenizerRow
from fvq.study.runs import StageRun
from fvq.study.settings import differences
from fvq.study.tables.cells import ABSENT, Cell


@dataclass(frozen=True)
class UsageWay:
    """One way to count usage, a cell for each row.

    ``sample`` are the tokens with their ceiling where all rows share them; else they stand in the cells.
    """

    heading: str
    sample: str
    cells: tuple[Cell, ...]


def paths(trajectories: Sequence[Trajectory]) -> str:
    """How long and how bent each path is."""
    each = [
        f"{significant(run.path_ratio)} times the straight distance, turning {run.turning_net:.0f}° ({run.name})"
        for run in trajectories
    ]
    return f"Here z_e travels {'; '.join(each)}."


def faster_codebook(trajectories: Sequence[Trajectory]) -> str:
    """Whether plain VQ with something changed goes straight too: with less than half of plain VQ's detour.

    Plain VQ is the first run with the word VQ in its name; what is changed follows that name: ``plain VQ with ...``.
    '' where there are not both.
    """
    plain = next((run for run in trajectories if re.search(r"\bvq\b", run.name, re.IGNORECASE)), None)
    changed = [run for run in trajectories if plain and run.name.startswith(f"{plain.name} ")]
    if plain is None or not changed:
        return ""
    straight = [run.name for run in changed if run.path_ratio - 1 < (plain.path_ratio - 1) / 2]
    if not straight:
        return f"Without a projector the path stays bent: {_listed([run.name for run in changed])}."
    return (
        f"The straight path needs no projector, see {_listed(straight)}: what the toy shows is a codebook that moves "
        "faster than the encoder's output, not the attention between codes."
    )


def map_usage(study: Study) -> str:
    """Usage of each mapped row."""
    labels = {row.name: row.label for row in study.rows}
    return "Here: " + ", ".join(f"{labels[drawn.row]} {percent(drawn.usage)}" for drawn in study.code_maps) + "."


def map_samples(study: Study) -> str:
    """What usage on the maps was counted over, and how many points they show."""
    counted = {(drawn.tokens, drawn.ceiling) for drawn in study.code_maps}
    features = max(len(drawn.feature_xy) for drawn in study.code_maps)
    codes = max(len(drawn.code_xy) for drawn in study.code_maps)
    samples = " or ".join(f"{count(tokens)} tokens, ceiling {expected(share)}" for tokens, share in sorted(counted))
    return (
        f"Usage is of all codes, counted over {samples}; drawn are at most {count(features)} features and "
        f"{count(codes)} codes."
    )


def size_order(curves: Sequence[SizeCurve]) -> str:
    """Where the loss ends for each size, and whether it falls with each larger codebook."""
    ends = [float(_last_third(curve.steps, curve.loss).mean()) for curve in curves]
    each = [f"{significant(end)} with {count(curve.codebook_size)}" for end, curve in zip(ends, curves, strict=True)]
    text = f"Mean loss in the last third of the steps: {', '.join(each)} codes"
    if len(ends) < 2:
        return f"{text}."
    falls = all(larger < smaller for smaller, larger in pairwise(ends))
    return f"{text}; it {'falls' if falls else 'does not fall'} with every larger codebook."


def annealing(study: Study) -> str:
    """Switched assignments late in training with annealing and without, for rows that differ in nothing else."""
    watched = [(row, row.history.stability) for row in study.rows if row.history.stability]
    pairs = [
        f"{_late_switches(seen)} of the tokens with {row.label}, {_late_switches(beside)} with {other.label}"
        for row, seen in watched
        for other, beside in watched
        if row.annealed and not other.annealed and differences(row, other) <= {"annealing"}
    ]
    return f"A step in the last third of the training switches on average {'; '.join(pairs)}." if pairs else ""


def bounds(study: Study) -> str:
    """Whether the margins' bounds held in every watched step, and how often 2δ_z alone would have failed."""
    watched = [(row, row.history.stability) for row in study.rows if row.history.stability]
    broken = int(sum(seen.bound_violations.sum() for _, seen in watched))
    text = "No token contradicted the bounds" if broken == 0 else f"{count(broken)} tokens contradicted the bounds"
    row, seen = max(watched, key=lambda entry: entry[1].switched_outside_margin_share.max())
    most = float(seen.switched_outside_margin_share.max())
    if most == 0:
        return f"{text}, and none switched with a margin above 2δ_z."
    return (
        f"{text}. Above 2δ_z, the margin that Eq. 28 names, up to {percent(most)} of the tokens switched in one step "
        f"({row.label}): the codes move as well, and 2(δ_z + δ_c) is what suffices."
    )


def usage_ways(study: Study) -> list[UsageWay]:
    """Usage as counted on the validation tokens, in the training's last window and in the literature's sliding one."""
    ways = []
    for heading, stage, windows in (
        ("Validation", "evaluate_tokenizer", [_validation(row) for row in study.rows]),
        ("Last window", "train_tokenizer", [row.history.last_window for row in study.rows]),
        ("Sliding window", "train_tokenizer", [row.history.sliding for row in study.rows]),
    ):
        cells = [
            _cell(window, row.settings["codebook_size"], study.run(stage, row.name))
            for row, window in zip(study.rows, windows, strict=True)
        ]
        samples = {cell.detail for cell in cells if cell.detail}
        if len(samples) == 1:
            ways.append(UsageWay(heading, samples.pop(), tuple(replace(cell, detail="") for cell in cells)))
        else:
            ways.append(UsageWay(heading, "", tuple(cells)))
    return ways


def _validation(row: TokenizerRow) -> Window:
    return Window(row.figures["usage"], int(row.figures["usage_tokens"]))


def _cell(window: Window | None, codebook_size: int, run: StageRun) -> Cell:
    if window is None:
        return Cell(ABSENT)
    ceiling = expected(uniform_ceiling(window.tokens, codebook_size))
    detail = f"{count(window.tokens)} tokens, ceiling {ceiling}"
    return Cell(percent(window.usage), detail, value=window.usage, run=run)


def _late_switches(seen: Stability) -> str:
    return percent(float(_last_third(seen.steps, seen.switched_share).mean()))


def _last_third(steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values[steps > steps[-1] * 2 / 3]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"“{name}”" for name in names)
