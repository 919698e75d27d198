"""The one training loop: progress, history, checkpoints, exact resume."""

import csv
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fvq.quantize.checks import NotFiniteError
from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.checkpoint import CheckpointFolder
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.processes import gather, in_any_process, is_first, is_orphaned, wait_for_all
from fvq.runtime.progress import track
from fvq.runtime.seeds import seed_all

Row = dict[str, float]
History = list[Row]


class Stateful(Protocol):
    """What a checkpoint holds: modules, optimisers and counters all look like this."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


class _Means:
    """Means of scalars by name; a name may come in late."""

    def __init__(self) -> None:
        self.sums: dict[str, float | Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor | float]) -> None:
        for name, value in scalars.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums[name] + detached if name in self.sums else detached
            self.counts[name] = self.counts.get(name, 0) + 1

    def figures(self) -> Row:
        """The means over all processes, each of which must ask."""
        values = [float(total) / self.counts[name] for name, total in self.sums.items()]
        if number_of_processes() > 1:
            joined = torch.tensor(values, dtype=torch.float64)
            dist.all_reduce(joined)
            values = (joined / number_of_processes()).tolist()
        return dict(zip(self.sums, values, strict=True))

    def state_dict(self) -> list[dict[str, Any]]:
        """Each process's part."""
        sums = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in self.sums.items()}
        return gather({"sums": sums, "counts": self.counts})

    def load_state_dict(self, parts: list[dict[str, Any]]) -> None:
        """Go on from this process's part; where their number differs from the saved one's, from none."""
        if len(parts) == number_of_processes():
            self.sums, self.counts = parts[process_number()]["sums"], parts[process_number()]["counts"]


def run_steps(
    step: Callable[[int], Mapping[str, Tensor | float]],
    *,
    total_steps: int,
    state: Mapping[str, Stateful],
    seed: int,
    log_every: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int | None = None,
    summarize: Callable[[], Mapping[str, float]] | None = None,
    on_row: Callable[[Row, bool], str | None] | None = None,
    images_per_step: int | None = None,
    description: str = "training",
) -> History:
    """Call ``step(i)`` for i from 0 to ``total_steps - 1`` and return the history.

    ``step`` does one optimisation step and returns scalars by name. A row of the history holds ``step`` (steps done),
    the scalars' means since the row before, over all processes, and what ``summarize()`` returns at that moment; where
    it keeps counts of its own, it resets them, and they belong into ``state``. Before each step torch's global random
    stream is set from (seed, i), so a step's dropout follows from its number alone.

    Where a ``checkpoint_folder`` is given, everything in ``state`` and the history are saved every ``checkpoint_every``
    steps (by default 200 times in all, but not more often than every 200 steps) and at the end, and a run that finds
    such a state goes on from it: on the CPU the end result is bit-identical to an uninterrupted run's. At SIGTERM or
    SIGUSR1 the state is saved after the present step. The caller removes the folder once the result is safely written.
    With several processes each calls this, the first one writes, and ``state_dict()`` and ``summarize()`` may compute
    together.

    ``on_row`` sees each row of the history and whether it is new: those of a resumed run come first. What it returns
    stands beside the progress bar, whose rate is in images where ``images_per_step`` is given, else in steps.

    Raises:
        UserError: a scalar became NaN or infinite (looked at for each row and before each checkpoint), ``step`` raised
            NotFiniteError, another process trains in the same folder.
        Interrupted: a signal came, or ``torchrun`` was killed, and the state is saved.
    """
    history: History = []
    means = _Means()
    first, parent, note = 0, os.getppid(), ""
    checkpoints = CheckpointFolder(checkpoint_folder) if checkpoint_folder else None
    every = checkpoint_every or max(200, total_steps // 200)
    with ExitStack() as stack:
        signal_name = stack.enter_context(signals_noted()) if checkpoints else lambda: None
        if checkpoints and is_first():
            stack.enter_context(checkpoints.locked())
        if checkpoints and (found := checkpoints.latest(loud=is_first())):
            first, saved = found
            for name, part in state.items():
                part.load_state_dict(saved["state"][name])
            history = saved["history"]
            means.load_state_dict(saved["means"])
        if len(set(gather(first))) > 1:
            raise UserError(
                f"{description}: the processes found different states in {checkpoint_folder}; is it shared?"
            )
        for row in history:
            note = (on_row(row, False) if on_row else None) or note

        last_saved = first

        def stop_on(problem: str, step: int) -> NoReturn:
            kept = f"; the state after step {last_saved} is kept in {checkpoint_folder}" if last_saved else ""
            raise UserError(
                f"{description}: {problem} at step {step}; a smaller learning rate may help{kept}"
            ) from None

        def check(figures: Row, step: int) -> None:
            for name, value in figures.items():
                if not math.isfinite(value):
                    stop_on(f"{name} is {value}", step)

        advance = stack.enter_context(
            track(
                description,
                total_steps,
                first,
                unit="images" if images_per_step else "steps",
                per_step=images_per_step or 1,
                hidden=not is_first(),
            )
        )
        for index in range(first, total_steps):
            done = index + 1
            seed_all(seed, "step", index)
            try:
                means.add(step(index))
            except NotFiniteError as problem:
                stop_on(str(problem), done)
            if done % log_every == 0 or done == total_steps:
                figures = means.figures()
                check(figures, done)
                row = {"step": done, **figures, **(summarize() if summarize else {})}
                history.append(row)
                note = (on_row(row, True) if on_row else None) or note
                means = _Means()
            advance(1, note)
            if not checkpoints:
                continue
            stopping = in_any_process(signal_name() is not None or is_orphaned(parent))
            if stopping or done % every == 0 or done == total_steps:
                check(means.figures(), done)
                parts = {name: part.state_dict() for name, part in state.items()}
                saved = {"state": parts, "history": history, "means": means.state_dict()}
                if is_first():
                    checkpoints.save(done, saved)
                last_saved = done
            if stopping and done < total_steps:
                wait_for_all()  # who leaves before the state is written takes the others along
                raise Interrupted(
                    f"{description}: {signal_name() or 'a signal to another process'} received; saved after step "
                    f"{done} of {total_steps}, the same command goes on from there"
                )
    return history


def write_history(path: Path | str, history: History) -> None:
    """The history as CSV, one row a line; numbers in their shortest exact form."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
