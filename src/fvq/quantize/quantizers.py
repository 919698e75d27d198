"""Quantizers: a codebook, a projector that maps it, the code search and the losses around it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.bridge import VQBridge, check_positive
from fvq.quantize.search import nearest_code

QUANTIZERS = ("vq", "linear", "mlp5", "fvq")


@dataclass(frozen=True)
class Quantized:
    """What a quantizer's forward pass gives.

    Attributes:
        quantized: (B, d, h, w); its gradient passes straight through to z (Eq. 4).
        indices: int64 (B, h, w).
        loss: scalar, the sum of the terms below (Eq. 5).
        terms: the loss terms by name, already weighted.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module):
    """Vector quantization with a projected codebook: ``mapped = projector(codebook)`` (paper §3.1).

    Plain VQ has the identity as projector. The codebook starts uniform in ±1/K, as in the released code.
    """

    def __init__(
        self, codebook_size: int, code_dim: int, projector: nn.Module, commitment_weight: float = 0.25
    ) -> None:
        super().__init__()
        check_positive(codebook_size=codebook_size, code_dim=code_dim)
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(
            torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        )
        self.projector = projector

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return self.codebook.shape[0]

    def mapped_codebook(self) -> Tensor:
        """The codes (K, d) float32 that z is compared with; mapped without autocast, as the frozen codebook will be."""
        with torch.autocast(self.codebook.device.type, enabled=False):
            mapped: Tensor = self.projector(self.codebook)
        return mapped.float()

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, d, h, w) in float32 whatever its type.

        The search runs without autograd and the loss gathers the chosen codes: the loss, indices and gradients of the
        dense form at O(N·tile) memory.
        """
        z_bhwd = z.movedim(1, -1).float()
        codebook_kd = self.mapped_codebook()
        indices_bhw = nearest_code(z_bhwd, codebook_kd)
        codes_bhwd = F.embedding(indices_bhw, codebook_kd)
        terms = {
            "codebook": F.mse_loss(codes_bhwd, z_bhwd.detach()),
            "commitment": self.commitment_weight * F.mse_loss(z_bhwd, codes_bhwd.detach()),
        }
        quantized = z_bhwd + (codes_bhwd - z_bhwd).detach()
        return Quantized(
            quantized.movedim(-1, 1).contiguous(), indices_bhw, terms["codebook"] + terms["commitment"], terms
        )

    @torch.no_grad()
    def quantize(self, z: Tensor) -> Tensor:
        """Indices int64 (B, h, w) of z (B, d, h, w); no losses, no gradient."""
        return nearest_code(z.movedim(1, -1), self.mapped_codebook())

    def indices_to_vectors(self, indices: Tensor) -> Tensor:
        """The codes (B, d, h, w) float32 that the forward pass used for indices int64 (B, h, w).

        Raises:
            ValueError: an index outside [0, K), or no integer.
        """
        if indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"indices must be int64, not {str(indices.dtype).removeprefix('torch.')}")
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < self.codebook_size):
            raise ValueError(f"indices must lie in [0, {self.codebook_size})")
        return F.embedding(indices, self.mapped_codebook()).movedim(-1, 1)

    @torch.no_grad()
    def freeze(self) -> "Quantizer":
        """A plain quantizer that holds the mapped codebook; raw codebook and projector are gone."""
        code_dim = self.codebook.shape[1]
        frozen = Quantizer(self.codebook_size, code_dim, nn.Identity(), self.commitment_weight)
        frozen.codebook.copy_(self.mapped_codebook())
        return frozen.requires_grad_(False).to(self.codebook.device)


def build_quantizer(
    name: str, *, codebook_size: int, code_dim: int, commitment_weight: float = 0.25, **bridge: Any
) -> Quantizer:
    """A quantizer by name.

    ``vq``: plain VQ with straight-through gradients. ``linear``: a trainable codebook through one biased linear layer,
    the paper's baseline. ``mlp5``: through five linear layers with ReLU between. ``fvq``: through VQBridge, whose
    keyword arguments may follow.

    Raises:
        ValueError: an unknown name (the message lists the names), or sizes that do not fit.
    """
    check_positive(codebook_size=codebook_size, code_dim=code_dim)
    projector: nn.Module
    if bridge and name != "fvq":
        raise ValueError(f"quantizer {name!r} has no bridge and takes no {', '.join(sorted(bridge))}")
    if name == "vq":
        projector = nn.Identity()
    elif name == "linear":
        projector = nn.Linear(code_dim, code_dim)
    elif name == "mlp5":
        layers: list[nn.Module] = [nn.Linear(code_dim, code_dim)]
        for _ in range(4):
            layers += [nn.ReLU(), nn.Linear(code_dim, code_dim)]
        projector = nn.Sequential(*layers)
    elif name == "fvq":
        projector = VQBridge(codebook_size, code_dim, **bridge)
    else:
        raise ValueError(f"unknown quantizer {name!r}; there are {', '.join(QUANTIZERS)}")
    return Quantizer(codebook_size, code_dim, projector, commitment_weight)
