"""What a network's convolutions and matrix products may round to, seen from within the call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "bmm", "linear", "matmul")


class _Flags(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of_convolutions: set[bool] = set()
        self.of_products: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "conv" in name:
            self.of_convolutions.add(torch.backends.cudnn.allow_tf32)
        if name in PRODUCTS:
            self.of_products.add(torch.backends.mkldnn.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@contextmanager
def rounding_allowed() -> Iterator[None]:
    """A caller that lets float32 be rounded everywhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def flags_within(call: Callable[[], object]) -> tuple[set[bool], set[str]]:
    """Whether convolutions may use TF32, and how products round, in a call of a caller that allows everything."""
    with rounding_allowed():
        with _Flags() as flags:
            call()
        assert torch.backends.cudnn.allow_tf32 and torch.backends.mkldnn.matmul.fp32_precision != "ieee", "restored"
    return flags.of_convolutions, flags.of_products
