"""How large the token tables are beside the least that their codes could take, as the stage cache_tokens left it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json

_NUMBERS = ("rows", "bytes", "bits_per_token", "entropy_bits_per_token", "index_bits")


@dataclass(frozen=True)
class TokenTableSize:
    """The table of one tokenizer's tokens; ``ratio`` is None where all codes are the same."""

    tokenizer: str
    rows: float
    bytes: float
    bits_per_token: float
    entropy_bits_per_token: float
    index_bits: float
    ratio: float | None


def read_token_tables(folder: Path, tokenizers: Iterable[str]) -> tuple[TokenTableSize, ...]:
    """`<tokenizer>/size.json` in ``folder`` of each of ``tokenizers`` that has one.

    Raises:
        UserError: a file is damaged, lacks a number, or has one that cannot be.
    """
    paths = {name: folder / name / "size.json" for name in tokenizers}
    return tuple(_read(path, name) for name, path in paths.items() if path.exists())


def _read(path: Path, tokenizer: str) -> TokenTableSize:
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold one object of figures, not {type(data).__name__}")
    for name in (*_NUMBERS, "ratio"):
        if name not in data:
            raise UserError(f"{path}: lacks {name}")
        value = data[name]
        if value is None and name == "ratio":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise UserError(f"{path}: {name} must be a number from 0, not {value!r}")
    return TokenTableSize(tokenizer, **{name: data[name] for name in (*_NUMBERS, "ratio")})
