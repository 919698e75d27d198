"""Inception Score: Salimans et al. 2016, in the ADM evaluator's form and in torch-fidelity's."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fvq.runtime.errors import UserError

ADM_CHUNK = 5000


@dataclass(frozen=True)
class ScoreSums:
    """What the score needs of the class posteriors of G groups of images, gathered batch by batch without keeping them.

    A group's score is exp of the mean Kullback-Leibler divergence from its mean posterior, 1 to C. That divergence is
    the entropy of the mean posterior less the mean entropy, so that two sums and a count suffice.
    """

    count_g: Tensor
    """int64 (G,): the group's images"""
    posterior_sum_gc: Tensor
    """float64 (G, C): the sum over the group's images of p"""
    negative_entropy_g: Tensor
    """float64 (G,): the sum over the group's images of sum_c p log p"""

    @classmethod
    def of(cls, logits: Tensor, group_n: Tensor, groups: int) -> Self:
        """Sums of the softmax of logits (N, C) in float64; image n is of the group ``group_n`` int64 (N,), below G.

        Raises:
            UserError: logits that are not finite.
        """
        if not logits.isfinite().all():
            raise UserError("logits: some are not finite, so that there is no Inception Score")
        logits_nc, group_n = logits.cpu().double(), group_n.cpu()
        log_posterior_nc = logits_nc.log_softmax(dim=1)
        posterior_nc = log_posterior_nc.exp()
        return cls(
            torch.bincount(group_n, minlength=groups),
            logits_nc.new_zeros(groups, logits_nc.shape[1]).index_add_(0, group_n, posterior_nc),
            logits_nc.new_zeros(groups).index_add_(0, group_n, (posterior_nc * log_posterior_nc).sum(dim=1)),
        )

    def merge(self, other: "ScoreSums") -> "ScoreSums":
        """Sums over both sets of images, of the same groups. Merged in one order, they are the same to the last bit."""
        return ScoreSums(
            self.count_g + other.count_g,
            self.posterior_sum_gc + other.posterior_sum_gc,
            self.negative_entropy_g + other.negative_entropy_g,
        )

    def score(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of the score over the groups that hold images.

        Raises:
            UserError: no images at all.
        """
        held = self.count_g > 0
        if not held.any():
            raise UserError("inception score: needs at least 1 image, and there is none")
        count_g = self.count_g[held]
        mean_posterior_gc = self.posterior_sum_gc[held] / count_g[:, None]
        divergence_g = torch.special.entr(mean_posterior_gc).sum(dim=1) + self.negative_entropy_g[held] / count_g
        score_g = divergence_g.clamp(min=0).exp()  # rounding may leave a little less than 0
        return score_g.mean().item(), score_g.std(correction=0).item()


def adm_groups(count: int, chunk: int = ADM_CHUNK) -> Tensor:
    """The group int64 (N,) of each image in the order of the file: consecutive chunks, the last one may be shorter.

    As the ADM evaluator scores them (openai/guided-diffusion, evaluations/evaluator.py): nothing is shuffled, samples
    sorted by class score lower where a chunk holds few classes, and a shorter last chunk counts like the others.

    Raises:
        UserError: a chunk below 1.
    """
    if chunk < 1:
        raise UserError(f"inception score chunk: must be at least 1, not {chunk}")
    return torch.arange(count) // chunk


def torch_fidelity_groups(count: int, splits: int = 10, seed: int = 2020) -> Tensor:
    """The group int64 (N,) of each image in the order of the file, as torch-fidelity shuffles and splits the images.

    Its split i holds the places i * N // splits to (i + 1) * N // splits of the images that NumPy's RandomState(seed)
    has permuted (toshas/torch-fidelity, metric_isc.py).

    Raises:
        UserError: splits below 1.
    """
    if splits < 1:
        raise UserError(f"inception score splits: must be at least 1, not {splits}")
    image_p = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    edges = torch.tensor([i * count // splits for i in range(1, splits + 1)])
    group_n = torch.empty(count, dtype=torch.int64)
    group_n[image_p] = torch.searchsorted(edges, torch.arange(count), right=True)
    return group_n
