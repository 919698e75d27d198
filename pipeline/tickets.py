"""Tickets and receipts: why Snakemake runs a stage, and how one knows that its job ran to the end.

A *ticket* is a small file in DVC's own ignored folder. It holds the stage's recipe, a digest of all that its outputs
follow from, and is an input of its Snakemake rule. A fresh stage's ticket is dated 1970, so it never asks for a run; a
stale one's is dated now, so it does. A job that succeeds leaves a *receipt*: the ticket as it was when the job started,
and the hash of its ``provenance.json``, which no other run writes.
"""

import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fvq.runtime.files import sha256_file, write_atomically

FOLDER = Path(".dvc/tmp/tickets")
STATE_VARIABLE = "FVQ_STATE_NOTE"  # names the file in which a stage notes the folder of its resume state
_NEVER = 1  # seconds since 1970: older than any output


def ticket(name: str) -> Path:
    """The ticket of a stage, such as ``train_tokenizer@fvq``."""
    return FOLDER / name


def receipt(name: str) -> Path:
    """The receipt of a stage's last job."""
    return FOLDER / f"{name}.receipt"


def state(name: str) -> Path:
    """The note of where a stage's resume state lies, from its end until it has a receipt."""
    return FOLDER / f"{name}.state"


def drop_state(name: str) -> None:
    """Remove the resume state that a stage's note names: with the receipt, nothing needs it."""
    note = state(name)
    if note.exists():
        shutil.rmtree(note.read_text(encoding="utf-8"), ignore_errors=True)
        note.unlink()


def earlier_jobs(name: str) -> Path:
    """The jobs that an earlier ``snakemake`` left at work on the stage, one a line; absent where there are none."""
    return FOLDER / f"{name}.jobs"


@contextmanager
def turn(name: str) -> Iterator[tuple[IO[str], bool]]:
    """Keep other jobs from the stage, and wait where one is at work on it.

    Yields the file that is locked, whose lock a process that inherits it keeps, too, and whether it had to wait. File
    systems without locks are left without.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"fvq: {name}: another process is at work on it; waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        except OSError:
            pass
        yield file, waited


def at_work() -> list[str]:
    """The stages that a process is at work on, here or on a node, as far as the file system tells by locks."""
    busy = []
    for path in sorted(FOLDER.glob("*.lock")):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy.append(path.stem)
            except OSError:
                pass
    return busy


def recipe(name: str) -> str:
    """The recipe that a stage's ticket carries, empty where there is no ticket."""
    return ticket(name).read_text(encoding="utf-8").split(" ")[0] if ticket(name).exists() else ""


def write_receipt(name: str, held_ticket: str, files: Iterable[str]) -> None:
    """Tell that a job which started on this ticket has made these files."""
    records = [f"{sha256_file(path)}  {path}\n" for path in files if Path(path).name == "provenance.json"]
    with write_atomically(receipt(name)) as temporary:
        temporary.write_text("".join([held_ticket, *records]), encoding="utf-8")


def has_receipt(name: str) -> bool:
    """Whether a job ran to its end on the present ticket, and nothing has put back another run's files since."""
    if not (ticket(name).exists() and receipt(name).exists()):
        return False
    held = receipt(name).read_text(encoding="utf-8").splitlines(keepends=True)
    return held[:1] == [ticket(name).read_text(encoding="utf-8")] and all(map(_is_there, held[1:]))


def _is_there(record: str) -> bool:
    digest, path = record.rstrip("\n").split("  ", 1)
    return Path(path).exists() and sha256_file(path) == digest


def issue(name: str, new_recipe: str, *, fresh: bool, renew: bool) -> None:
    """Write, date back or touch a stage's ticket.

    A stale stage with a receipt for its recipe keeps its ticket: its outputs are those of a finished job. Others get a
    new one with ``renew``, for when no job is at work: Snakemake takes the outputs that it puts back after a failure
    for those of the ticket that the failed job had.
    """
    path = ticket(name)
    known = recipe(name) == new_recipe and not (renew and not fresh and not has_receipt(name))
    if not known or (not fresh and path.stat().st_mtime <= _NEVER):
        # Snakemake compares small inputs by content: the second word makes each issue of a ticket new to it.
        with write_atomically(path) as temporary:
            temporary.write_text(f"{new_recipe} {secrets.token_hex(4)}\n", encoding="utf-8")
    elif not fresh and not has_receipt(name):
        # Outputs may be younger for other reasons, such as `dvc checkout`. The content stays: a job may be at work.
        path.touch()
    if fresh:
        os.utime(path, (_NEVER, _NEVER))
