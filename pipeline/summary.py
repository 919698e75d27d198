"""``python -m pipeline.summary``: the finished study's figures, and where the report is."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fvq.runtime.errors import one_line_errors
from fvq.runtime.files import read_json

_REPORTS = Path("reports")


def main() -> None:
    """Print a line a row, then the report's place."""
    figures = read_json(_REPORTS / "metrics.json")
    rows = dict.fromkeys(key.rsplit(".", 1)[0] for key in figures)
    names = dict.fromkeys(key.rsplit(".", 1)[1] for key in figures)
    table = Table("row", *names, box=None)
    for row in rows:
        values = (figures.get(f"{row}.{name}") for name in names)
        table.add_row(row, *("" if value is None else f"{value:.4g}" for value in values))
    console = Console()
    console.print(table)
    console.print(f"The report: {(_REPORTS / 'index.html').resolve()}", soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
