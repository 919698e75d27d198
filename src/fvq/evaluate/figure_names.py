"""The names of figures, by the networks that they stand on and the protocol; told without loading torch."""

INCEPTION_2015 = "inception-2015"
"""The only extractor whose figures bear the published names."""


def distance_name(extractor: str) -> str:
    """The Fréchet distance: ``fid`` on the Inception features of 2015 only, else ``fd_<extractor>``."""
    return "fid" if extractor == INCEPTION_2015 else f"fd_{extractor}"


def reconstruction_distance_name(extractor: str, protocol: str) -> str:
    """That of reconstructions, with an ending where the protocol stores both sides as JPEG first."""
    ending = "_jpeg75" if protocol == "fvq-released" else ""
    return f"r{distance_name(extractor)}{ending}"


def score_name(extractor: str) -> str:
    """The score: ``inception_score`` on the Inception network of 2015 only, else ``is_<extractor>``."""
    return "inception_score" if extractor == INCEPTION_2015 else f"is_{extractor}"


def kid_name(extractor: str) -> str:
    """The kernel distance: ``kid`` on the Inception features of 2015 only, else ``kd_<extractor>``."""
    return "kid" if extractor == INCEPTION_2015 else f"kd_{extractor}"


def share_names(extractor: str, network: str, distances: str) -> tuple[str, str]:
    """Precision and recall: named after their ``network`` where it is not the extractor, and after float16."""
    ending = _network_ending(extractor, network) + ("_float16" if distances == "float16" else "")
    return f"precision{ending}", f"recall{ending}"


def density_names(extractor: str, network: str) -> tuple[str, str]:
    """Density and coverage, whose distances are always exact."""
    ending = _network_ending(extractor, network)
    return f"density{ending}", f"coverage{ending}"


def _network_ending(extractor: str, network: str) -> str:
    return "" if network == extractor else f"_{network}"
