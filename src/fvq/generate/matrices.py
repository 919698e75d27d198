"""Weight matrices laid out for products with few rows, together with what follows such a product in a block."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows that packing is told of; the packed order serves any number.
_ROWS = 16
_ONE_PIXEL = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation and groups of a convolution
# Both are torch's own, for its compiler.
_pack: Any = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", None)
_convolve: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


class Matrix(Protocol):
    """A linear layer without bias, from x (R, C) to (R, N)."""

    def product(self, x: Tensor) -> Tensor: ...
    def silu_of_product(self, x: Tensor) -> Tensor: ...
    def product_times(self, x: Tensor, factor: Tensor) -> Tensor: ...
    def product_plus(self, x: Tensor, addend: Tensor) -> Tensor: ...


def lay_out(weight: Tensor) -> Matrix:
    """The best layout here for ``weight`` (N, C): packed on a CPU that has oneDNN and instructions for its dtype."""
    return _PackedMatrix(weight) if can_pack(weight) else _PlainMatrix(weight)


def can_pack(weight: Tensor) -> bool:
    """Whether ``lay_out`` packs, which takes the weight's memory a second time."""
    if weight.device.type != "cpu" or None in (_pack, _convolve) or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class _PlainMatrix:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def silu_of_product(self, x: Tensor) -> Tensor:
        return F.silu(self.product(x))

    def product_times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.product(x) * factor

    def product_plus(self, x: Tensor, addend: Tensor) -> Tensor:
        return self.product(x) + addend


class _PackedMatrix:
    """In oneDNN's order for a convolution of one pixel, what follows the product fused to it.

    With few rows that kernel is a quarter faster than oneDNN's own for linear layers: it reads a weight's panel of 24
    outputs from end to end. Its sums are the same for any number of rows and threads.
    """

    def __init__(self, weight: Tensor) -> None:
        outputs, inputs = weight.shape
        kernel = weight.detach().reshape(outputs, inputs, 1, 1).to_mkldnn()
        self.packed: Tensor = _pack(kernel, *_ONE_PIXEL, [1, inputs, 1, _ROWS])

    def product(self, x: Tensor) -> Tensor:
        return self._with_unary(x, "none")

    def silu_of_product(self, x: Tensor) -> Tensor:
        return self._with_unary(x, "swish")

    def product_times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.product(x) * factor if 1 in factor.shape else self._with_binary(x, factor, "mul")

    def product_plus(self, x: Tensor, addend: Tensor) -> Tensor:
        return self.product(x) + addend if 1 in addend.shape else self._with_binary(x, addend, "add")

    def _with_unary(self, x: Tensor, name: str) -> Tensor:
        return _as_rows(_convolve(_as_picture(x), self.packed, None, *_ONE_PIXEL, name, [], ""))

    def _with_binary(self, x: Tensor, other: Tensor, name: str) -> Tensor:
        # Of a single row or output torch 2.11 cannot tell the order in memory.
        picture = _convolve(
            _as_picture(x), _as_picture(other), self.packed, None, *_ONE_PIXEL, name, None, None, [], None
        )
        return _as_rows(picture)


def _as_picture(x: Tensor) -> Tensor:
    """Rows (R, C) as a picture (1, C, 1, R) whose channels lie next to each other."""
    return x.view(1, 1, *x.shape).permute(0, 3, 1, 2)


def _as_rows(picture: Tensor) -> Tensor:
    return picture.permute(0, 2, 3, 1).reshape(-1, picture.shape[1])
