"""Every quantizer by its name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fvq.quantize.bridge import VQBridge
from fvq.quantize.checks import check_positive
from fvq.quantize.codebook import CodebookQuantizer, NormalizedQuantizer, mlp
from fvq.quantize.finite_scalar import FiniteScalarQuantizer
from fvq.quantize.index_backpropagation import IndexBackpropagationQuantizer
from fvq.quantize.lookup_free import LookupFreeQuantizer
from fvq.quantize.moving_average import MovingAverageQuantizer
from fvq.quantize.multiscale import MultiscaleQuantizer
from fvq.quantize.quantizer import Quantizer
from fvq.quantize.reanchored import ReanchoredQuantizer
from fvq.quantize.residual import ResidualQuantizer


def build_quantizer(name: str, *, codebook_size: int, code_dim: int, **options: Any) -> Quantizer:
    """A quantizer by name.

    ==============  ====================================================================================================
    ``vq``          plain VQ with straight-through gradients (van den Oord et al. 2017, Eq. 1 to 5 of the paper)
    ``vq-ema``      codes are moving averages of their vectors (the same, appendix A.1)
    ``vq-l2``       on the unit sphere, for few dimensions (ViT-VQGAN; LlamaGen)
    ``linear``      a trained codebook through one biased linear layer, the paper's baseline
    ``simvq``       a frozen random codebook through one biased linear layer (SimVQ)
    ``mlp5``        a trained codebook through five linear layers with ReLU between
    ``fvq``         a trained codebook through VQBridge, whose keyword arguments are options (paper §3.2)
    ``vqgan-lc``    frozen ``features`` (K, f) of the caller through one linear layer (VQGAN-LC)
    ``cvq``         unused codes are moved to where vectors are (CVQ-VAE)
    ``ibq``         gradients reach every code through the soft indices (IBQ)
    ``lfq``         signs of ``code_dim`` channels, without a codebook (MAGVIT-v2)
    ``fsq``         channels rounded to a few ``levels`` each (FSQ)
    ``residual``    ``depth`` codes a place, each of what the ones before left (RQ-VAE)
    ``multiscale``  coarse to fine grids of codes, each of what the ones before left (VAR)
    ==============  ====================================================================================================

    The last two compose a quantizer that learns by gradients, named by the option ``inner`` (``vq``, ``linear``,
    ``simvq``, ``mlp5``, ``fvq``, ``vqgan-lc``; by default ``vq``), and pass their other options on to it; those of an
    inner VQBridge also go together as ``bridge``, whose ``depth`` is not that of ``residual``. These six take
    ``commitment_weight`` and ``codebook_weight``; other options are documented at the classes.

    Raises:
        ValueError: an unknown name or option (the message lists those that exist), or sizes that do not fit.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown quantizer {name!r}; there are {', '.join(QUANTIZERS)}")
    check_positive(codebook_size=codebook_size, code_dim=code_dim)
    if name not in COMPOSED:
        _check_options(name, options)
    return _BUILDERS[name](codebook_size, code_dim, **options)


def quantizer_options(name: str) -> tuple[str, ...]:
    """The names of a quantizer's options; for one that composes without those that only some inner ones have."""
    parameters = inspect.signature(_COMPOSERS.get(name, _BUILDERS[name])).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    if name in COMPOSED:
        options = ["inner", *options]
    if name in (*_COMPOSABLE, *COMPOSED):
        options += _WEIGHTS
    if name == "fvq":
        options += list(inspect.signature(VQBridge).parameters)[2:]
    return tuple(options)


def frozen_name(name: str) -> str:
    """The name of the quantizer that ``freeze`` gives."""
    return name if name in _FROZEN_AS_THEMSELVES else "vq"


def frozen_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """With ``frozen_name`` and these, ``build_quantizer`` makes the form of what ``freeze`` gives."""
    if name in COMPOSED:
        kept = quantizer_options(name)
        return {**{option: value for option, value in options.items() if option in kept}, "inner": "vq"}
    return dict(options) if name in _FROZEN_AS_THEMSELVES else {}


