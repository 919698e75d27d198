"""``fvq import-checkpoint`` and ``fvq export-checkpoint``."""

import io
from pathlib import Path

import torch

from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.interop.exporting import export_tokenizer
from fvq.interop.importing import ImportedTokenizer, import_tokenizer
from fvq.interop.layouts import DESCRIPTIONS, Layout
from fvq.runtime.devices import use_cores
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file, write_atomically
from fvq.runtime.provenance import Stopwatch, write_provenance
from fvq.tokenizer import Tokenizer


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    layout: Layout | None,
    ema: bool,
    heads: int,
    image_size: int,
    codebook_size: int | None,
    sha256: str | None,
    force: bool,
) -> None:
    """Write a published checkpoint as a tokenizer with its provenance record; print what it is."""
    use_cores()
    stopwatch = Stopwatch()
    if sha256 is not None:
        _check_hash(checkpoint, sha256)
    check_output(out, (".safetensors",), force=force)
    imported = import_tokenizer(checkpoint, layout=layout, ema=ema, heads=heads, image_size=image_size)
    found = imported.tokenizer.config.codebook_size
    if codebook_size not in (None, found):
        raise UserError(f"{checkpoint}: has a codebook of {found:,} codes, not {codebook_size:,} (--codebook-size)")
    imported.tokenizer.save(out)
    _describe(imported)
    tell_written(out, "the tokenizer")
    write_provenance(
        provenance_path(out),
        stage="fvq import-checkpoint",
        row=None,
        parameters={
            "layout": imported.layout,
            "ema": ema,
            "heads": heads,
            "image_size": image_size,
            "left_out": imported.left_out,
        },
        inputs=[checkpoint],
        outputs=[out],
        seed=0,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how it came about")


def export_checkpoint(tokenizer_path: Path, out: Path, *, force: bool) -> None:
    """Write a tokenizer in LlamaGen's layout with its provenance record; print how the published code reads it."""
    use_cores()
    stopwatch = Stopwatch()
    check_output(out, (".pt",), force=force)
    tokenizer = Tokenizer.load(tokenizer_path)
    config = tokenizer.config
    try:
        exported = export_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"{tokenizer_path}: {error}") from None
    content = io.BytesIO()  # torch.save to a file would hide a full disk behind an error of its own
    torch.save({"model": exported.tensors}, content)
    with write_atomically(out) as temporary:
        temporary.write_bytes(content.getbuffer())
    print(
        f"the published code reads it as {exported.model} with codebook_size={config.codebook_size}, "
        f"codebook_embed_dim={config.code_dim}, codebook_l2_norm={exported.l2_norm}"
    )
    tell_written(out, "LlamaGen's layout")
    write_provenance(
        provenance_path(out),
        stage="fvq export-checkpoint",
        row=None,
        parameters={"codebook_l2_norm": exported.l2_norm},
        inputs=[tokenizer_path],
        outputs=[out],
        seed=0,
        stopwatch=stopwatch,
    )
    tell_written(provenance_path(out), "how it came about")


def _check_hash(path: Path, wanted: str) -> None:
    found = sha256_file(path)
    if found != wanted.lower():
        raise UserError(f"{path}: SHA-256 is {found}, not {wanted} (--sha256)")


def _describe(imported: ImportedTokenizer) -> None:
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
