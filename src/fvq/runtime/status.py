"""What a study's stages are doing, as small files that anyone may read: who runs, how far, what went wrong.

A stage's process keeps one record while it works and removes it when it is done; one that was interrupted or failed
stays, until the stage runs again. A record is written every ten seconds, so that one which has not been for a minute is
of a process that was killed (or hangs, or whose disk is full). Times are those of the writer's clock, compared with the
reader's: clocks may differ by some seconds. Where they differ by a minute, records of running stages look lost, or
those of killed ones running for so much longer.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fvq.runtime.errors import MENDABLE, in_one_line
from fvq.runtime.files import write_json
from fvq.runtime.interruption import REQUEUE_STATUS, Interrupted
from fvq.runtime.progress import Standing, latest_standing

_HEARTBEAT_SECONDS = 10.0
_SILENCE = timedelta(seconds=60)
_LONGEST_MESSAGE = 500

RecordedState = Literal["running", "interrupted", "failed"]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Record(_File):
    """What one stage does, or how its last run ended; see ``status_record``."""

    stage: str
    row: str | None
    state: RecordedState
    started_at: AwareDatetime
    updated_at: AwareDatetime
    host: str
    process: int
    job: str | None
    log: str | None
    progress: Standing | None
    message: str | None

    @property
    def name(self) -> str:
        """``stage@row``, or the stage alone where it runs once."""
        return self.stage if self.row is None else f"{self.stage}@{self.row}"

    def state_at(self, now: datetime) -> RecordedState | Literal["lost"]:
        """The state; ``lost`` where a running process has not been heard of for a minute."""
        return "lost" if self.state == "running" and now - self.updated_at > _SILENCE else self.state


class Queue(_File):
    """The stages that a process, the head of a study, is going to run."""

    written_at: AwareDatetime
    host: str
    process: int = Field(gt=0, lt=2**31)
    stages: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether the head is known to be gone: asked of this machine's processes, others' are taken to live."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            return False
        return False


class Waiting(_File):
    """The stages whose jobs wait in the scheduler's queue, as the head saw it."""

    seen_at: AwareDatetime
    stages: tuple[str, ...]


@contextlib.contextmanager
def status_record(
    path: Path, *, stage: str, row: str | None, job: str | None = None, log: str | None = None
) -> Iterator[None]:
    """Keep a record of the block's work at ``path``: state, process, and how far the latest ``track`` is.

    It is there at once and is written again every ten seconds. A normal end, also by ``SystemExit`` without a status,
    removes it. ``Interrupted``, Ctrl-C and the status of an interrupted run leave ``interrupted``, other errors
    ``failed`` with one line about them. Where the record cannot be written, a line on standard error says so, and the
    work goes on.

    Args:
        path: ``<stage>.json`` or ``<stage>@<row>.json`` in the study's folder of records.
        job: the scheduler's name of the job.
        log: path of the file where the output goes.
    """
    keeper = _Keeper(path, stage, row, job, log)
    try:
        yield
    except BaseException as error:
        state, message = _ending(error)
        keeper.end(state, message)
        raise
    keeper.end(None, None)


def write_queue(path: Path, stages: Sequence[str]) -> None:
    """Tell which ``stages`` this process is going to run, by names such as ``train_tokenizer@fvq``.

    Raises:
        OSError: it cannot be written.
    """
    queue = Queue(written_at=_now(), host=socket.gethostname(), process=os.getpid(), stages=tuple(stages))
    write_json(path, queue.model_dump(mode="json"))


def remove_queue(path: Path) -> None:
    """Tell that the head has come to its end."""
    path.unlink(missing_ok=True)


def write_waiting(path: Path, stages: Sequence[str]) -> None:
    """Tell which ``stages`` have jobs that wait in the scheduler's queue now.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, Waiting(seen_at=_now(), stages=tuple(stages)).model_dump(mode="json"))


def read_records(folder: Path) -> dict[str, Record]:
    """The records of a folder by the stages' names; a damaged one, or another file, is none."""
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]  # half-written: hidden
    return {record.name: record for path in paths if (record := _read(path, Record))}


def read_queue(path: Path) -> Queue | None:
    """The queue; None where there is none, or a damaged one."""
    return _read(path, Queue)


def read_waiting(path: Path) -> Waiting | None:
    """What ``write_waiting`` wrote; None where there is none, or a damaged one."""
    return _read(path, Waiting)


_F = TypeVar("_F", bound=_File)


def _read(path: Path, kind: type[_F]) -> _F | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class _Keeper:
    """Writes a record now and every few seconds, in a thread of its own, until its end is told."""

    def __init__(self, path: Path, stage: str, row: str | None, job: str | None, log: str | None) -> None:
        now = _now()
        self._path, self._complained = path, False
        self._record = Record(
            stage=stage,
            row=row,
            state="running",
            started_at=now,
            updated_at=now,
            host=socket.gethostname(),
            process=os.getpid(),
            job=job,
            log=log,
            progress=None,
            message=None,
        )
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._write()
        threading.Thread(target=self._beat, name="status record", daemon=True).start()

    def end(self, state: RecordedState | None, message: str | None) -> None:
        """Write the last ``state``, or remove the record where there is none; nothing is written after it."""
        self._ended.set()
        with self._lock:  # a heartbeat that is being written comes before
            if state is None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
            else:
                self._write(state, message)

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            with self._lock:
                if not self._ended.is_set():
                    self._write()

    def _write(self, state: RecordedState = "running", message: str | None = None) -> None:
        try:
            # How far it was when it ended, its tracks left already, the last heartbeat knows.
            progress = latest_standing() if state == "running" else self._record.progress
            changes = {"state": state, "message": message, "updated_at": _now(), "progress": progress}
            self._record = self._record.model_copy(update=changes)
            write_json(self._path, self._record.model_dump(mode="json"))
        except Exception as error:  # whatever it is, the work is worth more
            if not self._complained:
                self._complained = True
                with contextlib.suppress(OSError, ValueError):  # standard error may be on that disk, or closed
                    print(f"fvq: note: no record of this run is kept for fvq status ({error})", file=sys.stderr)


def _ending(error: BaseException) -> tuple[RecordedState | None, str | None]:
    """The state that ``error`` leaves, None where it is none, and one line about it."""
    if isinstance(error, SystemExit):
        if not error.code:
            return None, None
        if isinstance(error.__context__, (Interrupted, *MENDABLE)):  # which a command has told, and made a status of
            return _ending(error.__context__)
        return ("interrupted" if error.code == REQUEUE_STATUS else "failed"), f"exit status {error.code}"
    if isinstance(error, Interrupted):
        return "interrupted", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "Ctrl-C"
    return "failed", _message(error)


def _message(error: BaseException) -> str:
    line = in_one_line(error)
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 1]}…"
