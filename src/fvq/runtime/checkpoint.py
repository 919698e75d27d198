"""Resume states of interrupted runs. They live outside the stages' outputs and are keyed by a digest of the recipe."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file, write_atomically
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.processes import gather, in_any_process, is_first


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with anything in the (JSON-able) recipe."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_state(state: dict[str, Any], path: Path) -> None:
    """``torch.save``, whose RuntimeError on a full disk hides the OSError that it came from."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        cause = error.__context__
        raise (cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error))) from None


@contextmanager
def locked(folder: Path, does: str = "writes") -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made; UserError where one is in it and, so it says, ``does``.

    The lock ends with its process. File systems without locks are left without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Hidden: readers of Parquet take a folder's other files for tables.
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process {does} here at this moment; wait for it or stop it") from None
        except OSError:
            pass
        yield


@contextmanager
def locked_in_turn(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder``, which is made, and wait where one is in it; standard error says so once.

    A run's processes call this together, and the first holds the lock for them. The folder may be removed in the end.
    The lock ends with its process. File systems without locks are left without.

    Raises:
        Interrupted: SIGTERM or SIGUSR1 came to one of the processes while they waited.
    """
    with ExitStack() as held:
        with signals_noted() as signal_name:
            is_told = False
            # In turns of a second: a group gives up one long wait.
            while in_any_process(is_first() and not _try_lock(folder, held)):
                if is_first() and not is_told:
                    print(f"fvq: {folder}: another run is at work here; waiting for it", file=sys.stderr)
                    is_told = True
                if received := next(filter(None, gather(signal_name())), None):
                    raise Interrupted(f"{folder}: {received} received while another run is at work here")
                time.sleep(1)
        yield


def _try_lock(folder: Path, held: ExitStack) -> bool:
    """Whether ``held`` now holds the lock of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("w"))
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False  # the run before has removed the folder, and another may have made it anew
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:
            pass
        held.enter_context(opened.pop_all())
    return True


class CheckpointFolder:
    """The newest states of one run: ``step-00001500.pt`` with its SHA-256 beside it.

    A damaged newest state (a kill inside a write, a bad disk) falls back to the one before it and says so.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps; drop later ones, which are damaged, and all but the newest ``keep``."""
        path = self.folder / f"step-{step:08d}.pt"
        with write_atomically(path) as temporary:
            write_state(dict(state), temporary)
            digest = sha256_file(temporary)
        with write_atomically(path.with_suffix(".sha256")) as temporary:
            temporary.write_text(digest)
        for left in self.folder.glob(".step-*.tmp*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        later = [path for number, path in self._saved() if number > step]
        for old in later + [path for _, path in self._saved()[len(later) + self.keep :]]:
            old.unlink(missing_ok=True)
            old.with_suffix(".sha256").unlink(missing_ok=True)

    def latest(self, *, loud: bool = True) -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged (steps done, state), or None where there is none; ``loud`` says what is damaged."""
        saved = self._saved()
        for step, path in saved:
            digest = path.with_suffix(".sha256")
            if digest.is_file() and digest.read_bytes().strip() == sha256_file(path).encode():
                # Mapped: several processes on a machine hold it once.
                return step, torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            before = "going back to the state before it" if path != saved[-1][1] else "starting anew"
            if loud:
                print(f"fvq: {path} is damaged; {before}", file=sys.stderr)
        return None

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training in this folder, as by the function ``locked``."""
        return locked(self.folder, "trains")

    def clear(self) -> None:
        """Remove the folder: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.glob("step-*.pt"):
            match = re.fullmatch(r"step-(\d+)\.pt", path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)
