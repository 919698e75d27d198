"""Stage ``evaluate_generator@row``: samples against the validation images."""

import numpy as np
import torch
from numpy.typing import NDArray

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
        samples = torch.from_numpy(channels_first(archive["arr_0"]))
    figures = evaluate_samples(
        samples, table.images(), extractor, reference=f"{run.parameters.dataset} validation", seed=run.seed
    )
    write_json(run.output("metrics.json"), figures)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
    print(f"{run.name}: {shown}")


def channels_first(images_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images as (N, 3, H, W) in the memory of ``images_nhwc``: 50,000 take 10 GB, and a copy as much again."""
    count, height, width, channels = images_nhwc.shape
    images_nchw = images_nhwc.reshape(count, channels, height, width)
    for image_hwc, image_chw in zip(images_nhwc, images_nchw, strict=True):
        image_chw[:] = image_hwc.transpose(2, 0, 1).copy()
    return images_nchw


if __name__ == "__main__":
    run_stage("evaluate_generator", main, each="generators")
