"""An evaluation as a person reads it: figures with the digits that they carry, their protocol, notes."""

import re

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from fvq.evaluate.record import SCHEMA, Record
from fvq.runtime.text import significant, supported

_DISTANCE = re.compile(r"(?P<pairs>r)?s?(fid|fd_)")
_BESIDE = ("spread", "std", "infinity")
_HASH_DIGITS = 16


def print_figures(record: Record) -> None:
    """Print the figures, then the facts that make them comparable; hashes are cut short, the file has them whole."""
    figures = Table("figure", Column("value", overflow="fold"), "images", box=SIMPLE, pad_edge=False)
    for name, value in record.figures.items():
        if not any(name == f"{other}_{ending}" for other in record.figures for ending in _BESIDE):
            figures.add_row(name, _in_words(record, name, value), _images(record, name), style="bold")
    facts = Table("protocol", Column("", overflow="fold"), box=SIMPLE, pad_edge=False)
    texts = {name: value for name, value in record.values.items() if isinstance(value, str)}
    for name in sorted(texts, key=lambda name: not name.startswith("protocol")):  # the other facts after them
        facts.add_row(name, f"{texts[name][:_HASH_DIGITS]}…" if name.endswith("_sha256") else texts[name])
    console = Console(markup=False, highlight=False)
    console.print(figures)
    console.print(facts)


def _in_words(record: Record, name: str, value: float | int) -> str:
    """A figure, its spread and its value for infinitely many images, where these are known."""
    spread = record.spread(name)
    text = number_in_words(name, value, spread)
    if spread is not None:
        text += f" ± {significant(spread, 1)}"
    infinity = record.figures.get(f"{name}_infinity")
    if infinity is not None:
        text += f" (infinitely many: {number_in_words(name, infinity, spread)})"
    return text


def number_in_words(name: str, value: float | int, spread: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if spread is not None:
        return supported(value, spread)
    unit = SCHEMA["properties"].get(name, {}).get("unit")
    if unit == "dB":
        return f"{value:.2f} dB"
    return f"{value:.4f}" if unit in ("share", "none") else significant(value, 4)


def _images(record: Record, name: str) -> str:
    """Beside a Fréchet distance the numbers of images that it stands on."""
    found = _DISTANCE.match(name)
    if found is None:
        return ""
    samples, reference = (
        f"{int(count):,}" if count.isdecimal() else "stored statistics"
        for count in (record.protocol["protocol_images"], record.protocol["protocol_reference_images"])
    )
    return f"{samples} pairs" if found["pairs"] else f"{samples} against {reference}"
