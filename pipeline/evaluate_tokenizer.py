"""Stage ``evaluate_tokenizer@row``: usage of the codebook, quality of reconstructions; on several GPUs if there are."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fvq.evaluate.evaluation import Evaluation, Options
from fvq.evaluate.image_sets import open_for_pairs, open_image_set
from fvq.evaluate.pairs import MadePairs
from fvq.evaluate.protocol_networks import load_network
from fvq.evaluate.protocols import PROTOCOLS, ProtocolName
from fvq.evaluate.reconstruction import build_measures
from fvq.evaluate.tokenizer_metrics import evaluate_reconstructions
from fvq.runtime.files import sha256_file, write_atomically, write_json
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import reconstruct
from pipeline.run import Run, run_stage


def evaluate(
    run: Run, tokenizer_path: Path, images_path: Path, name: str, protocol_name: ProtocolName
) -> Evaluation | None:
    """A frozen tokenizer on the images at ``images_path``, which people call ``name``."""
    settings, protocol = run.parameters.evaluate_tokenizer, PROTOCOLS[protocol_name]
    network = load_network(run.input("train_extractor", "extractor.safetensors"), protocol, device=run.device)
    tokenizer = Tokenizer.load(tokenizer_path).to(run.device)
    measures, absent = build_measures(
        settings.measures, weights={"lpips_alex": settings.lpips_weights}, device=run.device
    )
    plain_originals, originals = open_for_pairs(images_path, protocol.preparation)
    pairs = MadePairs(
        partial(reconstruct, tokenizer),
        plain_originals,
        name=str(tokenizer_path),
        tokenizer_sha256=sha256_file(tokenizer_path),
        originals=originals,
    )
    return evaluate_reconstructions(
        pairs,
        network,
        protocol,
        measures,
        Options(uncertainty=settings.uncertainty, allow_count=settings.allow_count),
        codebook_size=tokenizer.config.codebook_size,
        reference_words=name,
        absent=absent,
        cache=run.feature_folder,
    )


def main(run: Run) -> None:
    """Write ``metrics.json``, ``images.parquet`` and ``reconstructions.npz``."""
    settings = run.parameters.evaluate_tokenizer
    validation = run.input("prepare_data", "validation.parquet")
    tokenizer_path = run.input("freeze_codebook", "tokenizer.safetensors", run.name)
    evaluation = evaluate(run, tokenizer_path, validation, f"{run.parameters.dataset} validation", settings.protocol)
    if evaluation is None:
        return
    write_json(run.output("metrics.json"), evaluation.values | {"seed": run.seed})
    columns = {name: error_n.numpy() for name, error_n in evaluation.errors.items()}
    count = len(next(iter(columns.values())))
    with write_atomically(run.output("images.parquet")) as temporary:
        pq.write_table(pa.table({"image_id": np.arange(count)} | columns), temporary)
    _write_shown(run, tokenizer_path, validation)
    figures = evaluation.values
    print(
        f"{run.parameters.rows[run.name].label}: usage {figures['usage']:.2%} of {figures['codebook_size']} codes over "
        f"{figures['usage_tokens']} tokens (ceiling {figures['usage_ceiling']:.2%}), {figures['psnr_rgb']:.2f} dB"
    )
    for note in evaluation.notes:
        print(f"{run.name}: {note}")


def _write_shown(run: Run, tokenizer_path: Path, validation: Path) -> None:
    """The first images with their reconstructions: the order of the tables mixes the classes."""
    images = open_image_set(validation)
    shown = min(run.parameters.evaluate_tokenizer.shown_images, len(images))
    original = next(images.batches(0, shown, shown))
    tokenizer = Tokenizer.load(tokenizer_path).to(run.device)
    _, reconstruction = reconstruct(tokenizer, original)
    with write_atomically(run.output("reconstructions.npz")) as temporary:
        np.savez(
            temporary,
            original=original.permute(0, 2, 3, 1).numpy(),
            reconstruction=reconstruction.permute(0, 2, 3, 1).numpy(),
        )


if __name__ == "__main__":
    run_stage("evaluate_tokenizer", main, each="rows", parallel=True)
