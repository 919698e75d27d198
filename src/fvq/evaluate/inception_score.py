"""Inception Score: Salimans et al. 2016, in the ADM evaluator's form."""

import torch
from torch import Tensor

from fvq.evaluate.images import in_batches
from fvq.runtime.errors import UserError

ADM_CHUNK = 5000


def inception_score(posteriors: Tensor, *, chunk: int = ADM_CHUNK) -> float:
    """exp of the mean Kullback-Leibler divergence from the mean posterior, 1 to C; the mean over consecutive chunks.

    ``posteriors`` (N, C) in the order of the file, rows summing to 1. Nothing is shuffled: samples sorted by class
    score lower where a chunk holds few classes. As in the ADM evaluator a last, shorter chunk counts like the others.

    Raises:
        UserError: no images, a chunk below 1, or rows that are no distributions.
    """
    if posteriors.ndim != 2 or len(posteriors) == 0:
        raise UserError(f"posteriors: must have the shape (N, C) with N of at least 1, not {tuple(posteriors.shape)}")
    if chunk < 1:
        raise UserError(f"inception score chunk: must be at least 1, not {chunk}")
    posteriors_nc = posteriors.double()
    sums = posteriors_nc.sum(dim=1)
    if not (posteriors_nc >= 0).all() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise UserError("posteriors: rows must be distributions, at least 0 and summing to 1")
    # KL(p | mean p), averaged over p, is the entropy of the mean less the mean entropy.
    scores = [
        (torch.special.entr(part.mean(dim=0)).sum() - torch.special.entr(part).sum(dim=1).mean()).exp()
        for part in in_batches(posteriors_nc, chunk)
    ]
    return torch.stack(scores).mean().item()


def score_name(extractor_name: str) -> str:
    """The figure's name: ``is_<extractor>``."""
    return f"is_{extractor_name}"
