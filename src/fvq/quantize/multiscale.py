"""Multi-scale residual quantization: an image as token maps from coarse to fine."""

import copy
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.checks import check_positive
from fvq.quantize.quantizer import Quantizer, straight_through
from fvq.quantize.residual import composable, mean_losses

# VAR's for latents of 16×16.
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class MultiscaleQuantizer(Quantizer):
    """One shared codebook quantizes what is left of z at growing scales (VAR, Tian et al. 2024).

    At each scale k the rest of z is averaged down to k×k (not at the last), replaced by its nearest codes, enlarged by
    bicubic interpolation, smoothed by φ_k, added to f̂ and taken from the rest. φ(x) = (1 - w)·x + w·conv3x3(x), with
    neighbouring scales sharing their convolution. Loss terms with the weights of ``inner``: ``codebook``, the mean over
    the scales of mean |f̂_k - sg z|², which moves the codes and convolutions of all scales up to k, and ``commitment``,
    the mean over the scales of mean |sg f̂_k - z|², as in FoundationVision/VAR.

    z is (B, d, side, side), where ``side`` is the last scale. Indices are int64 (B, Σk²), scale by scale and row by row
    within each: (B, 680) with the default scales. ``indices_to_vectors`` returns the bits of the forward pass for the
    same batch; other batch sizes may take other convolution kernels, which round otherwise.

    Args:
        inner: the codebook with its projector, its search and its loss weights.
        scales: sides of the token maps, ascending.
        phi_weight: w, the share of the convolution.
        shared_phi: number of convolutions, no more than there are scales.

    Raises:
        ValueError: ``inner`` does not compose, or an option is out of range.
    """

    def __init__(
        self,
        inner: Quantizer,
        *,
        scales: Sequence[int] = SCALES,
        phi_weight: float = 0.5,
        shared_phi: int = 4,
    ) -> None:
        super().__init__(inner.codebook_size, inner.code_dim)
        check_positive(shared_phi=shared_phi)
        if not scales or scales[0] < 1 or any(low >= high for low, high in pairwise(scales)):
            raise ValueError(f"scales must be ascending sides from 1, not {tuple(scales)}")
        if not 0 <= phi_weight <= 1:
            raise ValueError(f"phi_weight must lie in [0, 1], not {phi_weight}")
        self.inner, self.scales, self.phi_weight = composable(inner), tuple(scales), phi_weight
        count = min(shared_phi, len(self.scales))
        self.phi_of_scale = shared_ticks(len(self.scales), count)
        self.phi = nn.ModuleList(nn.Conv2d(self.code_dim, self.code_dim, 3, padding=1) for _ in range(count))

    @property
    def side(self) -> int:
        """Height and width of z."""
        return self.scales[-1]

    @property
    def tokens(self) -> int:
        """Indices per image."""
        return sum(scale**2 for scale in self.scales)

    def indices_to_scales(self, indices: Tensor) -> list[Tensor]:
        """The token maps (B, k, k), scale by scale, of indices (B, tokens).

        Raises:
            ValueError: another number of tokens.
        """
        if indices.ndim != 2 or indices.shape[1] != self.tokens:
            raise ValueError(f"indices {tuple(indices.shape)} must be (B, {self.tokens})")
        maps = indices.split([scale**2 for scale in self.scales], 1)
        return [one.unflatten(1, (scale, scale)) for one, scale in zip(maps, self.scales, strict=True)]

    def freeze(self) -> "MultiscaleQuantizer":
        """Multi-scale quantization with the mapped codebook and the convolutions as they are."""
        # A copy draws no random numbers, which building convolutions would take from the training.
        return copy.deepcopy(self, {id(self.inner): self.inner.freeze()})._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        sums, indices = zip(*self._steps(z_bhwd), strict=True)
        terms = mean_losses(self.inner, sums, z_bhwd)
        return straight_through(z_bhwd, sums[-1]), torch.cat(indices, 1), terms

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return torch.cat([indices for _, indices in self._steps(z_bhwd)], 1)

    def _vectors(self, indices: Tensor) -> Tensor:
        codebook_kd = self.inner.mapped_codebook()
        maps = self.indices_to_scales(indices)
        sum_bhwd = codebook_kd.new_zeros(len(indices), self.side, self.side, self.code_dim)
        for number, indices_bkk in enumerate(maps):
            sum_bhwd = sum_bhwd + self._enlarge(F.embedding(indices_bkk, codebook_kd), number)
        return sum_bhwd

    def _steps(self, z_bhwd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per scale, f̂ so far (B, side, side, d), with gradient to codes and convolutions, and the indices (B, k²)."""
        if z_bhwd.shape[1:3] != (self.side, self.side) or z_bhwd.ndim != 4:
            shape = tuple(z_bhwd.movedim(-1, 1).shape)
            raise ValueError(f"z {shape} must be (B, {self.code_dim}, {self.side}, {self.side}) as the last scale")
        codebook_kd = self.inner.mapped_codebook()
        rest_bhwd, sum_bhwd = z_bhwd.detach(), torch.zeros_like(z_bhwd)
        for number, scale in enumerate(self.scales):
            codes_bkkd, indices_bkk = self.inner.quantize_with(_resize(rest_bhwd, scale, "area"), codebook_kd)
            step_bhwd = self._enlarge(codes_bkkd, number)
            rest_bhwd, sum_bhwd = rest_bhwd - step_bhwd.detach(), sum_bhwd + step_bhwd
            yield sum_bhwd, indices_bkk.flatten(1)

    def _enlarge(self, codes_bkkd: Tensor, number: int) -> Tensor:
        """What the codes of a scale add to f̂ (B, side, side, d)."""
        large_bhwd = _resize(codes_bkkd, self.side, "bicubic")
        convolved_bdhw = self.phi[self.phi_of_scale[number]](large_bhwd.movedim(-1, 1))
        return (1 - self.phi_weight) * large_bhwd + self.phi_weight * convolved_bdhw.movedim(1, -1)


def shared_ticks(scales: int, count: int) -> list[int]:
    """Which of ``count`` convolutions each scale takes: the nearest of evenly spaced ticks, as in VAR.

    Scales lie evenly on [0, 1] and ticks on [1/(3n), 1 - 1/(3n)] for n = 4, else on [1/(2n), 1 - 1/(2n)]. The higher
    of two equally near ticks is taken, as VAR's rounding does with four.
    """
    if count == 1:
        return [0] * scales
    edge = Fraction(1, 3 * count if count == 4 else 2 * count)
    step = (1 - 2 * edge) / (count - 1)
    nearest = [math.floor((Fraction(scale, scales - 1) - edge) / step + Fraction(1, 2)) for scale in range(scales)]
    return [min(max(tick, 0), count - 1) for tick in nearest]


def _resize(x_bhwd: Tensor, side: int, mode: str) -> Tensor:
    if x_bhwd.shape[1] == side:
        return x_bhwd
    return F.interpolate(x_bhwd.movedim(-1, 1), size=(side, side), mode=mode).movedim(1, -1)
