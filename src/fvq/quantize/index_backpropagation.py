"""Index backpropagation: every code learns from every token, through the probabilities behind the choice."""

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fvq.quantize.lookup_free import entropy
from fvq.quantize.operation import define_search
from fvq.quantize.processes import mean_over_processes
from fvq.quantize.quantizer import Quantizer
from fvq.quantize.shortlist import ieee_products

# Bytes of the logits of a tile of tokens.
_LOGITS_BYTES = 2**26
# Tokens and codes whose products are compared at once.
_TOKENS = 2048
_CODES = {"cpu": 1024, "cuda": 8192}


class IndexBackpropagationQuantizer(Quantizer):
    """IBQ (Shi et al. 2024, §3.2; weights of TencentARC/SEED-Voken): the code with the largest inner product z·e.

    The quantized value is that code, e. Its gradient is the one of Ind·E, where Ind = one-hot - sg p + p and
    p = softmax(z·Eᵀ): it reaches the chosen code directly, and z and all codes through p.

    Loss terms: ``quantization``, mean |Ind·E - z|², with gradients to both; ``commitment``, mean |sg e - z|²;
    ``codebook``, mean |e - sg z|²; ``entropy``, the mean entropy of a token's softmax(z·Eᵀ / T) less the entropy of
    its mean over all tokens of all processes, which must have equally many.

    Probabilities are made for a tile of tokens at a time, and again in the backward pass: no N×K is kept.

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a code.
        commitment_weight: weight of the commitment term.
        codebook_weight: weight β of the codebook term.
        entropy_weight: weight of the entropy term; 0 leaves it out.
        temperature: T of the entropy term.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        temperature: float = 0.01,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.entropy_weight, self.temperature = entropy_weight, temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim))

    def freeze(self) -> Self:
        """The same codes and choice without the entropy term."""
        frozen = copy.deepcopy(self)
        frozen.entropy_weight = 0.0
        return frozen._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codebook_kd = self.codebook.float()
        indices_bhw = self._quantize(z_bhwd)
        codes_bhwd = F.embedding(indices_bhw, codebook_kd)
        soft_nd, entropies = self._soft_codes(z_bhwd.reshape(-1, self.code_dim), codebook_kd)
        soft_bhwd = soft_nd.view(z_bhwd.shape)
        quantized_bhwd = codes_bhwd + (soft_bhwd - soft_bhwd.detach())
        terms = {
            "quantization": F.mse_loss(quantized_bhwd, z_bhwd),
            "commitment": self.commitment_weight * F.mse_loss(z_bhwd, codes_bhwd.detach()),
            "codebook": self.codebook_weight * F.mse_loss(codes_bhwd, z_bhwd.detach()),
        }
        if entropies is not None:
            terms["entropy"] = self.entropy_weight * entropies
        return quantized_bhwd, indices_bhw, terms

    def _soft_codes(self, z_nd: Tensor, codebook_kd: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean codes p·E with gradient to p alone, and sample less batch entropy where it has a weight."""
        # A tile's gradient to the codebook has d·K values, so fewer than d tokens would save nothing.
        tokens = max(self.code_dim, _LOGITS_BYTES // (4 * self.codebook_size))
        temperature = self.temperature if self.entropy_weight else None
        soft, sample_entropy, probability_k = [], z_nd.new_zeros(()), z_nd.new_zeros(self.codebook_size)
        for tile_nd in z_nd.split(tokens):
            soft_nd, sums = checkpoint(
                _soft_tile, tile_nd, codebook_kd, temperature, use_reentrant=False, preserve_rng_state=False
            )
            soft.append(soft_nd)
            if sums is not None:
                sample_entropy, probability_k = sample_entropy + sums[0], probability_k + sums[1]
        if temperature is None:
            return torch.cat(soft), None
        batch_entropy = entropy(mean_over_processes(probability_k / len(z_nd)))
        return torch.cat(soft), sample_entropy / len(z_nd) - batch_entropy

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return largest_product(z_bhwd, self.codebook.float())

    def _vectors(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook.float())


def _soft_tile(
    z_nd: Tensor, codebook_kd: Tensor, temperature: float | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """p·E with gradient to p alone; with a temperature, also the sums of the entropies and of the probabilities."""
    logits_nk = z_nd @ codebook_kd.T
    # Ind is the one-hot in value: its gradient to E is the chosen code's, not this product's.
    soft_nd = logits_nk.softmax(1) @ codebook_kd.detach()
    if temperature is None:
        return soft_nd, None
    logarithms_nk = (logits_nk / temperature).log_softmax(1)
    probabilities_nk = logarithms_nk.exp()
    return soft_nd, (-(probabilities_nk * logarithms_nk).sum(), probabilities_nk.sum(0))


def largest_product(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the largest inner product for each vector, compared as float64 would.

    Args:
        z: (..., d) float32, any strides.
        codebook: (K, d) float32.

    Returns:
        int64 (...): of several that agree to float64 rounding the lowest. No gradient flows.

    Float32 products with a bound on their error (as in ``shortlist``) tell in which tiles of codes the largest can lie;
    these are multiplied again in float64. So the result does not depend on how vectors are split into batches.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    z_nd = z.detach().reshape(-1, z.shape[-1]).contiguous()
    return _operation(z_nd, codebook.detach().contiguous()).reshape(z.shape[:-1])


def _largest_product(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    with ieee_products(z_nd.device):
        return torch.cat([_search(tile_nd, codebook_kd) for tile_nd in z_nd.split(_TOKENS)])


_operation = define_search("largest_product", _largest_product)


def _search(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    tiles = codebook_kd.split(_CODES["cuda" if z_nd.is_cuda else "cpu"])
    # |z| times the largest |e| of a tile: a product of d terms is off by at most about d roundoffs of this.
    norms_t = torch.stack([codes_kd.double().norm(dim=1).amax() for codes_kd in tiles])
    norms_nt = z_nd.double().norm(dim=1, keepdim=True) * norms_t
    largest_nt = torch.stack([(z_nd @ codes_kd.T).amax(1) for codes_kd in tiles], 1).double()
    errors_nt = (z_nd.shape[1] + 16) * (2.0**-24 * norms_nt + 2.0**-125)
    # Where a product overflowed nothing is ruled out.
    listed_nt = (largest_nt + errors_nt < (largest_nt - errors_nt).amax(1, keepdim=True)).logical_not_()
    rounding_n = 2 * (z_nd.shape[1] + 4) * 2.0**-53 * norms_nt.amax(1)
    best_n = torch.full_like(rounding_n, -torch.inf)
    indices_n = torch.zeros_like(best_n, dtype=torch.int64)
    first = 0
    for codes_kd, listed_n in zip(tiles, listed_nt.unbind(1), strict=True):
        rows_n = listed_n.nonzero()[:, 0]
        products_nk = z_nd[rows_n].double() @ codes_kd.double().T
        largest_n = products_nk.amax(1)
        ties_nk = products_nk >= (largest_n - rounding_n[rows_n])[:, None]
        better_n = largest_n > best_n[rows_n] + rounding_n[rows_n]
        indices_n[rows_n[better_n]] = ties_nk[better_n].int().argmax(1) + first
        best_n[rows_n[better_n]] = largest_n[better_n]
        first += len(codes_kd)
    return indices_n
