"""The networks that a protocol measures on, with its resizing."""

from pathlib import Path

import torch

from fvq.evaluate.figure_names import INCEPTION_2015
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.networks.extractors import load_extractor
from fvq.evaluate.networks.pretrained import PUBLISHED, find_pretrained, in_folder
from fvq.evaluate.protocols import Protocol


def load_network(
    name_or_file: Path | str,
    protocol: Protocol,
    *,
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    parameter: str = "weights",
) -> Extractor:
    """As ``load_extractor``; Inception's with the protocol's resizing. ``parameter`` is what errors call ``weights``.

    Raises:
        UserError: as ``load_extractor``.
    """
    return load_extractor(name_or_file, weights, device, resize=protocol.resize, parameter=parameter)


def load_network_of_neighbours(
    protocol: Protocol,
    network: Extractor,
    device: torch.device | str = "cpu",
    *,
    weights: Path | str | None = None,
) -> Extractor | None:
    """The other network that a protocol measures precision and recall on, where its weights are found.

    They are looked for in ``weights``, where that is a folder, and in the usual folders. None where the protocol names
    none, and beside any ``network`` but Inception's, which then serves for these figures too.
    """
    name = protocol.neighbours_on
    if name is None or network.name != INCEPTION_2015:
        return None
    files = PUBLISHED[name]
    found = find_pretrained(files, in_folder(weights, files), name)
    return None if found is None else load_extractor(name, found, device)
