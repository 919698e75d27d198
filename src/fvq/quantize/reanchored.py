"""A learned codebook whose codes out of use move to vectors of the batch."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fvq.quantize.checks import check_finite
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.moving_average import check_decay, count_codes, draw_rows
from fvq.quantize.processes import gather_over_processes
from fvq.quantize.search import nearest_code

Anchors = Literal["closest", "random", "probabilistic"]

# Values of a tile of codes by vectors.
_TILE = 2**22


class ReanchoredQuantizer(CodebookQuantizer):
    """Plain VQ, learned by gradients, with an online clustered codebook (CVQ; Zheng & Vedaldi 2023).

    In training mode each forward pass first moves every code e to ``(1 − α)·e + α·anchor``, an anchor being a vector of
    the batch of all processes and ``α = exp(−P·K·10 / (1 − γ) − 0.001)``: near 1 for a code that nothing chose, near 0
    for others. Then it quantizes, and the share n/N of the vectors that chose a code moves that code's usage,
    ``P ← γ·P + (1 − γ)·n/N``. The released code moves the codes after quantizing, to vectors of the batch just seen.
    Here this waits for the next batch and takes its vectors, so that ``indices_to_vectors`` gives what the forward pass
    used; the first batch moves no code.

    The paper's optional contrastive loss is left out.

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a code.
        commitment_weight: β of Eq. 5.
        anchors: ``closest``, each code's nearest vector; ``random``, any; ``probabilistic``, drawn for each code with
            the softmax of minus the squared distances.
        decay: γ.

    Raises:
        ValueError: a size below 1, unknown anchors or a decay outside [0, 1). In training each process must have as
            many vectors as the others.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        anchors: Anchors = "closest",
        decay: float = 0.99,
    ) -> None:
        super().__init__(codebook_size, code_dim, nn.Identity(), commitment_weight=commitment_weight)
        check_decay(decay)
        if anchors not in get_args(Anchors):
            raise ValueError(f"unknown anchors {anchors!r}; there are {', '.join(get_args(Anchors))}")
        self.anchors: Anchors = anchors
        self.decay = decay
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if self.training:
            self._reanchor(z_bhwd.detach().reshape(-1, self.code_dim))
        quantized_bhwd, indices_bhw, terms = super()._forward(z_bhwd)
        if self.training:
            counts_k = count_codes(indices_bhw.reshape(-1), self.codebook_size)
            self.usage.mul_(self.decay).add_(counts_k / counts_k.sum(), alpha=1 - self.decay)
            self.steps.add_(1)
        return quantized_bhwd, indices_bhw, terms

    @torch.no_grad()
    def _reanchor(self, z_nd: Tensor) -> None:
        z_nd = gather_over_processes(z_nd)
        check_finite("z", z_nd)
        rows_k = self._anchor_rows(z_nd)
        alpha_k = torch.exp(-self.usage * self.codebook_size * 10 / (1 - self.decay) - 1e-3)
        # Before the first batch no usage is known.
        alpha_k = alpha_k * (self.steps > 0)
        self.codebook.lerp_(z_nd[rows_k], alpha_k[:, None])

    def _anchor_rows(self, z_nd: Tensor) -> Tensor:
        """The row of each code's anchor, int64 (K,), the same on every process."""
        if self.anchors == "closest":
            return nearest_code(self.codebook, z_nd)
        if self.anchors == "random":
            return draw_rows(len(z_nd), self.codebook_size, seed=int(self.steps)).to(z_nd.device)
        rows_k = _draw_close_rows(self.codebook, z_nd, seed=int(self.steps))
        # The first process's: another machine may round the probabilities differently.
        return gather_over_processes(rows_k)[: self.codebook_size]


def _draw_close_rows(codebook_kd: Tensor, z_nd: Tensor, *, seed: int) -> Tensor:
    """For each code a row of z, drawn with the softmax of minus the squared distances."""
    generator = torch.Generator(z_nd.device).manual_seed(seed)
    squares_n = z_nd.square().sum(1)
    rows = []
    for codes_td in codebook_kd.split(max(1, _TILE // len(z_nd))):
        # Without the code's own square, which the softmax cancels.
        closeness_tn = torch.addmm(squares_n, codes_td, z_nd.T, beta=-1, alpha=2)
        rows.append(torch.multinomial(closeness_tn.softmax(1), 1, generator=generator)[:, 0])
    return torch.cat(rows)
