"""``fvq plan``."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from fvq.cli.output import check_output, tell_written
from fvq.config import Parameters, load_parameters
from fvq.plan.devices import GPUS
from fvq.plan.images import count_images
from fvq.plan.measure import Measurement, measure_row
from fvq.plan.plan import Plan, plan_study
from fvq.plan.records import as_records
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_json
from fvq.runtime.text import significant

_UNITS = {"GB": 1e9, "MB": 1e6}


def print_plan(
    path: Path,
    *,
    rows: Sequence[str],
    gpu: str | None,
    utilization: float,
    images: int | None,
    measure: bool,
    out: Path | None,
    force: bool,
) -> None:
    """Print what the study of the parameters at ``path`` costs, or with ``out`` "-" print it as JSON alone."""
    use_cores()
    to_screen = out == Path("-")
    if not 0 < utilization <= 1:
        raise UserError(f"--utilization: must be above 0 and at most 1, not {utilization:g}")
    if out and not to_screen:
        check_output(out, (".json",), force=force)
    parameters = load_parameters(path)
    gpus = [gpu] if gpu else list(GPUS)
    plan = plan_study(parameters, count_images(parameters, path.parent, images), rows)
    records = as_records(plan, gpus, utilization)
    measurements = _measure(parameters, plan, everything=bool(rows)) if measure else []
    records["measurements"] = [asdict(measurement) for measurement in measurements]
    if to_screen:
        print(json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False))
        return
    _print_tables(records, gpus)
    _print_measurements(measurements)
    if out:
        write_json(out, records)
        tell_written(out, f"{len(plan.rows)} row{'s' if len(plan.rows) > 1 else ''}")


def _measure(parameters: Parameters, plan: Plan, *, everything: bool) -> list[Measurement]:
    """Of all rows, or of the first tokenizer and the first generator."""
    first = {row.kind: row for row in reversed(plan.rows)}
    chosen = plan.rows if everything else [first[kind] for kind in ("tokenizer", "generator") if kind in first]
    measurements = []
    for row in chosen:
        print(f"timing steps of {row.kind} {row.row}", file=sys.stderr, flush=True)
        measurements.append(measure_row(parameters, row, plan.images, best_device()))
    return measurements


def _print_tables(records: dict[str, Any], gpus: Sequence[str]) -> None:
    console = Console(markup=False, highlight=False)
    console.print(
        f"study {records['study']}: {records['training_images']:,} training images; hours of one GPU at "
        f"{100 * records['utilization']:g} % of its peak"
    )
    hours = [f"{GPUS[gpu].title}\nhours" for gpu in gpus]
    rows: list[dict[str, Any]] = records["rows"]
    unit = "GB" if max(row["memory_total"] for row in rows) >= _UNITS["GB"] else "MB"
    _print_table(
        "Training",
        ["steps", "batch", "multiply-\nadds", *hours],
        rows,
        lambda row: [_steps(row), f"{row['batch_size']:,}", *_work(row, gpus)],
    )
    _print_table(
        f"Memory of a GPU in training, {unit}, and images that fit at once",
        [
            "weights",
            "gradients,\nAdam",
            "each\nimage",
            "other",
            "at the\nbatch",
            *(f"fit\n{GPUS[gpu].title}" for gpu in gpus),
        ],
        rows,
        lambda row: [*_memory(row, unit), *(_count(row[f"largest_batch_{gpu}"]) for gpu in gpus)],
    )
    parts = ("weights", "tokens", "images", "features", "total", "state")
    _print_table(
        f"Storage, {unit}; resume states are gone after training",
        ["weights", "tokens", "images", "features", "total", "resume\nstates"],
        rows,
        lambda row: [_size(row[f"storage_{part}"], unit) for part in parts],
    )
    console.print(f"features of reference images, for all rows: {_size(records['storage_references'], unit)} {unit}\n")
    _print_table(
        "All counted", ["multiply-\nadds", *hours], records["totals"], lambda total: _work(total, gpus), first="kind"
    )
    console.print(f"total: {_in_words(records, gpus, unit)}")
    notes = [f"{row['row']}: {row['note']}" for row in rows if row["note"]]
    for note in [*records["notes"], *notes]:
        console.print(f"note: {note}")


def _in_words(records: dict[str, Any], gpus: Sequence[str], unit: str) -> str:
    """The study's totals; GPUs that take the same hours share them."""
    total = records["totals"][-1]
    titles: dict[str, list[str]] = {}
    for gpu in gpus:
        titles.setdefault(_hours(total[f"hours_{gpu}"]), []).append(GPUS[gpu].title)
    hours = " or ".join(f"{number} {'/'.join(names)} hours" for number, names in titles.items())
    share, storage = 100 * records["utilization"], _size(records["storage_total"], unit)
    return f"{_exponent(total['multiply_adds'])} multiply-adds; {hours} at {share:g} % utilisation; {storage} {unit}"


def _print_measurements(measurements: Sequence[Measurement]) -> None:
    for one in measurements:
        against = "its data sheet" if one.peak_from == "data sheet" else "a large matrix product here"
        print(
            f"measured: {one.kind} {one.row}, {one.batch_size} images a step on {one.device}: "
            f"{significant(one.seconds_per_step)} s a step, {significant(one.flops_per_second / 1e12)} TFLOP/s, "
            f"utilization {significant(one.utilization)} against {against}; {_hours(one.hours)} hours here"
        )


def _print_table(
    title: str,
    columns: Sequence[str],
    records: Sequence[dict[str, Any]],
    cells: Callable[[dict[str, Any]], Sequence[str]],
    first: str = "row",
) -> None:
    """A line for each record, under its ``first``; of rows the tokenizers above the generators."""
    table = Table(
        Column(first, overflow="fold", min_width=14),
        *(Column(column, justify="right", no_wrap=True) for column in columns),
        title=title,
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    kind = None
    for record in records:
        if first == "row" and record["kind"] != kind:
            kind = record["kind"]
            table.add_section()
            table.add_row(f"[{kind}s]")
        table.add_row(record[first], *cells(record))
    Console(markup=False, highlight=False).print(table)


def _steps(row: dict[str, Any]) -> str:
    steps = f"{row['steps']:,}"
    return f"{row['runs']}×{steps}" if row["runs"] > 1 else steps


def _memory(row: dict[str, Any], unit: str) -> list[str]:
    learning = sum(row[f"memory_{part}"] for part in ("gradients", "optimizer", "average"))
    other = sum(row[f"memory_{part}"] for part in ("activations_constant", "quantizer", "search", "logits"))
    image = row["memory_activations_per_image"]
    return [_size(size, unit) for size in (row["memory_weights"], learning, image, other, row["memory_total"])]


def _work(record: dict[str, Any], gpus: Sequence[str]) -> list[str]:
    return [_exponent(record["multiply_adds"]), *(_hours(record[f"hours_{gpu}"]) for gpu in gpus)]


def _exponent(number: float) -> str:
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _hours(hours: float) -> str:
    return significant(hours) if hours >= 0.01 else "<0.01"


def _size(size: float, unit: str) -> str:
    return significant(size / _UNITS[unit]) if size else "–"


def _count(images: int) -> str:
    return f"{images:,}" if images < 10_000 else f"{images // 1000:,}k"
