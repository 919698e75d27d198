"""Lookup-free quantization: the signs of the channels are the code, and there is no codebook."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fvq.quantize.checks import check_finite
from fvq.quantize.processes import mean_over_processes
from fvq.quantize.quantizer import Quantizer, straight_through

# Bits whose codes' mean probabilities are kept together: 1 MB of them.
_EXACT_BITS = 18


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (scalar, nats) of probabilities of any shape; where one is 0 the gradient is large but finite."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum()


def default_factors(code_dim: int) -> tuple[int, ...]:
    """Groups of bits for the batch entropy: one, which is exact, up to 18 bits; above, equal ones of at most 18."""
    groups = math.ceil(code_dim / _EXACT_BITS)
    return tuple((code_dim + place) // groups for place in reversed(range(groups)))


def split_indices(indices: Tensor, bits: Sequence[int]) -> list[Tensor]:
    """Indices of many bits as several of few, for an autoregressive model over 2^6 × 2^12 tokens instead of 2^18.

    Args:
        indices: int64, any shape, in [0, 2^sum(bits)).
        bits: of each part; the first part has the lowest bits, which are the first channels.

    Returns:
        One int64 tensor per part, of the same shape.

    Raises:
        ValueError: a part without bits, or an index out of range.
    """
    _check_bits(bits)
    _check_range("indices", indices, sum(bits))
    parts = []
    for count in bits:
        parts.append(indices & (2**count - 1))
        indices = indices >> count
    return parts


def join_indices(parts: Sequence[Tensor], bits: Sequence[int]) -> Tensor:
    """Undo ``split_indices``: int64 parts of one shape to the indices.

    Raises:
        ValueError: a part without bits or out of range, or another number of parts than of ``bits``.
    """
    _check_bits(bits)
    if len(parts) != len(bits):
        raise ValueError(f"{len(parts)} parts do not fit bits {tuple(bits)}")
    indices, first = torch.zeros_like(parts[0]), 0
    for part, count in zip(parts, bits, strict=True):
        _check_range("the part", part, count)
        indices = indices | (part << first)
        first += count
    return indices


class LookupFreeQuantizer(Quantizer):
    """LFQ (Yu et al. 2024, MAGVIT-v2, §3.1; weights and temperature of Open-MAGVIT2): code = sign(z).

    Bit i of an index, worth 2^i, is 1 where channel i is positive; 0 counts as negative. There are no parameters.

    Loss terms: ``commitment``, mean |z - sg sign z|², and ``entropy``, the mean entropy of a token's distribution over
    the codes less the entropy of their mean over all tokens of all processes, which must have equally many. The
    distribution is softmax(2 z·C / T) over all 2^d codes C. Its bits are independent, so a token's entropy is the sum
    of its bits' entropies; the mean over tokens is not a product, but comes from one matrix product of the
    probabilities of two halves of the bits.

    Args:
        codebook_size: number of codes, 2^code_dim.
        code_dim: number of bits d.
        commitment_weight: weight of the commitment term.
        entropy_weight: weight of the entropy term; 0 leaves it out.
        diversity_weight: weight of the batch entropy within the entropy term.
        temperature: T.
        factors: group sizes of consecutive bits, adding up to d. The batch entropy is the sum of the groups' batch
            entropies, an upper bound that is exact with one group. A group of b bits takes N·2^b multiply-adds and 2^b
            floats for N tokens. By default ``default_factors(code_dim)``.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        factors: Sequence[int] | None = None,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        _check_power_of_two(codebook_size, code_dim)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.diversity_weight, self.temperature = diversity_weight, temperature
        self.factors = default_factors(code_dim) if factors is None else tuple(factors)
        if min(self.factors, default=0) < 1 or sum(self.factors) != code_dim:
            raise ValueError(f"factors {self.factors} must be positive and add up to code_dim {code_dim}")

    def freeze(self) -> Self:
        """The same signs without the entropy term."""
        frozen = copy.deepcopy(self)
        frozen.entropy_weight = 0.0
        return frozen._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        indices_bhw = self._quantize(z_bhwd)
        codes_bhwd = self._vectors(indices_bhw)
        terms = {"commitment": self.commitment_weight * F.mse_loss(z_bhwd, codes_bhwd)}
        if self.entropy_weight:
            terms["entropy"] = self.entropy_weight * self._entropy(z_bhwd.reshape(-1, self.code_dim))
        return straight_through(z_bhwd, codes_bhwd), indices_bhw, terms

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        check_finite("z", z_bhwd)
        return ((z_bhwd > 0).long() << self._places(z_bhwd)).sum(-1)

    def _vectors(self, indices: Tensor) -> Tensor:
        bits = (indices[..., None] >> self._places(indices)) & 1
        return (2 * bits - 1).float()

    def _places(self, values: Tensor) -> Tensor:
        return torch.arange(self.code_dim, device=values.device)

    def _entropy(self, z_nd: Tensor) -> Tensor:
        # Between +1 and -1 the logits 2 z·C / T differ by this: the log-odds of a bit.
        odds_nd = 4 / self.temperature * z_nd
        entropies_nd = -(odds_nd.sigmoid() * F.logsigmoid(odds_nd) + (-odds_nd).sigmoid() * F.logsigmoid(-odds_nd))
        groups = odds_nd.split(self.factors, dim=1)
        batch_entropies = [entropy(mean_over_processes(_mean_probabilities(odds_nb))) for odds_nb in groups]
        return entropies_nd.sum(1).mean() - self.diversity_weight * torch.stack(batch_entropies).sum()


def _mean_probabilities(odds_nb: Tensor) -> Tensor:
    """The mean over tokens of the probabilities of all 2^b codes, as a matrix: upper bits by lower bits."""
    bits = odds_nb.shape[1]
    lower_nk, upper_nk = _probabilities(odds_nb[:, : bits // 2]), _probabilities(odds_nb[:, bits // 2 :])
    return upper_nk.T @ lower_nk / len(odds_nb)


def _probabilities(odds_nb: Tensor) -> Tensor:
    """The probabilities (n, 2^b) of all codes of independent bits."""
    probabilities_nk = odds_nb.new_ones(len(odds_nb), 1)
    for odds_n in odds_nb.unbind(1):
        halves = [probabilities_nk * odds.sigmoid()[:, None] for odds in (-odds_n, odds_n)]
        probabilities_nk = torch.cat(halves, dim=1)
    return probabilities_nk


def _check_power_of_two(codebook_size: int, code_dim: int) -> None:
    power = codebook_size.bit_length() - 1
    if codebook_size != 2**power:
        below, above = (f"{2**bits} (code_dim {bits})" for bits in (power, power + 1))
        raise ValueError(
            f"codebook_size {codebook_size} is not a power of two; the nearest sizes that work are {below} and {above}"
        )
    if power != code_dim:
        raise ValueError(
            f"codebook_size {codebook_size} needs code_dim {power}, not {code_dim}; "
            f"with code_dim {code_dim} the size that works is 2**{code_dim}"
        )


def _check_bits(bits: Sequence[int]) -> None:
    if min(bits, default=0) < 1:
        raise ValueError(f"bits {tuple(bits)} must be one or more counts of at least 1")


def _check_range(name: str, indices: Tensor, bits: int) -> None:
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < 2**bits):
        raise ValueError(f"{name} must lie in [0, {2**bits}) for {bits} bits")
