"""Parameters of the stage ``prepare_data``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ImageSize = Annotated[int, Field(gt=0, description="Height and width of the prepared images, pixels.")]
ValidationFraction = Annotated[
    float, Field(gt=0, lt=1, description="Share of each class's images that goes to validation, between 0 and 1.")
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhotoCrops(_Settings):
    """Square crops of the ten photographs inside scikit-image and scikit-learn, one class per photograph."""

    source: Literal["photos"] = Field(description="Which data set: photos.")
    image_size: ImageSize
    train_crops: int = Field(gt=0, description="Number of training images, all classes together.")
    validation_crops: int = Field(gt=0, description="Number of validation images, all classes together.")
    crop_side_min: int = Field(gt=0, description="Smallest side of a crop before it is resized, pixels.")
    crop_side_max: int = Field(gt=0, description="Largest side of a crop before it is resized, pixels.")
    short_side_max: int = Field(
        gt=0, description="Photographs whose shorter side is longer than this are first scaled down to it, pixels."
    )

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.crop_side_min > self.crop_side_max:
            raise ValueError(f"crop_side_min {self.crop_side_min} is above crop_side_max {self.crop_side_max}")
        return self


class Digits(_Settings):
    """scikit-learn's 1,797 handwritten digits."""

    source: Literal["digits"] = Field(description="Which data set: digits.")
    image_size: ImageSize
    validation_fraction: ValidationFraction


class ImageFolder(_Settings):
    """A folder of class folders, or of ``train`` and ``val`` (or ``validation``) with class folders in them."""

    source: Literal["folder"] = Field(description="Which data set: folder.")
    folder: str = Field(min_length=1, description="Path of the folder; ~ stands for the home folder.")
    image_size: ImageSize
    validation_fraction: ValidationFraction


PrepareData = Annotated[PhotoCrops | Digits | ImageFolder, Field(discriminator="source")]
"""The parameters of any source. To read them: ``pydantic.TypeAdapter(PrepareData)``, or as a field of a model."""
