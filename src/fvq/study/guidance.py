"""A generator's figures against the scale of guidance, as the sweep left them: read, checked, put in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError
from fvq.runtime.text import count, significant
from fvq.study.columns import read_columns

_SHARES = ("precision", "recall")


@dataclass(frozen=True)
class Sweep:
    """Figures of one generator, float64 (scales,) each; every scale has ``samples`` images, the same random streams."""

    generator: str
    scales: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    samples: int

    @property
    def nearest(self) -> int:
        """The index of the scale with the smallest distance."""
        return int(self.distance.argmin())

    @property
    def highest(self) -> int:
        """The index of the scale with the highest score."""
        return int(self.score.argmax())


def read_sweep(path: Path, generator: str, *, distance: str, score: str) -> Sweep:
    """`guidance.csv` of a generator, with the columns ``distance`` and ``score``.

    Raises:
        UserError: the file is missing, damaged, lacks a number, or has one that cannot be.
    """
    names = ("cfg_scale", distance, score, *_SHARES, "samples")
    columns = read_columns(path, names)

    def check(wrong: npt.NDArray[np.bool_], name: str, rule: str) -> None:
        if wrong.any():
            line = int(wrong.argmax())
            raise UserError(f"{path}: line {line + 2}: {name} {rule}, not {columns[name][line]:g}")

    for name in names:
        check(np.isnan(columns[name]), name, "must be a number")
    check(columns["cfg_scale"] < 1, "cfg_scale", "must be at least 1")
    check(np.append(False, columns["cfg_scale"][1:] <= columns["cfg_scale"][:-1]), "cfg_scale", "must increase")
    check(columns[distance] < 0, distance, "must be at least 0")
    check(columns[score] <= 0, score, "must be above 0")
    for name in _SHARES:
        check((columns[name] < 0) | (columns[name] > 1), name, "must lie in 0 to 1")
    samples = columns["samples"]
    check((samples < 1) | (samples % 1 != 0), "samples", "must be a number of images")
    check(samples != samples[0], "samples", f"must be {samples[0]:g} as in the first line")
    return Sweep(
        generator=generator,
        scales=columns["cfg_scale"],
        distance=columns[distance],
        score=columns[score],
        precision=columns["precision"],
        recall=columns["recall"],
        samples=int(samples[0]),
    )


def images_in_words(sweeps: Sequence[Sweep]) -> str:
    """How many images each scale's figures stand on, and what follows from it."""
    numbers = " or ".join(count(number) for number in sorted({sweep.samples for sweep in sweeps}))
    return (
        f"{numbers} images a scale, the same classes and random streams at each. A Fréchet distance of few images lies "
        "above that of many, and scatters: it is not comparable with other figures, and small differences between "
        "scales say nothing."
    )


def nearest_in_words(sweep: Sweep, label: str, distance: str) -> str:
    """At which scale the distance is smallest, beside that of the first scale."""
    scale, value = sweep.scales[sweep.nearest], sweep.distance[sweep.nearest]
    text = f"{label}: {distance} is smallest at scale {scale:g} ({significant(value)}"
    if sweep.nearest == 0:
        return f"{text})."
    return f"{text}; {significant(sweep.distance[0])} at {sweep.scales[0]:g})."
