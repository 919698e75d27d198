"""``fvq sample``."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.cli.study import Trained, trained_generator
from fvq.generate import SamplingSettings, class_labels
from fvq.generate.pairing import load_pair
from fvq.generate.parts import sample_many, write_samples
from fvq.runtime.checkpoint import recipe_digest
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.files import read_json, sha256_file, write_atomically
from fvq.runtime.parquet import KEY, unreadable_as_user_errors
from fvq.runtime.picture import draw_grid
from fvq.runtime.provenance import Stopwatch, library_versions, write_provenance
from fvq.tokenizer.inference import decode_tokens

_LARGEST_PICTURE = 1024
_MOST_COLUMNS = 16


def sample_images(
    source: tuple[Path, Path] | str | None,
    out: Path,
    *,
    wanted_class: str | None,
    names: Path | None,
    labels: Literal["balanced", "uniform"],
    count: int,
    seed: int,
    batch_size: int | None,
    precision: Literal["float32", "bfloat16"],
    force: bool,
    settings: Mapping[str, float],
) -> None:
    """Write a picture, or an archive with its provenance record, of ``count`` images; print what it holds.

    ``source`` is the files of generator and tokenizer, or the name of a generator of the study here, None its last.
    """
    use_cores()
    stopwatch = Stopwatch()
    check_output(out, (".png", ".npz"), force=force)
    as_picture = out.suffix.lower() == ".png"
    if as_picture and count > _LARGEST_PICTURE:
        raise UserError(f"--count: a picture holds at most {_LARGEST_PICTURE:,} images; let --out end in .npz")
    try:
        checked = SamplingSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "fvq sample")) from None
    found: Trained | None = None
    if isinstance(source, tuple):
        generator_path, tokenizer_path = source
    else:
        found = trained_generator(source)
        generator_path, tokenizer_path = found.generator, found.tokenizer
    device = best_device()
    model, tokenizer = load_pair(generator_path, tokenizer_path)
    classes = model.config.classes
    class_names = _class_names(generator_path, names, classes)
    if wanted_class is None:
        drawn = class_labels(count, classes, labels, seed)
        which = f"all {classes} classes in turn" if labels == "balanced" else f"any of {classes} classes"
    else:
        index = _class_index(wanted_class, class_names, classes)
        drawn = torch.full((count,), index)
        which = f"class {index}" + (f", {class_names[index]}" if class_names else "")
    if found:
        others = f"; --row takes another: {', '.join(found.others)}" if found.others else ""
        print(f"generator {found.name} of the study {found.study}{others}", flush=True)

    # The tokens drawn so far lie beside the output, named by all that they follow from, until it is written.
    recipe = {
        "generator": sha256_file(generator_path),
        "class": which,
        "count": count,
        "settings": checked.model_dump(),
        "precision": precision,
        "seed": seed,
        "device": str(device),
        "versions": library_versions(),
    }
    part_folder = out.with_name(f"{out.name}.{recipe_digest(recipe)}.parts")
    model.to(device, getattr(torch, precision))
    tokens = sample_many(model, drawn, checked, seed=seed, part_folder=part_folder, batch_size=batch_size)
    decode = partial(decode_tokens, tokenizer.to(device))
    if as_picture:
        every = class_names or [f"class {index}" for index in range(classes)]
        in_columns = wanted_class is None and labels == "balanced"
        with write_atomically(out) as temporary:
            _picture(decode(tokens), every if in_columns else []).save(temporary)
    else:
        write_samples(out, tokens, drawn, decode, image_size=tokenizer.config.image_size)
    shutil.rmtree(part_folder, ignore_errors=True)
    tell_written(out, f"{count} image{'s' if count > 1 else ''}, {which}")
    if as_picture:
        return
    write_provenance(
        provenance_path(out),
        stage="fvq sample",
        row=found.name if found else None,
        parameters={
            "class": which,
            "labels": labels if wanted_class is None else None,
            "count": count,
            **checked.model_dump(),
            "batch_size": batch_size,
            "precision": precision,
        },
        inputs=[generator_path, tokenizer_path],
        outputs=[out],
        seed=seed,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how it came about")


def _picture(images: Tensor, classes: Sequence[str]) -> Image.Image:
    """A square; where the images are of these ``classes`` in turn, and these are few, a column for each."""
    if 0 < len(classes) <= _MOST_COLUMNS:
        return draw_grid(images.split(len(classes)), top=classes[: len(images)])
    return draw_grid(images.split(math.ceil(math.sqrt(len(images)))))


def _class_index(wanted: str, class_names: Sequence[str], classes: int) -> int:
    """The number of a class given by number or name."""
    if wanted.isdecimal():
        if int(wanted) >= classes:
            raise UserError(f"--class: there is no class {wanted}; the generator has 0 to {classes - 1}")
        return int(wanted)
    if wanted in class_names:
        return class_names.index(wanted)
    if not class_names:
        raise UserError(
            f"--class: {wanted!r} is no number from 0 to {classes - 1}, and no names are known; --names gives them"
        )
    some = ", ".join(class_names[:12]) + (f" and {classes - 12} more" if classes > 12 else "")
    raise UserError(f"--class: there is no class {wanted!r}; there are {some}")


def _class_names(generator: Path, table: Path | None, classes: int) -> list[str]:
    """The classes' names from a table's description; empty where no table is given or found."""
    table = table or _learned_from(generator)
    if table is None:
        return []
    if table.is_dir():
        table = min(table.glob("*.parquet"), default=table)
    with unreadable_as_user_errors(table):
        metadata = pq.read_schema(table).metadata or {}
    try:
        names = [str(name) for name in json.loads(metadata[KEY])["classes"]]
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{table}: names no classes (neither an image table nor a token table)") from None
    if len(names) != classes:
        raise UserError(f"{table}: names {len(names)} classes, and {generator} has {classes}")
    return names


def _learned_from(generator: Path) -> Path | None:
    """The table that the provenance record beside the generator names as an input, where it is still there."""
    record_path = generator.parent / "provenance.json"
    if not record_path.is_file():
        return None
    record = read_json(record_path)
    for output in map(Path, record.get("outputs", {})):
        parts = generator.absolute().parts
        if parts[-len(output.parts) :] == output.parts:  # the record's paths start where the run did
            root = Path(*parts[: -len(output.parts)])
            tables = [root / name for name in record.get("inputs", {}) if name.endswith(".parquet")]
            return next((table for table in tables if table.is_file()), None)
    return None
