"""``fvq import-checkpoint`` and ``fvq export-checkpoint``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.generate import LlamaGen
from fvq.generate.sizes import size_name
from fvq.interop.exporting import export_tokenizer
from fvq.interop.generators import ImportedGenerator, generator_of, is_generator, published_model
from fvq.interop.importing import ImportedTokenizer, tokenizer_of
from fvq.interop.layouts import DESCRIPTIONS, Layout
from fvq.interop.reading import Checkpoint, read_checkpoint
from fvq.runtime.checkpoint import write_state
from fvq.runtime.devices import use_cores
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file, write_atomically
from fvq.runtime.provenance import Stopwatch, write_provenance
from fvq.tokenizer import Tokenizer

_BRIDGE_HEADS = 4
_IMAGE_SIZE = 256


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    layout: Layout | None,
    ema: bool,
    heads: int | None,
    image_size: int | None,
    grid: str | None,
    codebook_size: int | None,
    sha256: str | None,
    force: bool,
) -> None:
    """Write a published checkpoint as a tokenizer or generator with its provenance record; print what it is."""
    use_cores()
    stopwatch = Stopwatch()
    if sha256 is not None:
        _check_hash(checkpoint, sha256)
    check_output(out, (".safetensors",), force=force)
    read = read_checkpoint(checkpoint, ema=ema)
    parameters: dict[str, Any]
    if is_generator(read.weights):
        _refuse(checkpoint, "generator", {"--layout": layout, "--image-size": image_size})
        parameters = _import_generator(read, out, heads, _grid(grid), codebook_size)
    else:
        _refuse(checkpoint, "tokenizer", {"--grid": grid})
        heads, image_size = heads or _BRIDGE_HEADS, image_size or _IMAGE_SIZE
        parameters = _import_tokenizer(read, out, layout, heads, image_size, codebook_size)
    write_provenance(
        provenance_path(out),
        stage="fvq import-checkpoint",
        row=None,
        parameters={"ema": ema, **parameters},
        inputs=[checkpoint],
        outputs=[out],
        seed=0,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how it came about")


def _import_tokenizer(
    read: Checkpoint, out: Path, layout: Layout | None, heads: int, image_size: int, codebook_size: int | None
) -> dict[str, Any]:
    imported = tokenizer_of(read, layout=layout, heads=heads, image_size=image_size)
    _check_codes(read.path, imported.tokenizer.config.codebook_size, codebook_size)
    imported.tokenizer.save(out)
    _describe_tokenizer(imported)
    tell_written(out, "the tokenizer")
    return {"layout": imported.layout, "heads": heads, "image_size": image_size, "left_out": imported.left_out}


def _import_generator(
    read: Checkpoint, out: Path, heads: int | None, grid: tuple[int, int] | None, codebook_size: int | None
) -> dict[str, Any]:
    imported = generator_of(read, heads=heads, grid=grid)
    config = imported.generator.config
    _check_codes(read.path, config.vocabulary_size, codebook_size)
    imported.generator.save(out)
    _describe_generator(imported)
    tell_written(out, "the generator")
    return {"heads": config.heads, "grid": config.grid, "dtypes": imported.dtypes, "left_out": imported.left_out}


def export_checkpoint(path: Path, out: Path, *, force: bool) -> None:
    """Write a tokenizer or generator in LlamaGen's layout with its provenance; print how it is read there."""
    use_cores()
    stopwatch = Stopwatch()
    check_output(out, (".pt",), force=force)
    export = _exported_generator if _names_a_generator(path) else _exported_tokenizer
    tensors, reading, parameters = export(path)
    with write_atomically(out) as temporary:
        write_state({"model": tensors}, temporary)
    print(f"the published code reads it as {reading}")
    tell_written(out, "LlamaGen's layout")
    write_provenance(
        provenance_path(out),
        stage="fvq export-checkpoint",
        row=None,
        parameters=parameters,
        inputs=[path],
        outputs=[out],
        seed=0,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how it came about")


def _exported_tokenizer(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Tensors, how the published code reads them, and parameters of the provenance."""
    tokenizer = Tokenizer.load(path)
    config = tokenizer.config
    try:
        exported = export_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    reading = (
        f"{exported.model} with codebook_size={config.codebook_size}, codebook_embed_dim={config.code_dim}, "
        f"codebook_l2_norm={exported.l2_norm}"
    )
    return exported.tensors, reading, {"codebook_l2_norm": exported.l2_norm}


def _exported_generator(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The same of a generator."""
    generator = LlamaGen.load(path)
    try:
        reading = published_model(generator.config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if generator.config.class_dropout == 0:
        reading += "; it knows no null class, so that cfg-scale must be 1"
    return generator.state_dict(), reading, {"model": reading}


def _names_a_generator(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return is_generator(file.keys())
    except (SafetensorError, OSError):
        return False  # loading says what is wrong


def _refuse(checkpoint: Path, kind: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{checkpoint}: holds a {kind}, which knows no {option}")


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text, re.ASCII)
    if not found:
        raise UserError(f"--grid: {text!r} is neither a number of rows and columns (24) nor both (24x32)")
    return int(found[1]), int(found[2] or found[1])


def _check_codes(path: Path, found: int, wanted: int | None) -> None:
    if wanted not in (None, found):
        raise UserError(f"{path}: has a codebook of {found:,} codes, not {wanted:,} (--codebook-size)")


def _check_hash(path: Path, wanted: str) -> None:
    found = sha256_file(path)
    if found != wanted.lower():
        raise UserError(f"{path}: SHA-256 is {found}, not {wanted} (--sha256)")


def _describe_tokenizer(imported: ImportedTokenizer) -> None:
    tokenizer = imported.tokenizer
    config = tokenizer.config
    sizes = config.architecture
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    rows, columns = config.grid
    print(f"layout {imported.layout}: {DESCRIPTIONS[imported.layout]}")
    print(f"codebook {config.codebook_size:,} x {config.code_dim}, quantizer {config.quantizer}")
    print(
        f"ratio {sizes.ratio}: {rows}x{columns} tokens of {config.image_size}x{config.image_size} pixels; "
        f"{sizes.channels} channels, multipliers {', '.join(map(str, sizes.multipliers))}, "
        f"{sizes.residual_blocks} residual blocks"
    )
    if config.bridge:
        bridge = config.bridge
        print(
            f"bridge {bridge.block}: {bridge.depth} blocks of width {bridge.width}, {bridge.heads} heads, "
            f"{bridge.patch} codes a token"
        )
    print(f"{parameters:,} parameters")
    print(f"left out: {', '.join(imported.left_out) or 'nothing'}")


def _describe_generator(imported: ImportedGenerator) -> None:
    config = imported.generator.config
    parameters = sum(parameter.numel() for parameter in imported.generator.parameters())
    name = size_name(config)
    rows, columns = config.grid
    print(f"LlamaGen-{name}" if name else "LlamaGen of no published size")
    print(
        f"{config.depth} blocks of width {config.width}, {config.heads} heads, "
        f"feed-forward width {config.feedforward_width}"
    )
    print(f"vocabulary {config.vocabulary_size:,}; {config.classes:,} classes", end="")
    print(" and the null class" if imported.null_class else "; no null class, so that it cannot be guided")
    untold = "" if imported.grid_told else " (the file does not tell; --grid sets another)"
    print(f"grid {rows}x{columns}: {config.tokens} tokens{untold}")
    print(f"{parameters:,} parameters")
    if imported.dtypes != ("float32",):
        print(f"{' and '.join(imported.dtypes)} became float32, of the same values")
    print(f"left out: {', '.join(imported.left_out) or 'nothing'}")
