"""``fvq evaluate --compare``."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from fvq.cli.figures import number_in_words
from fvq.evaluate.record import Row, compare, read_record

_LACKING = "–"


def print_comparison(first_path: Path, second_path: Path) -> None:
    """Print the figures of two records of one protocol beside each other, with their differences.

    Raises:
        UserError: a file holds no record, or they are of different protocols.
    """
    first, second = read_record(first_path), read_record(second_path)
    rows = compare(first, second)
    with_spread = any(row.exceeds_spread is not None for row in rows)
    table = Table(
        "figure",
        Column(first.name, overflow="fold", justify="right"),
        Column(second.name, overflow="fold", justify="right"),
        Column("difference", justify="right"),
        *(["beyond spread"] if with_spread else []),
        box=SIMPLE,
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*_cells(row)[: len(table.columns)])
    protocol = first.protocol
    print(
        f"protocol {protocol['protocol']}, {protocol['protocol_extractor']}: {protocol['protocol_images']} images "
        f"against {protocol['protocol_reference']}"
    )
    Console(markup=False, highlight=False).print(table)
    if with_spread:
        print("beyond spread: |difference| > 2 sqrt(a² + b²), standard deviations a and b")


def _cells(row: Row) -> list[str]:
    """A row of the table: name, both values, their difference, and whether it is more than their spreads."""
    first, second = _number(row.figure, row.first, row.first_spread), _number(row.figure, row.second, row.second_spread)
    difference = _LACKING
    if row.difference is not None:
        decimals = min(_decimals(first), _decimals(second))  # no more than the figures beside it
        difference = f"{row.difference:+,.{decimals}f}"
    beyond = {None: _LACKING, True: "yes", False: "no"}[row.exceeds_spread]
    return [
        row.figure,
        first,
        second,
        difference,
        beyond,
    ]


def _number(figure: str, value: float | int | None, spread: float | None) -> str:
    return _LACKING if value is None else number_in_words(figure, value, spread).removesuffix(" dB")


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])
