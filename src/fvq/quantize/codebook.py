"""Quantizers that learn a codebook by gradients: plain, normalised, or mapped by a projector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.quantizer import Quantizer, straight_through
from fvq.quantize.search import nearest_code


class CodebookQuantizer(Quantizer):
    """Vector quantization with a projected codebook: ``mapped = projector(codebook)`` (paper §3.1, Eq. 1 to 5).

    Loss terms: ``codebook``, mean |e - sg z|², which moves the codes, and ``commitment``, mean |sg e - z|².

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a mapped code.
        projector: maps the raw codebook to (K, d); the identity for plain VQ.
        commitment_weight: β of Eq. 5.
        codebook_weight: weight of the codebook term.
        raw_codebook: float (K, any) to start from; by default uniform in ±1/K of dimension d, as in the released code.
        trained: whether the raw codebook learns, or the projector alone.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        projector: nn.Module,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        raw_codebook: Tensor | None = None,
        trained: bool = True,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        if raw_codebook is None:
            raw_codebook = torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        elif raw_codebook.ndim != 2 or len(raw_codebook) != codebook_size:
            raise ValueError(f"the codebook to start from is {tuple(raw_codebook.shape)}, not ({codebook_size}, …)")
        self.codebook = nn.Parameter(raw_codebook, requires_grad=trained)
        self.projector = projector

    def mapped_codebook(self) -> Tensor:
        """The codes (K, d) float32 that z is compared with; mapped without autocast, as the frozen codebook will be."""
        with torch.autocast(self.codebook.device.type, enabled=False):
            mapped: Tensor = self.projector(self.codebook)
        return mapped.float()

    def freeze(self) -> "CodebookQuantizer":
        """Plain VQ that holds the mapped codebook; raw codebook and projector are gone."""
        with torch.no_grad():
            mapped_kd = self.mapped_codebook().clone()
        plain = CodebookQuantizer(
            self.codebook_size,
            self.code_dim,
            nn.Identity(),
            commitment_weight=self.commitment_weight,
            codebook_weight=self.codebook_weight,
            raw_codebook=mapped_kd,
        )
        return plain._frozen()

    def quantize_with(self, z_bhwd: Tensor, codebook_kd: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes of a mapped codebook, with gradient to it, and their indices.

        The search runs without autograd and the codes are gathered: loss, indices and gradients of the dense form at
        O(N·tile) memory.
        """
        indices_bhw = nearest_code(z_bhwd, codebook_kd)
        return F.embedding(indices_bhw, codebook_kd), indices_bhw

    def losses(self, codes: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The weighted terms of Eq. 5."""
        return {
            "codebook": self.codebook_weight * F.mse_loss(codes, z.detach()),
            "commitment": self.commitment_weight * F.mse_loss(z, codes.detach()),
        }

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes_bhwd, indices_bhw = self.quantize_with(z_bhwd, self.mapped_codebook())
        return straight_through(z_bhwd, codes_bhwd), indices_bhw, self.losses(codes_bhwd, z_bhwd)

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return nearest_code(z_bhwd, self.mapped_codebook())

    def _vectors(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.mapped_codebook())


class NormalizedQuantizer(CodebookQuantizer):
    """VQ on the unit sphere, for codes of few dimensions (ViT-VQGAN; LlamaGen's default with d = 8).

    Both sides are normalised before distance, loss and straight-through. A nearest unit code does not depend on the
    length of z, so the search takes z as it is, and the frozen quantizer is plain VQ with unit codes.
    """

    def __init__(self, codebook_size: int, code_dim: int, *, commitment_weight: float = 0.25) -> None:
        super().__init__(codebook_size, code_dim, _Normalize(), commitment_weight=commitment_weight)

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes_bhwd, indices_bhw = self.quantize_with(z_bhwd, self.mapped_codebook())
        unit_bhwd = F.normalize(z_bhwd, dim=-1)
        return straight_through(unit_bhwd, codes_bhwd), indices_bhw, self.losses(codes_bhwd, unit_bhwd)


class _Normalize(nn.Module):
    def forward(self, codebook_kd: Tensor) -> Tensor:
        return F.normalize(codebook_kd, dim=-1)


def mlp(code_dim: int, layers: int = 5) -> nn.Sequential:
    """MLP-5: linear layers with ReLU between, code by code (paper §3.1, Observation 3)."""
    parts: list[nn.Module] = [nn.Linear(code_dim, code_dim)]
    for _ in range(layers - 1):
        parts += [nn.ReLU(), nn.Linear(code_dim, code_dim)]
    return nn.Sequential(*parts)
