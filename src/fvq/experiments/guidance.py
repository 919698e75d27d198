"""Samples of one generator at several scales of classifier-free guidance, and what they measure."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fvq.data.open import LabelledImages
from fvq.evaluate.extractor import Extractor, Features, extract
from fvq.evaluate.frechet import distance_name, feature_statistics, frechet_distance
from fvq.evaluate.inception_score import inception_score, score_name
from fvq.evaluate.precision_recall import precision_and_recall
from fvq.generate.llamagen import LlamaGen
from fvq.generate.parts import sample_many
from fvq.generate.sampling import SamplingSettings
from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json, write_json
from fvq.runtime.training import History
from fvq.tokenizer.inference import decode_tokens, images_at_once
from fvq.tokenizer.tokenizer import Tokenizer

_BATCH = 128


def draw_at_scales(
    model: LlamaGen,
    labels: Tensor,
    settings: SamplingSettings,
    scales: Sequence[float],
    *,
    seed: int,
    folder: Path,
    batch_size: int | None,
) -> dict[float, Tensor]:
    """Tokens int64 (N, h*w) for labels (N,) at each scale, in the place of ``settings.cfg_scale``.

    Image i draws from the same random stream at every scale, whichever the others are, so that the images differ by
    the scale alone. Processes and resuming as ``sample_many``; each scale has a folder of its own in ``folder``.

    Raises:
        UserError: a scale above 1 for a generator trained without class dropout; as ``sample_many``.
        Interrupted: a signal came, and what was drawn is kept.
    """
    if max(scales) > 1 and model.config.class_dropout == 0:
        raise UserError(
            "sweep_guidance.scales: this generator was trained with class_dropout 0 and cannot be guided; "
            "1.0 is the only scale that it has"
        )
    return {
        scale: sample_many(
            model,
            labels,
            settings.model_copy(update={"cfg_scale": scale}),
            seed=seed,
            part_folder=folder / f"scale-{scale}",
            batch_size=batch_size,
        )
        for scale in scales
    }


def measure_scales(
    tokens: Mapping[float, Tensor], tokenizer: Tokenizer, extractor: Extractor, reference: LabelledImages, folder: Path
) -> History:
    """The figures of ``evaluate_samples`` for the tokens (N, h*w) of each scale against the reference images.

    Each scale's figures are written to ``folder`` as they come, and those found there are not measured again; it
    belongs to these arguments. Images are held a few hundred at a time.

    Returns:
        A row for each scale: ``cfg_scale``; ``samples``, how many; ``precision``, ``recall``; score and Fréchet
        distance under ``score_name`` and ``distance_name``. The distance is last: ``dvc plots`` shows the last column.

    Raises:
        UserError: too few images, or what the extractor says of them is not finite; a damaged file in ``folder``.
    """
    paths = {scale: folder / f"scale-{scale}.json" for scale in tokens}
    missing = [scale for scale, path in paths.items() if not path.is_file()]
    if missing:
        of_reference = extract(extractor, _batches(reference), count=len(reference), description="reference")
        statistics = feature_statistics(of_reference.features)
        for scale in missing:
            of_samples = _features(tokens[scale], tokenizer, extractor, f"samples at scale {scale:g}")
            precision, recall = precision_and_recall(of_samples.features, of_reference.features)
            figures = {
                "cfg_scale": scale,
                "samples": len(tokens[scale]),
                "precision": precision,
                "recall": recall,
                score_name(extractor.name): inception_score(of_samples.posteriors),
                distance_name(extractor.name): frechet_distance(feature_statistics(of_samples.features), statistics),
            }
            write_json(paths[scale], figures)
    return [read_json(path) for path in paths.values()]


def _batches(images: LabelledImages) -> Iterator[Tensor]:
    for ids in torch.arange(len(images)).split(_BATCH):
        yield images.images(ids)


def _features(tokens: Tensor, tokenizer: Tokenizer, extractor: Extractor, description: str) -> Features:
    """Of the images that the tokens (N, h*w) decode to."""
    batches = (decode_tokens(tokenizer, part) for part in tokens.split(images_at_once(tokenizer)))
    return extract(extractor, batches, count=len(tokens), description=description)
