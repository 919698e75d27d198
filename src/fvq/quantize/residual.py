"""Residual quantization: several codes of one codebook add up to a vector."""

import operator
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fvq.quantize.checks import check_positive
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.quantizer import Quantizer, straight_through

# RQ-VAE's for ImageNet.
DEPTH = 4


class ResidualQuantizer(Quantizer):
    """One shared codebook quantizes z, then what is left of it, ``depth`` times (RQ-VAE, Lee et al. 2022).

    With r_0 = z: k_i is the nearest code of r_{i-1}, and r_i = r_{i-1} - e_{k_i}. A vector is the sum of its codes.
    Loss terms, with the partial sums s_i = e_{k_1} + … + e_{k_i} and the weights of ``inner``: ``codebook``, the mean
    over i of mean |s_i - sg z|², which moves all codes up to depth i, and ``commitment``, the mean over i of
    mean |sg s_i - z|², as in kakaobrain/rq-vae-transformer.

    The codebook learns by gradients through its projector, as in the paper's Table 4. RQ-VAE itself learns it by moving
    averages and restarts dead codes; neither is reproduced.

    Indices are int64 (B, h, w, depth).

    Args:
        inner: the codebook with its projector, its search and its loss weights.
        depth: codes per vector.

    Raises:
        ValueError: depth below 1, or ``inner`` does not compose.
    """

    def __init__(self, inner: Quantizer, *, depth: int = DEPTH) -> None:
        super().__init__(inner.codebook_size, inner.code_dim)
        check_positive(depth=depth)
        self.inner, self.depth = composable(inner), operator.index(depth)

    def freeze(self) -> "ResidualQuantizer":
        """Residual quantization with the mapped codebook."""
        return ResidualQuantizer(self.inner.freeze(), depth=self.depth)._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        sums, indices = zip(*self._depths(z_bhwd), strict=True)
        terms = mean_losses(self.inner, sums, z_bhwd)
        return straight_through(z_bhwd, sums[-1]), torch.stack(indices, -1), terms

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return torch.stack([indices_bhw for _, indices_bhw in self._depths(z_bhwd)], -1)

    def _vectors(self, indices: Tensor) -> Tensor:
        if indices.ndim < 2 or indices.shape[-1] != self.depth:
            raise ValueError(f"indices {tuple(indices.shape)} must be (B, …, {self.depth})")
        codes = F.embedding(indices, self.inner.mapped_codebook())
        # In the order of the forward pass, for the same bits.
        return sum(codes.unbind(-2), torch.zeros_like(codes[..., 0, :]))

    def _depths(self, z_bhwd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per depth, the sum of the codes so far, with gradient to them, and the indices (B, h, w)."""
        codebook_kd = self.inner.mapped_codebook()
        rest_bhwd, sum_bhwd = z_bhwd.detach(), torch.zeros_like(z_bhwd)
        for _ in range(self.depth):
            codes_bhwd, indices_bhw = self.inner.quantize_with(rest_bhwd, codebook_kd)
            rest_bhwd, sum_bhwd = rest_bhwd - codes_bhwd.detach(), sum_bhwd + codes_bhwd
            yield sum_bhwd, indices_bhw


def composable(inner: Quantizer) -> CodebookQuantizer:
    """The quantizer, which others may compose.

    Raises:
        ValueError: it has no codebook, or quantizes otherwise than by its nearest code, whose length counts.
    """
    if not isinstance(inner, CodebookQuantizer) or type(inner)._forward is not CodebookQuantizer._forward:
        raise ValueError(
            f"{type(inner).__name__} cannot be composed: residuals need nearest codes, with their length, "
            "of a codebook that learns by gradients, as vq, linear, simvq, mlp5, fvq and vqgan-lc have"
        )
    return inner


def mean_losses(inner: CodebookQuantizer, sums: tuple[Tensor, ...], z: Tensor) -> dict[str, Tensor]:
    """The loss terms of ``inner`` between z and each of several quantized forms of it, averaged."""
    losses = [inner.losses(quantized, z) for quantized in sums]
    return {name: torch.stack([terms[name] for terms in losses]).mean() for name in losses[0]}
