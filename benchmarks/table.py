"""All ratios as one table: ``python benchmarks/table.py RESULTS.json [--markdown]``, results of ``make bench``."""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

COLUMNS = ("rival", "median time", "ratio", "to", "peak memory")
WIDTH = 132


@dataclass
class Row:
    """A rival of a case.

    Attributes:
        seconds: the median of each turn.
        peak_bytes: memory that the rival adds; None where it was not measured.
        rate: how much of what it does; None where the table does not give it per second.
        note: what else there is to say of its result.
    """

    base: str | None
    seconds: dict[int, float]
    peak_bytes: int | None = None
    rate: tuple[float, str] | None = None
    note: str | None = None


def main(results: Path, markdown: Annotated[bool, typer.Option(help="Write Markdown.")] = False) -> None:
    """Print one table of all benchmarks in RESULTS, a file of pytest-benchmark."""
    report = json.loads(results.read_text())
    cases = read(report["benchmarks"])
    if markdown:
        print(as_markdown(cases, machine(report["machine_info"])))
    else:
        # Narrower than this the names would break.
        Console(width=max(WIDTH, Console().width)).print(as_table(cases, machine(report["machine_info"])))


def read(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, Row]]:
    """Rows by case and rival, in the order in which they ran."""
    cases: dict[str, dict[str, Row]] = defaultdict(dict)
    for entry in benchmarks:
        info = entry["extra_info"]
        title = info["case"] + (" (GPU)" if info["device"] == "cuda" else "")
        new = Row(info["base"], {}, rate=info.get("rate"), note=info.get("note"))
        row = cases[title].setdefault(info["rival"], new)
        row.seconds[info["turn"]] = entry["stats"]["median"]
        row.peak_bytes = info.get("peak_bytes", row.peak_bytes)
    return cases


def cells(rival: str, row: Row, rows: dict[str, Row]) -> tuple[str, ...]:
    """What the table says of a rival: the ratio is the median over the turns, in brackets its range."""
    ratio = ""
    if row.base in rows:
        base = rows[row.base].seconds
        ratios = [seconds / base[turn] for turn, seconds in row.seconds.items() if turn in base]
        ratio = (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if rival != row.base else "1"
        )
    median = statistics.median(row.seconds.values())
    remarks = [row.note] if row.note else []
    if row.rate:
        amount, unit = row.rate
        remarks.append(f"{amount / median:,.0f} {unit}/s")
    name = f"{rival}: {', '.join(remarks)}" if remarks else rival
    return name, _time(median), ratio, row.base or "", _bytes(row.peak_bytes)


def machine(info: dict[str, Any]) -> str:
    """One line about where the figures come from."""
    parts = [
        f"{info['cpu'].get('brand_raw', info['machine'])}, {info['processors']} processors",
        "native bfloat16" if info["native_bfloat16"] else "no native bfloat16",
        f"{info['memory_bytes'] / 2**30:.0f} GiB",
        *([info["gpu"]] if info["gpu"] else []),
        f"{info['threads']} threads",
        f"torch {info['torch']}",
        f"Python {info['python_version']}",
    ]
    return "; ".join(parts) + (". REDUCED SIZES: no measurement" if info["tiny"] else "")


def as_table(cases: dict[str, dict[str, Row]], caption: str) -> Table:
    """For a terminal."""
    table = Table(*COLUMNS, caption=caption)
    for title, rows in cases.items():
        table.add_section()
        table.add_row(f"[bold]{title}")
        for rival, row in rows.items():
            table.add_row(*cells(rival, row, rows))
    return table


def as_markdown(cases: dict[str, dict[str, Row]], caption: str) -> str:
    """For benchmarks/README.md."""
    lines = [f"{caption}.", "", f"| {' | '.join(COLUMNS)} |", "|---|--:|--:|---|--:|"]
    for title, rows in cases.items():
        lines.append(f"| **{title}** | | | | |")
        lines += [f"| {' | '.join(cells(rival, row, rows))} |" for rival, row in rows.items()]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _bytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.0f} MB"


if __name__ == "__main__":
    typer.run(main)
