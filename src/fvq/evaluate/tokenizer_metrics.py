"""The figures of a tokenizer: codebook usage and the quality of its reconstructions."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fvq.evaluate.extractor import Extractor, extract
from fvq.evaluate.frechet import distance_name, feature_statistics, frechet_distance
from fvq.evaluate.images import check_images, in_batches
from fvq.evaluate.pretrained import ALEXNET_FILE
from fvq.evaluate.reconstruction import PerceptualDistance, reconstruction_errors
from fvq.quantize.usage import code_counts, usage_figures

Figures = dict[str, float | int | str]


def evaluate_reconstructions(
    original: Tensor,
    reconstruction: Tensor,
    indices: Tensor,
    codebook_size: int,
    extractor: Extractor,
    *,
    reference: str,
    seed: int,
    lpips_alex: PerceptualDistance | None = None,
    batch_size: int = 128,
) -> tuple[Figures, dict[str, npt.NDArray[np.generic]]]:
    """Flat figures of metrics.json, and the columns of the per-image table (``image_id`` and a column a measure).

    ``original`` and ``reconstruction`` are uint8 (N, 3, H, W), paired; ``indices`` are all their tokens, integers of
    any shape. ``reference`` says in words which images the originals are. Per-image measures are averaged over images.

    Raises:
        UserError: fewer than 2 images, wrong types or shapes, sets that do not pair.
        ValueError: indices outside the codebook.
    """
    check_images(original, "originals", at_least=2)
    check_images(reconstruction, "reconstructions", at_least=2)
    errors = reconstruction_errors(original, reconstruction, lpips_alex=lpips_alex, batch_size=batch_size)
    statistics = [
        feature_statistics(
            extract(extractor, in_batches(images, batch_size), count=len(images), description=what).features
        )
        for images, what in ((original, "originals"), (reconstruction, "reconstructions"))
    ]
    figures: Figures = {
        **usage_figures(code_counts(indices, codebook_size)),
        **{name: values.mean().item() for name, values in errors.items()},
        f"r{distance_name(extractor.name)}": frechet_distance(*statistics),
        "protocol_extractor": extractor.name,
        "protocol_extractor_sha256": extractor.weights_sha256,
        "protocol_resize": extractor.resize,
        "protocol_reference": reference,
        "protocol_reference_images": str(len(original)),
        "protocol_images": str(len(reconstruction)),
        "protocol_seed": str(seed),
    }
    if lpips_alex is None:
        figures["protocol_lpips_alex"] = f"absent: no {ALEXNET_FILE.name}"
    columns = {name: values.numpy() for name, values in errors.items()}
    return figures, {"image_id": torch.arange(len(original)).numpy(), **columns}
