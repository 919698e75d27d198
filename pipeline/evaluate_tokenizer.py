"""Stage ``evaluate_tokenizer@row``: codebook usage and the quality of reconstructions of the validation images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from fvq.data.open import open_images
from fvq.evaluate.load import load_extractor
from fvq.evaluate.reconstruction import load_lpips_alex
from fvq.evaluate.tokenizer_metrics import Figures, evaluate_reconstructions
from fvq.runtime.files import write_atomically, write_json
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import reconstruct
from pipeline.run import Run, run_stage


class Evaluation(NamedTuple):
    """A tokenizer on a set of images; both image tensors are uint8 (N, 3, H, W)."""

    figures: Figures
    columns: dict[str, npt.NDArray[np.generic]]
    original: Tensor
    reconstruction: Tensor


def evaluate(run: Run, images_path: Path, name: str) -> Evaluation:
    """The row's frozen tokenizer on the images at ``images_path``, which people call ``name``."""
    images = open_images(images_path)
    extractor = load_extractor(run.input("train_extractor", "extractor.safetensors"), run.device)
    tokenizer = Tokenizer.load(run.input("freeze_codebook", "tokenizer.safetensors", run.name)).to(run.device)
    lpips_alex = load_lpips_alex(run.parameters.evaluate_tokenizer.lpips_weights)
    original = images.images()
    indices, reconstruction = reconstruct(tokenizer, original)
    figures, columns = evaluate_reconstructions(
        original,
        reconstruction,
        indices,
        tokenizer.config.codebook_size,
        extractor,
        reference=f"{name}{images.crop_note}",
        seed=run.seed,
        lpips_alex=lpips_alex,
    )
    return Evaluation(figures, columns, original, reconstruction)


def main(run: Run) -> None:
    """Write ``metrics.json``, ``images.parquet`` and ``reconstructions.npz``."""
    validation = run.input("prepare_data", "validation.parquet")
    figures, columns, original, reconstruction = evaluate(run, validation, f"{run.parameters.dataset} validation")
    write_json(run.output("metrics.json"), figures)
    with write_atomically(run.output("images.parquet")) as temporary:
        pq.write_table(pa.table(columns), temporary)
    shown = slice(run.parameters.evaluate_tokenizer.shown_images)  # the tables' order mixes the classes
    with write_atomically(run.output("reconstructions.npz")) as temporary:
        np.savez(
            temporary,
            original=original[shown].permute(0, 2, 3, 1).numpy(),
            reconstruction=reconstruction[shown].permute(0, 2, 3, 1).numpy(),
        )
    print(
        f"{run.parameters.rows[run.name].label}: usage {figures['usage']:.2%} of {figures['codebook_size']} codes over "
        f"{figures['usage_tokens']} tokens (ceiling {figures['usage_ceiling']:.2%}), {figures['psnr_rgb']:.2f} dB"
    )


if __name__ == "__main__":
    run_stage("evaluate_tokenizer", main, each="rows")
