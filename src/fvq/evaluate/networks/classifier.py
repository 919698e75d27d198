"""A small convolutional classifier whose features stand in for Inception's where its weights cannot be had."""

from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.quantize.shortlist import ieee_products
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.files import sha256_file
from fvq.runtime.weights import load_weights, save_weights


class ImageClassifierConfig(BaseModel):
    """Everything that fixes the network's shape, and the name that its figures carry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="names the figures: photos gives fd_photos")
    image_size: int = Field(ge=8, description="height and width of the images in pixels")
    classes: int = Field(ge=2, description="number of classes")
    width: int = Field(ge=8, multiple_of=8, description="channels of the first stage; a feature is four times as long")

    @field_validator("name")
    @classmethod
    def _no_borrowed_name(cls, name: str) -> str:
        if name.startswith(("inception", "fid")):
            raise ValueError("a trained classifier must not carry the name of the Inception features")
        return name


class ImageClassifier(nn.Module):
    """Three stages of two 3x3 convolutions, each halving the resolution, then the mean over positions.

    Group normalisation, so that an image's features do not depend on the images beside it.
    """

    resize = "none"
    spatial_dimension = 0

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.weights_sha256 = "not saved"
        width = config.width
        self.stages = nn.Sequential(_stage(3, width), _stage(width, 2 * width), _stage(2 * width, 4 * width))
        self.head = nn.Linear(4 * width, config.classes)

    @property
    def name(self) -> str:
        """Names the figures: ``photos`` gives ``fd_photos``."""
        return self.config.name

    @property
    def feature_dimension(self) -> int:
        """Length of a feature."""
        return self.head.in_features

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.head.out_features

    def forward(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Outputs for images uint8 (B, 3, image_size, image_size); there are no spatial features.

        On a GPU float32 without TF32, but in training.
        """
        if images.shape[2:] != (self.config.image_size, self.config.image_size):
            height, width = images.shape[2:]
            size = self.config.image_size
            raise UserError(
                f"extractor {self.name}: made for images of {size}x{size} pixels, and these have {height}x{width}"
            )
        device = self.head.weight.device
        x = images.to(device, torch.float32) / 127.5 - 1
        if self.training:
            return self._outputs(x)
        with ieee_convolutions(), ieee_products(device):
            return self._outputs(x)

    def _outputs(self, x: Tensor) -> Outputs:
        features: Tensor = self.stages(x).mean(dim=(2, 3))
        return Outputs(features, self.head(features), None)

    def save(self, path: Path | str) -> None:
        """Write the weights with the configuration; from then on the figures name that file's hash."""
        save_weights(path, self.state_dict(), kind="extractor", config=self.config.model_dump())
        self.weights_sha256 = sha256_file(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The classifier in a file that ``save`` wrote; UserError where it is damaged or something else."""
        tensors, config = load_weights(path, kind="extractor")
        try:
            classifier = cls(ImageClassifierConfig.model_validate(config))
            classifier.load_state_dict(tensors)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, str(path))) from None
        except RuntimeError as error:
            raise UserError(
                f"{path}: the tensors do not fit the configuration ({str(error).splitlines()[-1].strip()})"
            ) from None
        classifier.weights_sha256 = sha256_file(path)
        return classifier.eval().requires_grad_(False)


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(inplace=True),
    )
