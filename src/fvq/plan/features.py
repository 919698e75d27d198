"""Which passes over reference images the evaluations of a study share, and whose features stay in its cache.

The features of reconstructions go once they are measured (``fvq.evaluate.tokenizer_metrics``). Those of references and
samples stay where a figure needs them: neighbours, the kernel distance, the uncertainty (``generator_metrics``).
"""

from typing import NamedTuple

from fvq.config import Parameters, PublishedExtractor
from fvq.evaluate.networks.extractors import EXTRACTORS
from fvq.evaluate.preparation import Preparation
from fvq.evaluate.protocols import PROTOCOLS, ProtocolName


class Reference(NamedTuple):
    """A pass of a network over reference images: one entry of the cache (the key of ``fvq.evaluate.summary``)."""

    images: str | None
    """an evaluation set; None: the validation part"""
    network: str
    resize: str
    preparation: Preparation
    spatial: bool


Kept = dict[Reference, int]
"""Values that stay of each image."""


def kept_of_reconstructions(parameters: Parameters, images: str | None, protocol: ProtocolName) -> Kept:
    """The reference of a tokenizer's reconstructions of ``images``."""
    reference = _reference(parameters, images, protocol, spatial=False)
    return {reference: feature_dimension(parameters) if parameters.evaluate_tokenizer.uncertainty else 0}


def kept_of_samples(parameters: Parameters) -> tuple[int, Kept]:
    """Values that stay of each sample of a generator, and the references."""
    settings = parameters.evaluate_generator
    protocol = PROTOCOLS[settings.protocol]
    published, own = isinstance(parameters.train_extractor, PublishedExtractor), feature_dimension(parameters)
    other = protocol.neighbours_on if published else None
    keep = settings.kernel_distance or (protocol.neighbours is not None and other is None)
    reference = _reference(parameters, None, settings.protocol, spatial=protocol.spatial and published)
    of_sample, kept = own if keep or settings.uncertainty else 0, {reference: own if keep else 0}
    if other is not None:
        kept[reference._replace(network=other, resize="", spatial=False)] = EXTRACTORS[other].feature_dimension
        of_sample += EXTRACTORS[other].feature_dimension
    return of_sample, kept


def feature_dimension(parameters: Parameters) -> int:
    """Values that the study's extractor gives of an image."""
    extractor = parameters.train_extractor
    if isinstance(extractor, PublishedExtractor):
        return EXTRACTORS[extractor.name].feature_dimension
    return 4 * extractor.width


def _reference(parameters: Parameters, images: str | None, name: ProtocolName, *, spatial: bool) -> Reference:
    protocol, extractor = PROTOCOLS[name], parameters.train_extractor
    resize = protocol.resize if isinstance(extractor, PublishedExtractor) else ""  # a study's has one way
    return Reference(images, extractor.name, resize, protocol.preparation, spatial)
