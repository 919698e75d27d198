"""Searches as single operations for torch.compile, which cannot trace what depends on the data."""

from collections.abc import Callable

import torch
from torch import Tensor

from fvq.quantize.checks import check_finite

Search = Callable[[Tensor, Tensor], Tensor]

# `torch.library.custom_op` would do the same, but its first call imports the compiler, which takes seconds.
_LIBRARY = torch.library.Library("fvq", "DEF")


def define_search(name: str, search: Search) -> Search:
    """``torch.ops.fvq.<name>``: a search of float32 z (N, d) in a codebook (K, d), both contiguous and on one device.

    It gives int64 (N,) without gradient, and raises ValueError where a value is NaN or infinite.
    """

    @torch.no_grad()
    def checked(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
        check_finite("z", z_nd)
        check_finite("the codebook", codebook_kd)
        with torch.autocast(z_nd.device.type, enabled=False):
            return search(z_nd, codebook_kd)

    def like(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
        return z_nd.new_empty(z_nd.shape[0], dtype=torch.int64)

    _LIBRARY.define(f"{name}(Tensor z_nd, Tensor codebook_kd) -> Tensor")
    _LIBRARY.impl(name, checked, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fvq::{name}", like, lib=_LIBRARY)
    operation: Search = getattr(torch.ops.fvq, name)
    return operation
