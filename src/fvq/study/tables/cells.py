"""Cells of tables: figures as texts with what belongs to them, no markup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fvq.runtime.text import count, expected, percent, significant, supported
from fvq.study.results import TokenizerRow
from fvq.study.runs import StageRun

ABSENT = "—"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: the figure, setting or label.
        detail: what goes with it: a spread, what it was counted over.
        rank: 1 for the best measured figure of a column, 2 for the second-best or what the paper underlines.
        value: the unrounded number; None where the text is no number.
        run: the stage whose result it is; None of settings and labels.
        further_runs: those of the other seeds where it is a mean.
        mark: superscript digits of the note that explains the cell, mostly nothing.
    """

    text: str
    detail: str = ""
    rank: int = 0
    value: float | None = None
    run: StageRun | None = None
    further_runs: tuple[StageRun, ...] = ()
    mark: str = ""


def figure_text(figures: Mapping[str, float], name: str) -> str:
    """A figure with three significant digits, or those that its spread supports where that was measured."""
    return _minus(supported(figures[name], figures.get(f"{name}_spread")))


def distance_cell(figures: Mapping[str, float], name: str) -> Cell:
    """A Fréchet distance with its spread over halves of the images and its extrapolation, where they were measured."""
    spread, infinity = figures.get(f"{name}_spread"), figures.get(f"{name}_infinity")
    details = [] if spread is None else [f"± {significant(spread, 1)}"]
    if infinity is not None:
        details.append(f"at ∞: {_minus(supported(infinity, spread))}")
    return Cell(figure_text(figures, name), "; ".join(details), value=figures[name])


def tokens_in_words(row: TokenizerRow) -> str:
    """What usage was counted over: ``256,000 tokens, ceiling 100%``, the ceiling that so many tokens allow."""
    return f"{count(row.figures['usage_tokens'])} tokens, ceiling {expected(row.figures['usage_ceiling'])}"


def codes_in_words(row: TokenizerRow) -> str:
    """How many codes a row uses, over its seeds, and of how many: ``1,022 to 1,024 of 1,024 codes``."""
    used = row.values("usage_codes")
    least, most = count(min(used)), count(max(used))
    return f"{least if least == most else f'{least} to {most}'} of {count(row.figures['codebook_size'])} codes"


def usage_cell(row: TokenizerRow) -> Cell:
    """Codebook usage, the mean over seeds, with ``tokens_in_words``."""
    mean, spread, counted = row.mean("usage"), row.seed_spread("usage"), tokens_in_words(row)
    if spread is None:
        return Cell(percent(mean), counted, value=mean)
    text = f"{supported(100 * mean, 100 * spread)}%"
    # Only exactly 1 reads 100%, and only exactly 0 reads 0%.
    text = percent(mean) if spread == 0 or text in ("100%", "0%") else text
    seeds = f"± {significant(100 * spread, 1)}%, {len(row.values('usage'))} seeds"
    return Cell(text, f"{seeds}; {counted}", value=mean)


def distance_over_seeds(row: TokenizerRow, name: str) -> Cell:
    """A Fréchet distance of a row: the mean and the spread over seeds, or as ``distance_cell`` where there is one."""
    return distance_cell(row.figures, name) if row.seed_spread(name) is None else _over_seeds(row, name)


def figure_over_seeds(row: TokenizerRow, name: str, text: Callable[[float], str]) -> Cell:
    """A figure of a row: the mean and the spread over seeds, or ``text`` of the figure where there is one."""
    values = row.values(name)
    if len(values) > 1:
        return _over_seeds(row, name)
    return Cell(text(values[0]), value=values[0]) if values else Cell(ABSENT)


def ranked(cells: Sequence[Cell], *, higher: bool) -> list[Cell]:
    """The cells of a column with the best and the second-best marked. What reads the same ranks the same."""
    values: dict[str, float] = {}
    for cell in cells:
        if cell.value is not None:
            values.setdefault(cell.text, cell.value)
    order = sorted(values, key=lambda text: values[text], reverse=higher)
    ranks = {text: rank for rank, text in enumerate(order[:2], 1)} if len(order) > 1 else {}
    return [cell if cell.value is None else replace(cell, rank=ranks.get(cell.text, 0)) for cell in cells]


def _over_seeds(row: TokenizerRow, name: str) -> Cell:
    mean, spread = row.mean(name), row.seed_spread(name)
    assert spread is not None
    detail = f"± {significant(spread, 1)}, {len(row.values(name))} seeds"
    return Cell(_minus(supported(mean, spread)), detail, value=mean)


def _minus(text: str) -> str:
    return text.replace("-", "−")