def _check_options(name: str, options: Iterable[str], outer: str | None = None) -> None:
    """ValueError where a quantizer, which ``outer`` may compose, has no such option."""
    known = quantizer_options(name)
    if unknown := [option for option in options if option not in known]:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        if outer:
            own = [option for option in quantizer_options(outer) if option not in known]
            has += f"; those of {outer} are {', '.join(own)}"
        raise ValueError(f"quantizer {name!r} has no option {', '.join(sorted(unknown))}; {has}")


def _vq(codebook_size: int, code_dim: int, **weights: Any) -> Quantizer:
    return CodebookQuantizer(codebook_size, code_dim, nn.Identity(), **weights)


def _linear(codebook_size: int, code_dim: int, **weights: Any) -> Quantizer:
    return CodebookQuantizer(codebook_size, code_dim, nn.Linear(code_dim, code_dim), **weights)


def _simvq(codebook_size: int, code_dim: int, **weights: Any) -> Quantizer:
    random_kd = torch.randn(codebook_size, code_dim) * code_dim**-0.5
    linear = nn.Linear(code_dim, code_dim)
    return CodebookQuantizer(codebook_size, code_dim, linear, raw_codebook=random_kd, trained=False, **weights)


def _mlp5(codebook_size: int, code_dim: int, **weights: Any) -> Quantizer:
    return CodebookQuantizer(codebook_size, code_dim, mlp(code_dim), **weights)


def _fvq(codebook_size: int, code_dim: int, **options: Any) -> Quantizer:
    weights = {name: options.pop(name) for name in _WEIGHTS if name in options}
    return CodebookQuantizer(codebook_size, code_dim, VQBridge(codebook_size, code_dim, **options), **weights)


def _vqgan_lc(codebook_size: int, code_dim: int, *, features: Tensor | None = None, **weights: Any) -> Quantizer:
    if features is None:
        raise ValueError("quantizer 'vqgan-lc' needs features (codebook_size, any): the vectors of its frozen codebook")
    projector = nn.Linear(features.shape[-1], code_dim)
    nn.init.normal_(projector.weight, std=code_dim**-0.5)
    weights = {"commitment_weight": 1.0, "codebook_weight": 0.33, **weights}
    raw_kd = features.detach().clone().float()
    return CodebookQuantizer(codebook_size, code_dim, projector, raw_codebook=raw_kd, trained=False, **weights)


def _residual(codebook_size: int, code_dim: int, **options: Any) -> Quantizer:
    return _compose("residual", codebook_size, code_dim, **options)


def _multiscale(codebook_size: int, code_dim: int, **options: Any) -> Quantizer:
    return _compose("multiscale", codebook_size, code_dim, **options)


def _compose(
    outer: str,
    codebook_size: int,
    code_dim: int,
    *,
    inner: str = "vq",
    bridge: Mapping[str, Any] | None = None,
    **options: Any,
) -> Quantizer:
    composer = _COMPOSERS[outer]
    own = {name: options.pop(name) for name in inspect.signature(composer).parameters if name in options}
    passed_on = {**options, **(bridge or {})}
    if inner in _COMPOSABLE:
        _check_options(inner, passed_on, outer)
    return composer(build_quantizer(inner, codebook_size=codebook_size, code_dim=code_dim, **passed_on), **own)


_BUILDERS: dict[str, Callable[..., Quantizer]] = {
    "vq": _vq,
    "vq-ema": MovingAverageQuantizer,
    "vq-l2": NormalizedQuantizer,
    "linear": _linear,
    "simvq": _simvq,
    "mlp5": _mlp5,
    "fvq": _fvq,
    "vqgan-lc": _vqgan_lc,
    "cvq": ReanchoredQuantizer,
    "ibq": IndexBackpropagationQuantizer,
    "lfq": LookupFreeQuantizer,
    "fsq": FiniteScalarQuantizer,
    "residual": _residual,
    "multiscale": _multiscale,
}
QUANTIZERS = tuple(_BUILDERS)
_COMPOSERS: dict[str, Callable[..., Quantizer]] = {"residual": ResidualQuantizer, "multiscale": MultiscaleQuantizer}
COMPOSED = tuple(_COMPOSERS)
_COMPOSABLE = ("vq", "linear", "simvq", "mlp5", "fvq", "vqgan-lc")
_FROZEN_AS_THEMSELVES = ("ibq", "lfq", "fsq", *COMPOSED)
_WEIGHTS = ("commitment_weight", "codebook_weight")
