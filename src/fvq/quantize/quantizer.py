"""What every quantizer has in common."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from fvq.quantize.checks import check_positive


@dataclass(frozen=True)
class Quantized:
    """What a quantizer's forward pass gives.

    Attributes:
        quantized: float32 (B, d, h, w), exactly ``indices_to_vectors(indices)``; gradients reach z through it.
        indices: int64 (B, h, w); other shapes where a quantizer says so.
        loss: scalar, the sum of the terms below.
        terms: the loss terms by name, already weighted.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module):
    """Vectors to indices and back, in float32 whatever the autocast.

    A subclass implements ``_forward``, ``_quantize``, ``_vectors`` and ``freeze``; they see channels last.

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a code.
    """

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        check_positive(codebook_size=codebook_size, code_dim=code_dim)
        self.codebook_size, self.code_dim = codebook_size, code_dim

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, d, h, w) of any floating type, with losses and gradients.

        Raises:
            ValueError: z has another shape, or NaN or infinite values.
        """
        with torch.autocast(z.device.type, enabled=False):
            quantized_bhwd, indices, terms = self._forward(self._channels_last(z))
            loss = torch.stack(list(terms.values())).sum() if terms else quantized_bhwd.new_zeros(())
        return Quantized(quantized_bhwd.movedim(-1, 1).contiguous(), indices, loss, terms)

    @torch.no_grad()
    def quantize(self, z: Tensor) -> Tensor:
        """Indices int64 (B, h, w) of z (B, d, h, w) as ``forward`` gives them, without losses, gradient or change."""
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(self._channels_last(z))

    def indices_to_vectors(self, indices: Tensor) -> Tensor:
        """The vectors float32 (B, d, h, w) that the forward pass used for integer indices (B, h, w).

        Raises:
            ValueError: an index outside [0, K), or no integer.
        """
        if indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"indices must be int64, not {str(indices.dtype).removeprefix('torch.')}")
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < self.codebook_size):
            raise ValueError(f"indices must lie in [0, {self.codebook_size})")
        with torch.autocast(indices.device.type, enabled=False):
            return self._vectors(indices).movedim(-1, 1)

    def freeze(self) -> "Quantizer":
        """A quantizer with the same indices and vectors that no longer learns, without what only training needs."""
        raise NotImplementedError

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The quantized vectors (B, h, w, d), the indices and the weighted loss terms."""
        raise NotImplementedError

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        raise NotImplementedError

    def _vectors(self, indices: Tensor) -> Tensor:
        """The vectors (…, d) of indices (…)."""
        raise NotImplementedError

    def _channels_last(self, z: Tensor) -> Tensor:
        if z.ndim < 2 or z.shape[1] != self.code_dim:
            raise ValueError(f"z {tuple(z.shape)} must be (B, {self.code_dim}, …)")
        return z.movedim(1, -1).float()

    def _frozen(self) -> Self:
        """Itself without gradients, in evaluation mode."""
        return self.requires_grad_(False).eval()


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The codes' exact values with z's gradient (Eq. 4). ``z + (codes - z).detach()`` would round twice."""
    return codes.detach() + (z - z.detach())
