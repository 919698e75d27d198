"""Exact nearest-code search without an N×K matrix."""

import torch
from torch import Tensor

from fvq.quantize.operation import define_search
from fvq.quantize.shortlist import (
    TILE,
    Codes,
    half_squares,
    has_fused_kernel,
    has_native_bfloat16,
    ieee_products,
    shift,
    shortlist,
)

# Bytes of float64 differences that are computed at once: they should stay in the cache.
_DIFFERENCES_BYTES = {"cpu": 2**22, "cuda": 2**27}


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for each vector: Eq. 1 of the paper with squared Euclidean distance.

    Args:
        z: (..., d) floating point, any strides.
        codebook: (K, d) floating point, on the same device.

    Returns:
        int64 (...): indices in [0, K). No gradient flows.

    The values as float32 (whatever the autocast state) are compared as float64 would compare them: the index is that of
    the smallest squared distance, and of several that agree to float64 rounding it is the lowest. So the result does
    not depend on the machine, the number of threads or how the vectors are split into batches.

    It gets there without float64 products: tile by tile, products in float32 (in bfloat16 where the processor
    multiplies it natively) with a proven bound on their error leave a shortlist of a few codes per vector, whose
    distances are then computed in float64. Vectors whose bound leaves too many codes fall back to the next precision.
    The extra memory does not grow with N·K.

    Raises:
        ValueError: the dimensions do not match, the codebook is empty, or a value is NaN or infinite.
    """
    if codebook.ndim != 2 or z.ndim == 0 or z.shape[-1] != codebook.shape[1] or z.shape[-1] == 0:
        raise ValueError(f"z {tuple(z.shape)} and codebook {tuple(codebook.shape)} must share their last dimension")
    if codebook.shape[0] == 0:
        raise ValueError("the codebook has no codes")
    z_nd = z.detach().reshape(-1, z.shape[-1]).float().contiguous()
    return _operation(z_nd, codebook.detach().float().contiguous()).reshape(z.shape[:-1])


def _nearest_code(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    native = has_native_bfloat16(z_nd.device)
    return search(z_nd, codebook_kd, (torch.bfloat16, torch.float32) if native else (torch.float32,))


_operation = define_search("nearest_code", _nearest_code)


def search(z_nd: Tensor, codebook_kd: Tensor, precisions: tuple[torch.dtype, ...]) -> Tensor:
    """Nearest codes of finite float32 z (N, d), shortlisting with products of each precision in turn."""
    device = z_nd.device
    # A bridge starts with all of its codes zero and wakes a few per step: a tie of so many would go to float64.
    # Not on CUDA, where the host would wait for every codebook to spare a few steps' float64 products.
    if not z_nd.is_cuda and len(repeats_p := _zero_codes(codebook_kd)[1:]):
        kept_k = torch.ones(len(codebook_kd), dtype=torch.bool, device=device)
        kept_k[repeats_p] = False
        return kept_k.nonzero()[:, 0][search(z_nd, codebook_kd[kept_k], precisions)]
    # Distances do not change when both sides move; seen from amid the codes their rounding is smallest.
    # The median does not follow a few codes far away; some of the codes are enough for it.
    center_d = codebook_kd[:: -(-len(codebook_kd) // 256)].median(0).values
    indices_n = torch.empty(len(z_nd), dtype=torch.int64, device=device)
    with ieee_products(device):
        pending_n = torch.arange(len(z_nd), device=device)
        for precision in precisions:
            if len(pending_n):
                fused = has_fused_kernel(device) and precision is torch.bfloat16
                codes = Codes.prepare(codebook_kd, center_d, precision, fused=fused)
                left = [_rank(z_nd, codes, rows_n, indices_n) for rows_n in pending_n.split(codes.tokens)]
                pending_n = torch.cat(left)
        # Not split(), which makes one empty part of none: a float64 pass over the codebook for nothing.
        for start in range(0, len(pending_n), 2048):
            rows_n = pending_n[start : start + 2048]
            indices_n[rows_n] = _first_nearest(shift(z_nd[rows_n], center_d, torch.float64), codebook_kd, center_d)
    return indices_n


def _zero_codes(codebook_kd: Tensor) -> Tensor:
    """The ascending indices (p,) of codes that are exactly zero."""
    # The first channel tells most codebooks at once.
    zeros_k = codebook_kd[:, 0] == 0
    if zeros_k.any():
        zeros_k &= torch.linalg.vector_norm(codebook_kd, torch.inf, dim=1) == 0
    return zeros_k.nonzero()[:, 0]


def _rank(z_nd: Tensor, codes: Codes, rows_n: Tensor, indices_n: Tensor) -> Tensor:
    """Write the nearest codes of the tokens ``rows_n`` whose shortlist is short; return the other rows."""
    tile_nd = z_nd[rows_n]
    listed_ng = shortlist(tile_nd, codes)
    # Beyond these the next precision is cheaper.
    short_n = listed_ng.sum(1) <= max(4, codes.groups // 128)
    tokens_p, groups_p = (listed_ng & short_n[:, None]).nonzero(as_tuple=True)
    nearest_n = _rerank(tile_nd, codes, tokens_p, groups_p)
    indices_n[rows_n[short_n]] = nearest_n[short_n]
    return rows_n[~short_n]


def _rerank(z_nd: Tensor, codes: Codes, tokens_p: Tensor, groups_p: Tensor) -> Tensor:
    """The first nearest code (n,) of each token among the codes of its groups, by distances in float64."""
    none = len(codes.codebook_kd)
    pairs = max(1, _DIFFERENCES_BYTES["cuda" if z_nd.is_cuda else "cpu"] // (8 * codes.group * z_nd.shape[1]))
    distances_p = torch.empty(len(tokens_p), dtype=torch.float64, device=z_nd.device)
    indices_p = torch.empty_like(tokens_p)
    for start in range(0, len(tokens_p), pairs):
        rows = slice(start, start + pairs)
        indices_pg = codes.indices_of(groups_p[rows])
        differences_pgd = codes.codebook_kd[indices_pg].double().sub_(z_nd[tokens_p[rows], None])
        distances_pg = differences_pgd.square_().sum(2)
        distances_p[rows] = distances_pg.amin(1)
        ties_pg = distances_pg <= _with_rounding(distances_p[rows, None], z_nd.shape[1])
        indices_p[rows] = indices_pg.where(ties_pg, none).amin(1)
    best_n = torch.full((len(z_nd),), torch.inf, dtype=torch.float64, device=z_nd.device)
    best_n.scatter_reduce_(0, tokens_p, distances_p, "amin")
    ties_p = distances_p <= _with_rounding(best_n[tokens_p], z_nd.shape[1])
    nearest_n = torch.full_like(best_n, none, dtype=torch.int64)
    return nearest_n.scatter_reduce_(0, tokens_p[ties_p], indices_p[ties_p], "amin")


def _with_rounding(distances: Tensor, dim: int) -> Tensor:
    return distances * (1 + (dim + 4) * 2.0**-52)


def _first_nearest(z_nd: Tensor, codebook_kd: Tensor, center_d: Tensor) -> Tensor:
    """The first code that can be nearest as far as float64 tells, of all codes, for shifted float64 z (n, d)."""
    norms_n = (2 * half_squares(z_nd)).sqrt()

    def scores(start: int, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The scores of a tile of codes and how far each may be off (shortlist.py)."""
        codes_kd = shift(codebook_kd[start : start + TILE], center_d, torch.float64)
        half_norms_k = half_squares(codes_kd)
        scores_nk = torch.addmm(half_norms_k, z_nd[rows], codes_kd.T, alpha=-1)
        errors_nk = torch.addcmul(half_norms_k, norms_n[rows, None], (2 * half_norms_k).sqrt())
        return scores_nk, errors_nk.mul_((z_nd.shape[1] + 16) * 2.0**-53)

    largest_n = torch.full_like(norms_n, torch.inf)
    smallest_nt = z_nd.new_empty(len(z_nd), -(-len(codebook_kd) // TILE))
    for tile in range(smallest_nt.shape[1]):
        scores_nk, errors_nk = scores(tile * TILE, slice(None))
        torch.minimum(largest_n, (scores_nk + errors_nk).amin(1), out=largest_n)
        smallest_nt[:, tile] = (scores_nk - errors_nk).amin(1)
    tiles_n = (smallest_nt <= largest_n[:, None]).int().argmax(1)
    nearest_n = torch.empty_like(tiles_n)
    for tile in tiles_n.unique().tolist():
        rows_n = (tiles_n == tile).nonzero()[:, 0]
        scores_nk, errors_nk = scores(tile * TILE, rows_n)
        nearest_n[rows_n] = (scores_nk - errors_nk <= largest_n[rows_n, None]).int().argmax(1) + tile * TILE
    return nearest_n
