"""The evaluator beside the libraries whose figures it gives.

Where these are rivals, ratios refer to this project's own form: they say how many times as long the others take.
"""

from cases import Case
from feature_cases import feature_cases
from image_cases import image_cases
from network_cases import network_cases


def evaluation_cases(device: str) -> list[Case]:
    """The evaluator on a CPU."""
    return [*network_cases(), *feature_cases(), *image_cases()] if device == "cpu" else []
