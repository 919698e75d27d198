"""Float32 without shortcuts on a GPU: cuDNN's convolutions round their inputs to TF32 unless they are told not to."""

from contextlib import AbstractContextManager

import torch


def ieee_convolutions(*, benchmark: bool = False) -> AbstractContextManager[None]:
    """Float32 convolutions in float32, whatever the caller allows cuDNN; with ``benchmark`` by its fastest algorithm.

    Matrix products have ``fvq.quantize.shortlist.ieee_products``.
    """
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=benchmark, deterministic=torch.backends.cudnn.deterministic, allow_tf32=False
    )
