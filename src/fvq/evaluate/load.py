"""The extractor that a weights file names."""

from pathlib import Path

import torch

from fvq.evaluate.classifier import ImageClassifier
from fvq.evaluate.extractor import INCEPTION_2015, Extractor
from fvq.runtime.weights import load_weights


def load_extractor(path: Path | str, device: torch.device | str = "cpu") -> Extractor:
    """The study's own classifier, or the published network whose reference ``path`` is (``inception.save_reference``).

    Raises:
        UserError: the file is missing or damaged, or the published weights that it refers to are not there.
    """
    _, config = load_weights(path, kind="extractor")
    if config.get("name") == INCEPTION_2015:
        from fvq.evaluate.inception import load_inception  # its libraries take seconds to import

        return load_inception(config["weights"]).to(device)
    return ImageClassifier.load(path).to(device)
