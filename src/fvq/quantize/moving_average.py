"""Vector quantization whose codes are moving averages of the vectors that chose them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.processes import gather_over_processes, sum_over_processes
from fvq.quantize.quantizer import Quantizer, straight_through
from fvq.quantize.search import nearest_code


class MovingAverageQuantizer(Quantizer):
    """Codes that follow the mean of their vectors, without gradients (van den Oord et al. 2017, Appendix A.1).

    Each training batch in which the n vectors z_j of all processes choose a code moves that code's statistics,
    ``count ← γ·count + (1 − γ)·n`` and ``sum ← γ·sum + (1 − γ)·Σ z_j``. The code is ``sum / count`` with the counts
    smoothed to ``(count + ε)·C / (C + K·ε)``, C their total, as in lucidrains/vector-quantize-pytorch.

    The codes take up a batch's statistics at the start of the next forward pass in training mode. Until then, and in
    evaluation mode or frozen, they are those that the last training batch was quantized with, so ``indices_to_vectors``
    gives what the forward pass used. All of it is in the state: a resumed training goes on exactly (on CUDA, whose
    sums have no fixed order, up to rounding).

    The only loss term is ``commitment``, mean |sg e - z|². Codes start uniform in ±1/K, like learned ones, and weigh as
    much as one vector each: a count of 1.

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a code.
        commitment_weight: weight of the commitment term.
        decay: γ.
        epsilon: ε.
        revive_below: codes whose count falls below it restart, with this count, at vectors drawn from the batch of all
            processes, which must then hold as many vectors on each; by default none does.

    Raises:
        ValueError: a size below 1, a decay outside [0, 1), or another number that is not positive.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        revive_below: float | None = None,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        check_decay(decay)
        for name, value in (("epsilon", epsilon), ("revive_below", revive_below)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        self.commitment_weight, self.decay, self.epsilon = commitment_weight, decay, epsilon
        self.revive_below = revive_below
        codebook_kd = torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.register_buffer("codebook", codebook_kd)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codebook_kd.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def freeze(self) -> CodebookQuantizer:
        """Plain VQ that holds the codes, with the same loss."""
        plain = CodebookQuantizer(
            self.codebook_size,
            self.code_dim,
            nn.Identity(),
            commitment_weight=self.commitment_weight,
            codebook_weight=0.0,
            raw_codebook=self.codebook.clone(),
        )
        return plain._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if self.training:
            self._move_codes()
        indices_bhw = nearest_code(z_bhwd, self.codebook)
        codes_bhwd = F.embedding(indices_bhw, self.codebook)
        if self.training:
            self._count(z_bhwd.detach().reshape(-1, self.code_dim), indices_bhw.reshape(-1))
        commitment = self.commitment_weight * F.mse_loss(z_bhwd, codes_bhwd)
        return straight_through(z_bhwd, codes_bhwd), indices_bhw, {"commitment": commitment}

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return nearest_code(z_bhwd, self.codebook)

    def _vectors(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)

    def _move_codes(self) -> None:
        # In float64 the counts of 1 at the start stay 1, and the codes where they are.
        counts_k = self.counts.double()
        total = counts_k.sum()
        smoothed_k = (counts_k + self.epsilon) * (total / (total + self.codebook_size * self.epsilon))
        self.codebook.copy_(self.sums).div_(smoothed_k.float()[:, None])

    def _count(self, z_nd: Tensor, indices_n: Tensor) -> None:
        """Let a batch move the statistics."""
        sums_kd = torch.zeros_like(self.sums).index_add_(0, indices_n, z_nd)
        self.sums.mul_(self.decay).add_(sum_over_processes(sums_kd), alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(count_codes(indices_n, self.codebook_size), alpha=1 - self.decay)
        if self.revive_below is not None:
            self._revive(z_nd, self.revive_below)
        self.steps.add_(1)

    def _revive(self, z_nd: Tensor, count: float) -> None:
        # The counts are equal on all processes, and so is the decision to gather.
        codes_r = (self.counts < count).nonzero()[:, 0]
        if len(codes_r):
            gathered_nd = gather_over_processes(z_nd)
            rows_r = draw_rows(len(gathered_nd), len(codes_r), seed=int(self.steps)).to(z_nd.device)
            self.counts[codes_r] = count
            self.sums[codes_r] = gathered_nd[rows_r] * count


def check_decay(decay: float) -> None:
    """Raise ValueError for a decay that no moving average has."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), not {decay}")


def count_codes(indices_n: Tensor, codebook_size: int) -> Tensor:
    """How often each code is among the indices (n,) of all processes: int64 (K,)."""
    counts_k = torch.zeros(codebook_size, dtype=torch.int64, device=indices_n.device)
    return sum_over_processes(counts_k.index_add_(0, indices_n, torch.ones_like(indices_n)))


def draw_rows(rows: int, count: int, *, seed: int) -> Tensor:
    """``count`` of ``rows`` rows at random, int64 on the CPU: none again before each has come once."""
    order_n = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order_n[torch.arange(count) % rows]
