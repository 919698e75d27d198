"""``fvq evaluate --compare``."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from fvq.evaluate.record import Row, compare, read_record
from fvq.runtime.text import supported

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
    difference = _LACKING
    if row.difference is not None:
        difference = _number(row.difference, row.difference_spread or row.first_spread or row.second_spread)
        difference = f"+{difference}" if row.difference > 0 else difference
    beyond = {None: _LACKING, True: "yes", False: "no"}[row.exceeds_spread]
    return [
        row.figure,
        _number(row.first, row.first_spread),
        _number(row.second, row.second_spread),
        difference,
        beyond,
    ]


def _number(value: float | int | None, spread: float | None) -> str:
    if value is None:
        return _LACKING
    return f"{value:,}" if isinstance(value, int) else supported(value, spread)
