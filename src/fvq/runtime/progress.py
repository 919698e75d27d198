"""Progress on a terminal; a line now and then where the output is a file."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

_LINE_EVERY_SECONDS = 30.0
_RATE_OVER_SECONDS = 15.0


class Advance(Protocol):
    """What ``track`` yields: so many more are done; a note stays until the next one."""

    def __call__(self, count: float, note: str = "") -> None: ...


@dataclass(frozen=True)
class Standing:
    """How far something is: what is ``done`` of ``total``, both in ``unit`` (steps, images, or just counts).

    ``rate`` is empty and ``seconds_left`` None until something is done.
    """

    description: str
    done: float
    total: int
    unit: str | None
    rate: str
    note: str
    seconds_left: float | None

    def facts(self) -> str:
        """Position, rate, note and time left in one line."""
        position = f"{math.floor(self.done + 1e-6):,}/{self.total:,}" + (f" {self.unit}" if self.unit else "")
        left = "" if self.seconds_left is None else f"{duration(self.seconds_left)} left"
        return ", ".join(filter(None, (position, self.rate, self.note, left)))


def latest_standing() -> Standing | None:
    """How far the innermost ``track`` of this process is, unless it is hidden; None outside of any."""
    paces = _open[-1:]
    return paces[0].standing() if paces else None


@contextmanager
def track(
    description: str, total: int, done: int = 0, *, unit: str | None = None, per_step: int = 1, hidden: bool = False
) -> Iterator[Advance]:
    """Yield ``advance(count, note="")``. A bar on a terminal, else a line every half minute.

    Both tell what is done of ``total``, the rate over the last seconds, the time left at that rate, and the latest
    note; the bar the time passed, too.

    Args:
        description: what is being done.
        total: counts until the end.
        done: counts that an interrupted run did before; they are no part of the rate.
        unit: what the rate counts, such as ``images``.
        per_step: how many of them a count is; more than one calls the counts steps.
        hidden: print nothing, as all processes but the first must.
    """
    if hidden:
        yield lambda count, note="": None
        return
    pace = _Pace(description, total, done, unit, per_step)
    _open.append(pace)
    try:
        with _shown(pace) as advance:
            yield advance
    finally:
        _open.remove(pace)


@contextmanager
def _shown(pace: "_Pace") -> Iterator[Advance]:
    console = Console(file=sys.stderr)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), _PaceColumn(pace))
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(pace.description, total=pace.total, completed=int(pace.done))

            def move(count: float, note: str = "") -> None:
                pace.advance(count, note)
                progress.advance(task, count)

            yield move
        return

    last = time.monotonic()

    def tell(count: float, note: str = "") -> None:
        nonlocal last
        pace.advance(count, note)
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS and pace.done < pace.total:
            last = now
            print(f"{pace.description}: {pace.standing().facts()}", file=sys.stderr, flush=True)

    yield tell


def duration(seconds: float) -> str:
    """A time as people say it, in its two largest units: 38 s, 2 min 10 s, 3 h 12 min, 2 d 4 h."""
    whole, minutes, hours = (round(seconds / unit) for unit in (1, 60, 3600))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


class _Pace:
    """Counts what is done, and how fast."""

    def __init__(self, description: str, total: int, done: int, unit: str | None, per_step: int) -> None:
        self.description = description
        self.total, self.done, self.unit, self.per_step = total, float(done), unit, per_step
        self.note = ""
        self.started = self.now = time.monotonic()
        self._points = deque([(self.started, self.done)])  # times and what was done by then

    def advance(self, count: float, note: str) -> None:
        self.done += count
        self.note = note or self.note
        self.now = time.monotonic()
        # At thousands of counts a second, not a point for each.
        if self.now - self._points[-1][0] >= _RATE_OVER_SECONDS / 100:
            self._points.append((self.now, self.done))
        while len(self._points) > 2 and self.now - self._points[1][0] >= _RATE_OVER_SECONDS:
            self._points.popleft()

    def standing(self) -> Standing:
        """May be asked for in another thread."""
        per_second = self._per_second()
        return Standing(
            self.description,
            self.done,
            self.total,
            "steps" if self.per_step > 1 else self.unit,
            self._rate(per_second * self.per_step),
            self.note,
            max(0.0, self.total - self.done) / per_second if per_second else None,
        )

    def _rate(self, per_second: float) -> str:
        if not per_second:
            return ""
        number = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
        return f"{number} {self.unit}/s" if self.unit else f"{number}/s"

    def _per_second(self) -> float:
        then, done = self._points[0]
        return (self.done - done) / (self.now - then) if self.now > then else 0.0


_open: list[_Pace] = []  # of the tracks that are not at their end, in the order of their beginnings


class _PaceColumn(ProgressColumn):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        passed = f"{duration(time.monotonic() - self._pace.started)} so far"
        # Wrapped on a narrow terminal, and nothing cut off.
        return Text(f"{self._pace.standing().facts()}, {passed}")
