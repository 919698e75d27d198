"""The figures of a generator's samples in an evaluation's record, as its protocol has them."""

from collections.abc import Mapping

from fvq.evaluate.figure_names import density_names, distance_name, kid_name, score_name, share_names
from fvq.evaluate.record import NONE


def neighbour_shares(protocol: Mapping[str, str]) -> tuple[str, str]:
    """Precision and recall; the plain names where the protocol leaves them out, or is empty: without generators."""
    network = protocol.get("protocol_neighbours_on", NONE)
    if network == NONE:
        return "precision", "recall"
    return share_names(protocol["protocol_extractor"], network, protocol["protocol_distances"])


def sample_figures(protocol: Mapping[str, str]) -> list[str]:
    """Those of a generator's samples, without what the protocol leaves out."""
    extractor = protocol["protocol_extractor"]
    return [
        distance_name(extractor),
        *([] if protocol["protocol_score"] == NONE else [score_name(extractor)]),
        *([] if protocol["protocol_neighbours"] == NONE else neighbour_shares(protocol)),
        "samples",
    ]


def further_figures(protocol: Mapping[str, str]) -> list[str]:
    """Those that an evaluation of samples has where it was asked for them: sFID, kernel distance, density, coverage."""
    if not protocol:
        return []
    extractor, network = protocol["protocol_extractor"], protocol.get("protocol_neighbours_on", NONE)
    return [
        "sfid",
        kid_name(extractor),
        *([] if network == NONE else density_names(extractor, network)),
    ]
