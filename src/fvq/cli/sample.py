"""``fvq sample``."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.generate import LlamaGen, SamplingSettings, class_labels, sample_many
from fvq.runtime.checkpoint import recipe_digest
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.files import read_json, sha256_file, write_atomically
from fvq.runtime.parquet import KEY, unreadable_as_user_errors
from fvq.runtime.picture import draw_grid
from fvq.runtime.progress import track
from fvq.runtime.provenance import Stopwatch, library_versions, write_provenance
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import decode_tokens

_LARGEST_PICTURE = 1024
_MOST_COLUMNS = 16


def sample_images(
    generator_path: Path,
    tokenizer_path: Path,
    out: Path,
    *,
    wanted_class: str | None,
    names: Path | None,
    count: int,
    seed: int,
    batch_size: int,
    force: bool,
    settings: Mapping[str, float],
) -> None:
    """Write a picture, or an archive with its provenance record, of ``count`` images; print what it holds."""
    use_cores()
    stopwatch = Stopwatch()
    check_output(out, (".png", ".npz"), force=force)
    if out.suffix.lower() == ".png" and count > _LARGEST_PICTURE:
        raise UserError(f"--count: a picture holds at most {_LARGEST_PICTURE:,} images; let --out end in .npz")
    try:
        checked = SamplingSettings.model_validate({**settings, "cfg_start": 0})
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "fvq sample")) from None
    device = best_device()
    model = LlamaGen.load(generator_path).to(device)
    tokenizer = Tokenizer.load(tokenizer_path).to(device)
    wanted = tokenizer.config.codebook_size, tokenizer.config.index_shape
    if (model.config.vocabulary_size, model.config.grid) != wanted:
        raise UserError(f"{generator_path}: was trained on tokens of another tokenizer than {tokenizer_path}")
    classes = model.config.classes
    class_names = _class_names(generator_path, names, classes)
    if wanted_class is None:
        labels, which = class_labels(count, classes, "balanced", seed), f"all {classes} classes in turn"
    else:
        index = _class_index(wanted_class, class_names, classes)
        labels = torch.full((count,), index)
        which = f"class {index}" + (f", {class_names[index]}" if class_names else "")

    # The tokens drawn so far lie beside the output, named by all that they follow from, until it is written.
    recipe = {
        "generator": sha256_file(generator_path),
        "class": which,
        "count": count,
        "settings": checked.model_dump(),
        "seed": seed,
        "device": str(device),
        "versions": library_versions(),
    }
    part_folder = out.with_name(f"{out.name}.{recipe_digest(recipe)}.parts")
    with track("sampling", count) as advance:
        tokens = sample_many(
            model, labels, checked, seed=seed, part_folder=part_folder, batch_size=batch_size, on_progress=advance
        )
    images = decode_tokens(tokenizer, tokens)
    with write_atomically(out) as temporary:
        if out.suffix.lower() == ".png":
            every = class_names or [f"class {index}" for index in range(classes)]
            _picture(images, every if wanted_class is None else []).save(temporary)
        else:
            np.savez(temporary, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    shutil.rmtree(part_folder, ignore_errors=True)
    tell_written(out, f"{count} image{'s' if count > 1 else ''}, {which}")
    if out.suffix.lower() == ".npz":
        write_provenance(
            provenance_path(out),
            stage="fvq sample",
            row=None,
            parameters={"class": which, "count": count, **checked.model_dump(), "batch_size": batch_size},
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
