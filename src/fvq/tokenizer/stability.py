"""Appendix E of the paper measured over one optimisation step: displacements, margins, switched assignments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvq.quantize import nearest_code
from fvq.quantize.codebook import CodebookQuantizer
from fvq.tokenizer.tokenizer import Tokenizer

# Float64 values that are computed at once.
_SCORES, _DIFFERENCES = 2**22, 2**20


FIGURES = (
    "code_displacement",
    "code_displacement_max",
    "feature_displacement",
    "feature_displacement_max",
    "margin_median",
    "within_margin_share",
    "within_joint_margin_share",
    "switched_share",
    "switched_share_same_codebook",
    "switched_outside_margin_share",
    "bound_violations",
    "center_shift",
)
"""What ``StabilityProbe.after`` returns."""


@dataclass(frozen=True)
class _State:
    codebook_kd: Tensor
    z_nd: Tensor
    indices_n: Tensor


class StabilityProbe:
    """What one optimisation step does to the assignments of some images: ``before()``, the step, ``after()``.

    With codes C^(t-1) and features z^(t) before the step, C^(t) and z^(t+1) after it, a token's margin m (Eq. 27) is
    the distance of z^(t) to its second nearest code of C^(t-1) less that to its nearest. A step that moves z by δ_z
    changes each of z's distances by at most δ_z: **within C^(t-1)**, the nearest code stays the same where m > 2δ_z,
    which is what Eq. 28 rests on. The assignment of Eq. 21 is searched in C^(t), whose codes have moved by up to δ_c as
    well. Each distance then changes by at most δ_z + δ_c, and the sufficient margin is m > 2(δ_z + δ_c); m > 2δ_z is
    not enough. Here δ_z is each token's own displacement and δ_c the largest of any code (Eq. 26).

    The probe draws no random numbers, leaves gradients, weights and modes alone and works outside autocast.

    Args:
        tokenizer: the tokenizer in training; its quantizer has a mapped codebook.
        images: float (B, 3, H, W) in [-1, 1], the same at every step, on the tokenizer's device.

    Raises:
        ValueError: the quantizer has no mapped codes, or only one.
    """

    def __init__(self, tokenizer: Tokenizer, images: Tensor) -> None:
        quantizer = tokenizer.quantizer
        if not isinstance(quantizer, CodebookQuantizer):
            raise ValueError(f"margins need mapped codes (CodebookQuantizer), not {type(quantizer).__name__}")
        if quantizer.codebook_size < 2:
            raise ValueError("margins need at least 2 codes, not 1")
        self._tokenizer, self._quantizer, self._images = tokenizer, quantizer, images
        self._before: _State | None = None

    def before(self) -> None:
        """Keep codes, features and assignments as they are before the step."""
        self._before = self._state()

    def after(self) -> dict[str, float]:
        """Compare with what ``before`` kept, which is then forgotten.

        Returns:
            ``code_displacement`` and ``code_displacement_max``: |c^(t) - c^(t-1)| over all codes (its maximum is δ_c).
            ``feature_displacement`` and ``feature_displacement_max``: |z^(t+1) - z^(t)| over the tokens.
            ``margin_median``: the median of m.
            ``within_margin_share``: tokens with m ≤ 2δ_z, which may switch even in the same codebook.
            ``within_joint_margin_share``: tokens with m ≤ 2(δ_z + δ_c), which may switch as the codebook moves.
            ``switched_share``: tokens whose nearest code in C^(t) after the step is not the one in C^(t-1) before it.
            ``switched_share_same_codebook``: the same with C^(t-1) both times: what the encoder alone does.
            ``switched_outside_margin_share``: tokens that switch although m > 2δ_z, because the codebook moved.
            ``bound_violations``: how many tokens contradict one of the two bounds; 0.
            ``center_shift``: mean |z_q^(t+1) - z_q^(t)| (Eq. 23).

        Raises:
            ValueError: ``before`` was not called, or features or codes are NaN or infinite.
        """
        if self._before is None:
            raise ValueError("after() needs a call of before() ahead of the step")
        old, new = self._before, self._state()
        self._before = None
        first_n, second_n = two_nearest(old.z_nd, old.codebook_kd, old.indices_n)
        margin_n = second_n - first_n
        moved_n, moved_k = _distances(old.z_nd, new.z_nd), _distances(old.codebook_kd, new.codebook_kd)
        # Margins and bounds carry the rounding of float64.
        certain_n = margin_n - 1e-12 * second_n
        outside_n = certain_n > 2 * moved_n
        outside_joint_n = certain_n > 2 * (moved_n + moved_k.max())
        switched_n = new.indices_n != old.indices_n
        switched_same_n = nearest_code(new.z_nd, old.codebook_kd) != old.indices_n
        violations = (outside_n & switched_same_n) | (outside_joint_n & switched_n)
        shift_n = _distances(old.codebook_kd[old.indices_n], new.codebook_kd[new.indices_n])
        return {
            "code_displacement": moved_k.mean().item(),
            "code_displacement_max": moved_k.max().item(),
            "feature_displacement": moved_n.mean().item(),
            "feature_displacement_max": moved_n.max().item(),
            "margin_median": margin_n.quantile(0.5).item(),
            "within_margin_share": _share(~outside_n),
            "within_joint_margin_share": _share(~outside_joint_n),
            "switched_share": _share(switched_n),
            "switched_share_same_codebook": _share(switched_same_n),
            "switched_outside_margin_share": _share(outside_n & switched_n),
            "bound_violations": float(violations.sum()),
            "center_shift": shift_n.mean().item(),
        }

    @torch.no_grad()
    def _state(self) -> _State:
        tokenizer = self._tokenizer
        with torch.autocast(self._images.device.type, enabled=False):
            z_bdhw = tokenizer.to_codes(tokenizer.encoder(self._images))
            # A plain quantizer's mapped codebook is the parameter itself, which the step overwrites.
            codebook_kd = self._quantizer.mapped_codebook().clone()
        z_nd = z_bdhw.movedim(1, -1).flatten(0, -2)
        return _State(codebook_kd, z_nd, nearest_code(z_nd, codebook_kd))


def two_nearest(z_nd: Tensor, codebook_kd: Tensor, indices_n: Tensor) -> tuple[Tensor, Tensor]:
    """Distances float64 (N,) of z to its nearest code, which ``indices_n`` names, and to the nearest of the others.

    Codes at the same place count one by one. The memory does not grow with N·K.
    """
    center_d = codebook_kd.double().mean(0)
    z64_nd, rows_n = z_nd.double() - center_d, torch.arange(len(z_nd), device=z_nd.device)
    best_n = torch.full_like(z64_nd[:, 0], torch.inf)
    second_n = torch.zeros_like(indices_n)
    width = max(1, _SCORES // max(1, len(z_nd)))
    for start in range(0, len(codebook_kd), width):
        codes_kd = codebook_kd[start : start + width].double() - center_d
        scores_nk = torch.addmm(codes_kd.square().sum(1) / 2, z64_nd, codes_kd.T, alpha=-1)
        own_n = (indices_n >= start) & (indices_n < start + width)
        scores_nk[rows_n[own_n], indices_n[own_n] - start] = torch.inf
        least_n, place_n = scores_nk.min(1)
        nearer_n = least_n < best_n
        best_n = torch.where(nearer_n, least_n, best_n)
        second_n = torch.where(nearer_n, place_n + start, second_n)
    return _distances(z_nd, codebook_kd[indices_n]), _distances(z_nd, codebook_kd[second_n])


def _distances(a_nd: Tensor, b_nd: Tensor) -> Tensor:
    """|a - b| row by row, float64."""
    rows = _DIFFERENCES // a_nd.shape[1] + 1
    parts = zip(a_nd.split(rows), b_nd.split(rows), strict=True)
    return torch.cat([torch.linalg.vector_norm(a.double() - b.double(), dim=1) for a, b in parts])


def _share(tokens_n: Tensor) -> float:
    return tokens_n.double().mean().item()
