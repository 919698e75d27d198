"""Stage ``evaluate_generator@row``: samples against the validation images."""

import numpy as np
import torch

from fvq.data.open import open_images
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.load import load_extractor
from fvq.runtime.files import write_json
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``metrics.json``."""
    table = open_images(run.input("prepare_data", "validation.parquet"))
    extractor = load_extractor(run.input("train_extractor", "extractor.safetensors"), run.device)
    with np.load(run.input("sample", "samples.npz", run.name)) as archive:
        samples = torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2).contiguous()
    figures = evaluate_samples(
        samples, table.images(), extractor, reference=f"{run.parameters.dataset} validation", seed=run.seed
    )
    write_json(run.output("metrics.json"), figures)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
    print(f"{run.name}: {shown}")


if __name__ == "__main__":
    run_stage("evaluate_generator", main, each="generators")
