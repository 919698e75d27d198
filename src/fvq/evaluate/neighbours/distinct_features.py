"""Which features of a set are copies of another."""

import torch
from torch import Tensor

from fvq.evaluate.images import in_batches

# Features at once: they should stay in the cache.
_ROWS = 256


def distinct_features(features_nd: Tensor) -> tuple[Tensor | None, Tensor]:
    """Where the U distinct features lie, ascending int64 (U,), and how often each is there, int64 (U,).

    The former is None where all are distinct. A few copies may stay among the distinct ones: where checksums agree by
    chance, or round differently at another place.
    """
    weights_d = torch.randn(features_nd.shape[1], generator=torch.Generator().manual_seed(0)).to(features_nd.device)
    # Not a product of matrices, which may round a row by its place.
    checksums_n = torch.cat([(rows_bd * weights_d).sum(dim=1) for rows_bd in in_batches(features_nd, _ROWS)])
    checksums_n, order_n = checksums_n.sort(stable=True)
    alike_p = (checksums_n[1:] == checksums_n[:-1]).nonzero()[:, 0]
    first_n = torch.ones(len(features_nd), dtype=torch.bool, device=features_nd.device)
    for chunk_p in in_batches(alike_p, _ROWS):
        first_n[chunk_p + 1] = (features_nd[order_n[chunk_p]] != features_nd[order_n[chunk_p + 1]]).any(dim=1)
    starts_u = first_n.nonzero()[:, 0]
    copies_u = starts_u.diff(append=starts_u.new_tensor([len(features_nd)]))
    if len(starts_u) == len(features_nd):
        return None, copies_u
    rows_u, ascending_u = order_n[starts_u].sort()
    return rows_u, copies_u[ascending_u]
