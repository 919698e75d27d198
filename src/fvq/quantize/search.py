"""Exact nearest-code search without an N×K matrix."""

import torch
from torch import Tensor

# A float32 tile of 2 MB: the reduction finds it still in the cache.
_TOKENS_PER_TILE = 512
_CODES_PER_TILE = 1024
_GROUP = 64


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for each vector: Eq. 1 of the paper with squared Euclidean distance.

    Args:
        z: (..., d) floating point, any strides.
        codebook: (K, d) floating point, on the same device.

    Returns:
        int64 (...): indices in [0, K); ties go to the lowest index. No gradient flows.

    Distances are compared in float32 whatever the autocast state, as ``|e|² / 2 - z·e`` (``|z|²`` shifts all codes
    alike), tile by tile: the extra memory does not grow with N·K.

    Raises:
        ValueError: the dimensions do not match, the codebook is empty, or a value is NaN or infinite.
    """
    if codebook.ndim != 2 or z.ndim == 0 or z.shape[-1] != codebook.shape[1] or z.shape[-1] == 0:
        raise ValueError(f"z {tuple(z.shape)} and codebook {tuple(codebook.shape)} must share their last dimension")
    if codebook.shape[0] == 0:
        raise ValueError("the codebook has no codes")
    z_nd = z.detach().reshape(-1, z.shape[-1]).float()
    codebook_kd = codebook.detach().float()
    for name, values in (("z", z_nd), ("the codebook", codebook_kd)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    with torch.autocast(z.device.type, enabled=False):
        half_norms_k = codebook_kd.square().sum(1) / 2
        indices_n = torch.empty(len(z_nd), dtype=torch.int64, device=z.device)
        for start in range(0, len(z_nd), _TOKENS_PER_TILE):
            rows = slice(start, start + _TOKENS_PER_TILE)
            indices_n[rows] = _nearest_in_tiles(z_nd[rows], codebook_kd, half_norms_k)
    return indices_n.reshape(z.shape[:-1])


def _nearest_in_tiles(z_nd: Tensor, codebook_kd: Tensor, half_norms_k: Tensor) -> Tensor:
    """Nearest codes of one tile of tokens, going through the codes in order so that the first of equals stays."""
    best_n = torch.full((len(z_nd),), float("inf"), device=z_nd.device)
    indices_n = torch.zeros(len(z_nd), dtype=torch.int64, device=z_nd.device)
    for start in range(0, len(codebook_kd), _CODES_PER_TILE):
        codes = slice(start, start + _CODES_PER_TILE)
        scores_nk = torch.addmm(half_norms_k[codes], z_nd, codebook_kd[codes].T, alpha=-1)
        winners_n = _first_minimum(scores_nk)
        scores_n = scores_nk.gather(1, winners_n[:, None])[:, 0]
        better_n = scores_n < best_n
        best_n = torch.where(better_n, scores_n, best_n)
        indices_n = torch.where(better_n, winners_n + start, indices_n)
    return indices_n


def _first_minimum(scores_nk: Tensor) -> Tensor:
    """Column of each row's first minimum. Minima of groups come first: unlike a place, they vectorize."""
    if scores_nk.shape[1] % _GROUP:
        return scores_nk.argmin(1)  # the first of equals, as torch documents
    groups_ngk = scores_nk.unflatten(1, (-1, _GROUP))
    groups_n = groups_ngk.amin(2).argmin(1)
    best_groups_nk = groups_ngk[torch.arange(len(scores_nk), device=scores_nk.device), groups_n]
    return groups_n * _GROUP + best_groups_nk.argmin(1)
