"""Signals by which schedulers take a machine back: the run saves its state and asks to be started again."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command will go on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A run stopped at a scheduler's signal, its state saved. Its text is one line; commands exit with status 75."""


@contextmanager
def signals_noted() -> Iterator[Callable[[], str | None]]:
    """Note SIGTERM and SIGUSR1 for the time of the block instead of dying of them.

    Yields a function that gives the name of the first one received, or None. Python hands signals to the main thread
    alone: in another, none is noted.
    """
    received: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
