"""Progress on a terminal; a line now and then where the output is a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 30.0


@contextmanager
def track(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(count)``. A bar with rate and time left on a terminal, else a line every half minute."""
    console = Console(file=sys.stderr)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(description, total=total, completed=done)
            yield lambda count: progress.advance(task, count)
        return

    started = last = time.monotonic()
    first, position = done, done

    def advance(count: int) -> None:
        nonlocal last, position
        position += count
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS and position < total:
            last = now
            left = (now - started) / (position - first) * (total - position)
            print(f"{description}: {position}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance
