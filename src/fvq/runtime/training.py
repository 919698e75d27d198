"""The one training loop: progress, history, checkpoints, exact resume."""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fvq.runtime.checkpoint import CheckpointFolder
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.progress import track
from fvq.runtime.seeds import seed_all

History = list[dict[str, float]]


class Stateful(Protocol):
    """What a checkpoint holds: modules, optimisers and counters all look like this."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def run_steps(
    step: Callable[[int], Mapping[str, Tensor | float]],
    *,
    total_steps: int,
    state: Mapping[str, Stateful],
    seed: int,
    log_every: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int = 500,
    summarize: Callable[[], Mapping[str, float]] | None = None,
    description: str = "training",
) -> History:
    """Call ``step(i)`` for i from 0 to ``total_steps - 1`` and return the history.

    ``step`` does one optimisation step and returns scalars by name. A row of the history holds ``step`` (steps done),
    the scalars' means since the row before, and what ``summarize()`` returns at that moment; where it keeps counts of
    its own, it resets them, and they belong into ``state``. Before each step torch's global random stream is set from
    (seed, i), so a step's dropout and augmentation follow from its number alone.

    Where a ``checkpoint_folder`` is given, everything in ``state`` and the history are saved every ``checkpoint_every``
    steps, and a run that finds such a state goes on from it: on the CPU the end result is bit-identical to an
    uninterrupted run's. The caller removes the folder once the result is safely written.

    Raises:
        UserError: a scalar became NaN or infinite (checked at each row of the history).
    """
    history: History = []
    sums: dict[str, float | Tensor] = {}
    counts: dict[str, int] = {}  # a term may start in the middle of a window
    first = 0
    checkpoints = CheckpointFolder(checkpoint_folder) if checkpoint_folder else None
    if checkpoints and (found := checkpoints.latest()):
        first, saved = found
        for name, part in state.items():
            part.load_state_dict(saved["state"][name])
        history, sums, counts = saved["history"], saved["sums"], saved["counts"]
    with track(description, total_steps, first) as advance:
        for index in range(first, total_steps):
            seed_all(seed, "step", index)
            for name, value in step(index).items():
                detached = value.detach() if isinstance(value, Tensor) else value
                sums[name] = sums[name] + detached if name in sums else detached
                counts[name] = counts.get(name, 0) + 1
            done = index + 1
            advance(1)
            if done % log_every == 0 or done == total_steps:
                means = {name: float(total) / counts[name] for name, total in sums.items()}
                for name, mean in means.items():
                    if not math.isfinite(mean):
                        raise UserError(
                            f"{description}: {name} is {mean} at step {done}; a smaller learning rate may help"
                        )
                history.append({"step": done, **means, **(summarize() if summarize else {})})
                sums, counts = {}, {}
            if checkpoints and done % checkpoint_every == 0 and done < total_steps:
                parts = {name: part.state_dict() for name, part in state.items()}
                checkpoints.save(done, {"state": parts, "history": history, "sums": sums, "counts": counts})
    return history


def write_history(path: Path | str, history: History) -> None:
    """The history as CSV, one row a line; numbers in their shortest exact form."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
