"""The Inception network of 2015-12-05: the features that FID is defined on."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fvq.evaluate.extractor import INCEPTION_2015
from fvq.evaluate.pretrained import INCEPTION_2015_FILE, PretrainedFile, find_pretrained, where_to_put
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.runtime.weights import save_weights


class Inception2015(nn.Module):
    """torch-fidelity's port: features are the ADM evaluator's ``pool_3``, posteriors over its 1,008 outputs, no bias.

    Images are resized to 299 pixels as TensorFlow 1 does (bilinear, no half-pixel centres), inside the network.
    """

    name = INCEPTION_2015
    feature_dimension = 2048
    resize = "bilinear to 299 pixels as in TensorFlow 1"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.weights_sha256 = sha256_file(path)
        try:
            self.network = FeatureExtractorInceptionV3(
                INCEPTION_2015, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except (RuntimeError, UnpicklingError, AttributeError, EOFError) as error:
            raise UserError(f"{path}: holds no weights of this network ({type(error).__name__})") from None

    @torch.inference_mode()
    def features_and_posteriors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features float32 (B, 2048) and class posteriors float32 (B, 1008) of images uint8 (B, 3, H, W)."""
        features, logits = self.network(images.to(self.network.fc.weight.device))
        return features, logits.softmax(dim=1)


def load_inception(path: Path | str | None = None, *, file: PretrainedFile = INCEPTION_2015_FILE) -> Inception2015:
    """The network with the published weights at ``path`` or in one of the usual folders (see ``find_pretrained``).

    Raises:
        UserError: the file is missing (one line says what to put where) or its SHA-256 is not the published one.
    """
    parameter = "train_extractor.weights"
    found = find_pretrained(file, path, parameter)
    if found is None:
        raise UserError(where_to_put(file, parameter))
    return Inception2015(found)


def save_reference(network: Inception2015, path: Path | str) -> None:
    """Write a file that ``load_extractor`` reads: the published weights by place and SHA-256, not copied."""
    config = {"name": network.name, "weights": str(network.path), "sha256": network.weights_sha256}
    save_weights(path, {}, kind="extractor", config=config)
