"""``fvq evaluate``."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from fvq.cli.images import read_image_set
from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.images import check_images, check_same_size
from fvq.evaluate.load import load_extractor
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.files import write_json
from fvq.runtime.provenance import Stopwatch, write_provenance


def evaluate_images(
    samples_path: Path,
    reference_path: Path,
    extractor_path: Path,
    out: Path | None,
    *,
    size: int | None,
    batch_size: int,
    force: bool,
) -> None:
    """Print the figures of samples against reference images; write them, with a provenance record, where asked."""
    use_cores()
    stopwatch = Stopwatch()
    if out is not None:
        check_output(out, (".json",), force=force)
    extractor = load_extractor(extractor_path, best_device())
    samples = read_image_set(samples_path, size)
    reference = read_image_set(reference_path, size)
    for images, path in ((samples, samples_path), (reference, reference_path)):
        check_images(images, str(path), at_least=2)
    check_same_size(samples, str(samples_path), reference, str(reference_path))
    figures = evaluate_samples(
        samples, reference, extractor, reference=str(reference_path), seed=0, batch_size=batch_size
    )
    del figures["protocol_seed"]  # nothing is drawn here, and which seed the samples had is not known
    figures["protocol_samples"] = str(samples_path)
    crops = [str(path) for path in (samples_path, reference_path) if size and path.is_dir()]
    figures["protocol_crop"] = f"centre square at {size} pixels of {' and '.join(crops)}" if crops else "none"
    _print_table(figures)
    if out is None:
        return
    write_json(out, figures)
    tell_written(out, "these figures")
    write_provenance(
        provenance_path(out),
        stage="fvq evaluate",
        row=None,
        parameters={"samples": str(samples_path), "reference": str(reference_path), "size": size},
        inputs=[path for path in (samples_path, reference_path, extractor_path) if path.is_file()],
        outputs=[out],
        seed=0,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how they came about")


def _print_table(figures: dict[str, float | int | str]) -> None:
    table = Table("figure", Column("value", overflow="fold"), box=SIMPLE, pad_edge=False)
    for name, value in figures.items():
        if not isinstance(value, str):
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else f"{value:,}", style="bold")
    table.add_section()
    for name, value in figures.items():
        if isinstance(value, str):
            table.add_row(name, value)
    Console(markup=False, highlight=False).print(table)
