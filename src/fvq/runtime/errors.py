"""Errors that a person can mend, and how a command shows them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the parameter or the file."""


def describe_validation_error(error: ValidationError, where: str) -> str:
    """One line for a pydantic error: ``where`` and the dotted key of each complaint (the first three)."""
    complaints = error.errors(include_url=False)
    parts = []
    for complaint in complaints[:3]:
        key = ".".join(str(part) for part in complaint["loc"]) or "(top level)"
        message = complaint["msg"].removeprefix("Value error, ")
        if complaint["type"] == "extra_forbidden":
            message = "is no known parameter"
        elif complaint["type"] == "missing":
            message = "is missing"
        else:
            message = f"{message[0].lower()}{message[1:]}"
            if not isinstance(complaint["input"], dict):
                message += f", not {complaint['input']!r}"
        parts.append(f"{key}: {message}")
    more = len(complaints) - len(parts)
    return f"{where}: " + "; ".join(parts) + (f" (and {more} more)" if more > 0 else "")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn mendable errors into one line on standard error and exit status 1; ``FVQ_TRACEBACK=1`` shows where from."""
    try:
        yield
    except (UserError, OSError, MemoryError) as error:
        if os.environ.get("FVQ_TRACEBACK"):
            raise
        if isinstance(error, UserError):
            text = str(error)
        elif isinstance(error, OSError) and error.strerror:
            names = [str(name) for name in (error.filename, error.filename2) if name]
            text = ": ".join([*names[:1], error.strerror])
        else:
            text = str(error) or type(error).__name__
        print("fvq: error: " + " ".join(text.split()), file=sys.stderr)
        raise SystemExit(1) from None
