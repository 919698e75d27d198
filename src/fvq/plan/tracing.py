"""What a computation costs, found by running it on tensors of the meta device: no memory, no arithmetic, real code.

The modules are the project's own. They are built on the meta device and run under ``FakeTensorMode``, whose tensors are
meta tensors that pass for the CPU's: unlike plain ones they know autocast. Where a GPU would save other tensors than a
CPU (its autocast keeps norms in float32, dropout keeps a mask) the GPU's way is taken.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fvq.plan.work import Work

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Search:
    """The largest search of nearest codes: ``tokens`` vectors of an image among ``codes`` of dimension ``dim``."""

    tokens: float = 0
    codes: int = 0
    dim: int = 0


@dataclass(frozen=True)
class Cost:
    """Of a computation on a batch: a constant part, such as mapping a codebook, and a part for each image."""

    constant: Work = field(default_factory=Work)
    per_image: Work = field(default_factory=Work)
    saved_constant: float = 0
    """bytes that autograd saves for the backward pass, at most at one time; parameters are not among them"""
    saved_per_image: float = 0
    search: Search = Search()
    notes: frozenset[str] = frozenset()
    """what is not counted, in words"""

    def work(self, images: float) -> Work:
        """Of a batch of so many images."""
        return self.constant + self.per_image * images

    def __add__(self, other: "Cost") -> "Cost":
        """Of both in one pass; their largest searches do not add up."""
        return Cost(
            self.constant + other.constant,
            self.per_image + other.per_image,
            self.saved_constant + other.saved_constant,
            self.saved_per_image + other.saved_per_image,
            max(self.search, other.search, key=lambda search: search.tokens * search.codes),
            self.notes | other.notes,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        """Without a part of it; the largest search and the notes stay."""
        return Cost(
            self.constant - other.constant,
            self.per_image - other.per_image,
            self.saved_constant - other.saved_constant,
            self.saved_per_image - other.saved_per_image,
            self.search,
            self.notes,
        )


# Batches of two sizes tell the constant part from an image's; 1 is none of them, as its copies are views.
_BATCHES = (2, 4)


def trace(run: Callable[[int], Any], modules: Iterable[nn.Module]) -> Cost:
    """The cost of ``run(images)``, which makes its tensors by ``torch`` and uses ``modules``, made ``weightless``.

    Matrix products, convolutions and attention are counted by torch's formulas (``torch.utils.flop_counter``, halved:
    they count 2 for a multiply-add), causal attention as if it were not. A search of nearest codes counts N·K·d.
    Element-wise work is not counted.
    """
    modules = list(modules)
    totals = []
    for images in _BATCHES:
        counter, saved = WorkCounter(), SavedBytes(modules)
        with _mode(), AsOnGPU(), saved, counter:
            run(images)
        totals.append((counter.work, saved.peak, counter.search))
    (small, saved_small, search), (large, saved_large, _) = totals
    step = _BATCHES[1] - _BATCHES[0]
    per_image, saved_per_image = (large - small) * (1 / step), (saved_large - saved_small) / step
    return Cost(
        small - per_image * _BATCHES[0],
        per_image,
        saved_small - saved_per_image * _BATCHES[0],
        saved_per_image,
        Search(search.tokens / _BATCHES[0], search.codes, search.dim),
    )


def weightless(build: Callable[[], Module]) -> Module:
    """The module that ``build`` makes, its weights without memory."""
    with torch.device("meta"):
        module = build()
    place(module)
    return module


def place(module: nn.Module) -> None:
    """Let a module of the meta device pass for one of the CPU, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter.data, FakeTensor):
                part._parameters[name] = nn.Parameter(_fake(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, FakeTensor):
                part._buffers[name] = _fake(buffer)


def _fake(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    with _mode():
        return FakeTensor(_mode(), meta, torch.device("cpu"))


@cache
def _mode() -> FakeTensorMode:
    return FakeTensorMode()


class WorkCounter(TorchDispatchMode):
    """Counts multiply-adds while it is active; see ``trace``."""

    def __init__(self) -> None:
        super().__init__()
        self.work, self.search = Work(), Search()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        name = str(packet)
        if packet in flop_registry:
            result = func(*args, **kwargs)
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
            first = next(value for value in args if isinstance(value, Tensor) and value.is_floating_point())
            self._add(flops / 2, _precision(name, first.dtype))
            return result
        if name in ("fvq.nearest_code", "fvq.largest_product"):
            (tokens, dim), codes = args[0].shape, len(args[1])
            # GPUs rank codes by bfloat16 products; the largest product is searched in float32 (fvq.quantize).
            self._add(tokens * codes * dim, "bfloat16" if name == "fvq.nearest_code" else "float32")
            if tokens * codes > self.search.tokens * self.search.codes:
                self.search = Search(tokens, codes, dim)
            return func(*args, **kwargs)
        if func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return func(*args, **kwargs)

    def _add(self, multiply_adds: float, precision: str) -> None:
        self.work += Work(**{precision: multiply_adds})


def _precision(operation: str, dtype: torch.dtype) -> str:
    """What a GPU multiplies in: torch lets cuDNN's float32 convolutions take TF32, and matrix products not."""
    if dtype in (torch.bfloat16, torch.float16):
        return "bfloat16"
    return "tf32" if "convolution" in operation and torch.backends.cudnn.allow_tf32 else "float32"


class SavedBytes:
    """While it is active: the bytes that autograd holds for backward passes, now and at most at one time.

    A storage counts once, however many of its views are saved; those of the modules' parameters and buffers do not.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.now = self.peak = 0
        self._held: dict[int, int] = {}
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._ignored = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, self), _unpack)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def hold(self, tensor: Tensor) -> None:
        """Another node holds the tensor's storage."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._ignored:
            return
        if not self._held.get(key):
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self._held[key] = self._held.get(key, 0) + 1

    def release(self, tensor: Tensor) -> None:
        """A node lets go of it."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._ignored:
            return
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.now -= storage.nbytes()


class _Saved:
    """A saved tensor; it lives as long as the node of the graph that holds it."""

    def __init__(self, tensor: Tensor, counter: SavedBytes) -> None:
        self.tensor, self._counter = tensor, counter
        counter.hold(tensor)

    def __del__(self) -> None:
        self._counter.release(self.tensor)


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


_FLOAT32_ON_GPU = {
    F.group_norm,
    torch.group_norm,
    F.layer_norm,
    torch.layer_norm,
    F.interpolate,
    F.mse_loss,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    torch.sum,
    Tensor.sum,
}
"""Operations that autocast computes in float32 on a GPU, and on a CPU in the type of what they are given."""


class AsOnGPU(TorchFunctionMode):
    """Lets operations on the CPU save for the backward pass what they would on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            x, rate, training = _dropout(*args, **kwargs)
            return torch.native_dropout(x, rate, training)[0] if training else x
        if func in (F.rms_norm, torch.rms_norm):
            return _rms_norm(*args, **kwargs)
        if func in _FLOAT32_ON_GPU and torch.is_autocast_enabled("cpu") and args[0].is_floating_point():
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Tensor, float, bool]:
    return input, p, training and p > 0


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    x = input.float() if torch.is_autocast_enabled("cpu") else input
    normed: Tensor = torch.ops.aten._fused_rms_norm(x, normalized_shape, weight, eps)[0]
    return normed
