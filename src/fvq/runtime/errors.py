"""Errors that a person can mend, and how a command shows them."""

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fvq.runtime.interruption import REQUEUE_STATUS, Interrupted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the parameter or the file."""


def describe_validation_error(error: ValidationError, where: str, content: Any = None) -> str:
    """One line for a pydantic error: ``where`` and the dotted key of each complaint (the first three).

    ``content`` is what was validated. With it a key is as the user typed it; pydantic alone adds the names of a union's
    members.
    """
    complaints = error.errors(include_url=False)
    parts = [": ".join(filter(None, _key_and_message(complaint, content))) for complaint in complaints[:3]]
    more = len(complaints) - len(parts)
    return f"{where}: " + "; ".join(parts) + (f" (and {more} more)" if more > 0 else "")


def _key_and_message(complaint: "ErrorDetails", content: Any) -> tuple[str, str]:
    """The dotted key, empty for the whole, and what is wrong with it."""
    kind, details, value = complaint["type"], complaint.get("ctx", {}), complaint["input"]
    location = complaint["loc"] if content is None else _typed_location(complaint, content)
    if kind.startswith("union_tag_"):
        location = (*location, str(details["discriminator"]).strip("'"))
        value = details.get("tag")
    match kind:
        case "extra_forbidden":
            message = "is no known parameter"
        case "missing" | "union_tag_not_found":
            message = "is missing"
        case "value_error":
            message = complaint["msg"].removeprefix("Value error, ")
        case "union_tag_invalid":
            message = f"should be one of {details['expected_tags']}, not {value!r}"
        case "too_short":
            entries = "1 entry" if details["min_length"] == 1 else f"{details['min_length']} entries"
            message = f"should have at least {entries}, not {details['actual_length']}"
        case _:
            message = f"{_expectation(kind, complaint['msg'])}, not {textwrap.shorten(repr(value), 80)}"
    return ".".join(map(str, location)), message


def _typed_location(complaint: "ErrorDetails", content: Any) -> tuple[int | str, ...]:
    """The parts of the complaint's location that stand in ``content``, and the last one where it is missing there."""
    location = complaint["loc"]
    typed = []
    for part in location[:-1] if complaint["type"] == "missing" else location:
        try:
            content = content[part]
        except (LookupError, TypeError):
            continue
        typed.append(part)
    return (*typed, *location[-1:]) if complaint["type"] == "missing" else tuple(typed)


def _expectation(kind: str, message: str) -> str:
    """pydantic's message in the words of a YAML file."""
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "should be a mapping of keys to values"
    if kind in ("list_type", "tuple_type"):
        return "should be a list"
    if kind.endswith(("_parsing", "_from_float")):
        message = message.split(",")[0]
    return message[message.find("should ") :]


MENDABLE = (UserError, OSError, MemoryError)


def in_one_line(error: BaseException) -> str:
    """What is wrong, without a traceback: a mendable error in its own words, another with its type."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        text = ": ".join([*names[:1], error.strerror])
    elif isinstance(error, MENDABLE):
        text = str(error) or type(error).__name__
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn mendable errors into one line on standard error and exit status 1; ``FVQ_TRACEBACK=1`` shows where from.

    A run that a scheduler's signal stopped exits with status 75: the same command goes on. One whose reader has left
    (``fvq evaluate … | head``) exits with 1 and without a word.
    """
    try:
        yield
        sys.stdout.flush()
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(f"fvq: {stop}", file=sys.stderr)
        raise SystemExit(REQUEUE_STATUS) from None
    except MENDABLE as error:
        if os.environ.get("FVQ_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError):
            # What waits to be written would complain again when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        print(f"fvq: error: {in_one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
