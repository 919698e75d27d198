"""The figures of a generator: its samples against reference images."""

from torch import Tensor

from fvq.evaluate.extractor import Extractor, extract
from fvq.evaluate.frechet import distance_name, feature_statistics, frechet_distance
from fvq.evaluate.images import check_images, check_same_size, in_batches
from fvq.evaluate.inception_score import ADM_CHUNK, inception_score, score_name
from fvq.evaluate.precision_recall import NEIGHBOURS, precision_and_recall


def evaluate_samples(
    samples: Tensor,
    reference_images: Tensor,
    extractor: Extractor,
    *,
    reference: str,
    seed: int,
    batch_size: int = 128,
    score_chunk: int = ADM_CHUNK,
) -> dict[str, float | int | str]:
    """Flat figures of metrics.json for samples against reference images, both uint8 (N, 3, H, W) of one size.

    ``reference`` says in words which images these are. The Inception Score takes the samples in the given order.

    Raises:
        UserError: too few images, wrong types, shapes or sizes.
    """
    check_images(samples, "samples", at_least=2)
    check_images(reference_images, "reference", at_least=2)
    check_same_size(samples, "samples", reference_images, "reference")
    of_samples = extract(extractor, in_batches(samples, batch_size), count=len(samples), description="samples")
    of_reference = extract(
        extractor, in_batches(reference_images, batch_size), count=len(reference_images), description="reference"
    )
    precision, recall = precision_and_recall(of_samples.features, of_reference.features)
    return {
        distance_name(extractor.name): frechet_distance(
            feature_statistics(of_samples.features), feature_statistics(of_reference.features)
        ),
        score_name(extractor.name): inception_score(of_samples.posteriors, chunk=score_chunk),
        "precision": precision,
        "recall": recall,
        "samples": len(samples),
        "protocol_extractor": extractor.name,
        "protocol_extractor_sha256": extractor.weights_sha256,
        "protocol_resize": extractor.resize,
        "protocol_reference": reference,
        "protocol_reference_images": str(len(reference_images)),
        "protocol_images": str(len(samples)),
        "protocol_score_chunk": str(score_chunk),
        "protocol_neighbours": str(NEIGHBOURS),
        "protocol_seed": str(seed),
    }
