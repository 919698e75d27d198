"""What every evaluation is asked, and what it gives: figures, its protocol, where the images came from, versions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from typing import Protocol as Interface

import torch
from torch import Tensor

import fvq
from fvq.evaluate.frechet import Gaussian
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.protocols import Protocol
from fvq.evaluate.record import NONE, OF_NEIGHBOURS
from fvq.evaluate.summary import BATCH
from fvq.evaluate.uncertainty import extrapolate, half_spread
from fvq.runtime.errors import UserError

Values = dict[str, float | int | str]
"""Figures and facts of an evaluation, flat, by the names of ``evaluation.schema.json``."""


@dataclass(frozen=True)
class Options:
    """What is asked for beyond a protocol's own figures."""

    kernel_distance: bool = False
    density_and_coverage: bool = False
    distances: Literal["exact", "float16"] = "exact"
    """``float16`` imitates the ADM evaluator's, whose precision and recall lie a little higher."""
    uncertainty: bool = False
    """The spread of the Fréchet distance over random halves, and its extrapolation to infinitely many images."""
    seed: int = 0
    """Of the halves and sizes that the uncertainty draws."""
    allow_count: bool = False
    """Whether to measure another number of images than published figures stand on."""
    batch_size: int = BATCH


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    values: Values
    """Figures with their protocol, as the JSON file holds them."""
    notes: tuple[str, ...] = ()
    """What a person should be told, such as figures that are left out."""
    errors: dict[str, Tensor] = field(default_factory=dict)
    """Of reconstructions: each image's errors, float64 (N,), by the measures' names."""


def uncertainty_of(name: str, features: Tensor, reference: Gaussian | Tensor, seed: int) -> tuple[Values, list[str]]:
    """``<name>_spread`` and ``<name>_infinity``; and in words what too few images rule out."""
    values: Values = {}
    notes = []
    for ending, measure in (("spread", half_spread), ("infinity", extrapolate)):
        try:
            values[f"{name}_{ending}"] = measure(features, reference, seed=seed)
        except UserError as error:
            notes.append(f"no {name}_{ending}: {error}")
    return values, notes


class Named(Interface):
    """Images or statistics, as a person named them and by their content."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...


def facts_of(
    protocol: Protocol,
    extractor: Extractor,
    *,
    samples: Named,
    count: int | None,
    reference: Named,
    reference_count: int | None,
    reference_words: str | None,
    preparations: tuple[str, str],
    score: str = NONE,
    seeds: Mapping[str, int],
) -> Values:
    """The facts of one evaluation.

    Counts are those of the images that distances stand on, None where stored statistics do not tell it.
    ``preparations`` say what was done to samples and to reference. ``seeds`` names what the evaluation drew, with its
    seed. Of neighbours it says that there are none.
    """
    ours, theirs = preparations
    facts: Values = {} if count is None else {"samples": count}
    return facts | {
        "samples_path": samples.name,
        "samples_sha256": samples.digest,
        "protocol": protocol.name,
        "protocol_extractor": extractor.name,
        "protocol_extractor_sha256": extractor.weights_sha256,
        "protocol_resize": extractor.resize,
        "protocol_preparation": ours if ours == theirs else f"{ours}; reference: {theirs}",
        "protocol_reference": reference_words or reference.name,
        "protocol_reference_sha256": reference.digest,
        "protocol_reference_images": _in_words(reference_count),
        "protocol_images": _in_words(count),
        "protocol_score": score,
        **dict.fromkeys(OF_NEIGHBOURS, NONE),
        "protocol_seed": ", ".join(f"{name} {seed}" for name, seed in seeds.items()) or NONE,
        "versions_fvq": fvq.__version__,
        "versions_torch": torch.__version__,
    }


def _in_words(count: int | None) -> str:
    return "not known" if count is None else str(count)
