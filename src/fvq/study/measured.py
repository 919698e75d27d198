"""A measured figure with what its chance is, where that was measured."""

import math
import statistics
from dataclasses import dataclass

from fvq.runtime.text import significant, supported
from fvq.study.results import GeneratorRow, TokenizerRow


@dataclass(frozen=True)
class Measured:
    """One value for each seed, and the standard deviation that the choice of images gives the first, or None."""

    values: tuple[float, ...]
    image_spread: float | None = None

    @property
    def value(self) -> float:
        """The mean over seeds; the figure itself where there is one seed."""
        return statistics.fmean(self.values)

    @property
    def seed_spread(self) -> float | None:
        """The standard deviation over seeds; None where there is one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error_of_mean(self) -> float | None:
        """The standard deviation of the mean over seeds; None where there is one seed."""
        return None if self.seed_spread is None else self.seed_spread / math.sqrt(len(self.values))

    @property
    def spread(self) -> float | None:
        """The standard deviation to print: over seeds, where there is one seed over random halves of the images."""
        return self.image_spread if self.seed_spread is None else self.seed_spread

    @property
    def text(self) -> str:
        """The figure with its spread, no more digits than that supports: ``25.0 ± 0.4``."""
        shown = supported(self.value, self.spread).replace("-", "−")
        return shown if self.spread is None else f"{shown} ± {significant(self.spread, 1)}"


def measured(row: TokenizerRow | GeneratorRow, figure: str) -> Measured:
    """A row's figure of every seed that has it; generators have one."""
    values = row.values(figure) if isinstance(row, TokenizerRow) else [row.figures[figure]]
    return Measured(tuple(values), row.figures.get(f"{figure}_spread"))
