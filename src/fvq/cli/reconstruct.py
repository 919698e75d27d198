"""``fvq reconstruct``."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fvq.cli.images import list_files, read_files
from fvq.cli.output import check_output, tell_written
from fvq.evaluate.images import in_batches
from fvq.evaluate.reconstruction import psnr_rgb
from fvq.quantize.usage import code_counts, usage_figures
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.files import write_atomically
from fvq.runtime.picture import draw_reconstructions
from fvq.runtime.progress import track
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import reconstruct


def reconstruct_images(
    tokenizer_path: Path, image_paths: Sequence[Path], out: Path, *, shown: int, force: bool
) -> None:
    """Write a picture of originals, reconstructions and errors; print PSNR and used codes of all the images."""
    use_cores()
    check_output(out, (".png",), force=force)
    tokenizer = Tokenizer.load(tokenizer_path).to(best_device())
    size = tokenizer.config.image_size
    original = read_files(list_files(image_paths), size)
    with track("reconstructing", len(original), unit="images") as advance:
        indices, reconstruction = reconstruct(tokenizer, original, advance)
    pairs = zip(in_batches(original, 256), in_batches(reconstruction, 256), strict=True)
    psnr = torch.cat([psnr_rgb(*pair) for pair in pairs])
    usage = usage_figures(code_counts(indices, tokenizer.config.codebook_size))

    chosen = torch.linspace(0, len(original) - 1, min(shown, len(original))).round().long()
    with write_atomically(out) as temporary:
        draw_reconstructions(original[chosen], reconstruction[chosen]).save(temporary)

    images = f"{len(original)} image{'s' if len(original) > 1 else ''}"
    print(f"{images} at {size}x{size} pixels, {indices[0].numel()} tokens each")
    spread = f", mean of {psnr.min():.2f} to {psnr.max():.2f}" if len(psnr) > 1 else ""
    print(f"PSNR {psnr.mean():.2f} dB{spread}")
    print(
        f"{usage['usage_codes']:,} of {usage['codebook_size']:,} codes ({usage['usage']:.1%}) used by "
        f"{usage['usage_tokens']:,} tokens; as many drawn at random would use {usage['usage_ceiling']:.1%}"
    )
    tell_written(out, f"{len(chosen)} of the {images}" if len(chosen) < len(original) else images)
