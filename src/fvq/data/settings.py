"""Parameters of the stage ``prepare_data``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvq.data.manifest import CenterCrop

ImageSize = Annotated[int, Field(gt=0, description="Height and width of the prepared images, pixels.")]
ValidationFraction = Annotated[
    float, Field(gt=0, lt=1, description="Share of each class's images that goes to validation, between 0 and 1.")
]
EvaluationCrop = Annotated[
    CenterCrop, Field(description="The centre crop of evaluations: adm (scaled first) or plain (cut as it is).")
]
TurnByExif = Annotated[
    bool,
    Field(
        description="Whether images are turned as their EXIF records say. The published protocols (ADM, LlamaGen, FVQ) "
        "ignore these; for people's own photographs they should be heeded."
    ),
]
Unreadable = Annotated[
    Literal["stop", "skip"],
    Field(description="An image that cannot be decoded whole: stop with one line, or skip it and count it."),
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


class Originals(_Settings):
    """Images that stay where they are, such as ImageNet's as it is handed out; ``fvq.data.originals`` states the rules.

    Each part is a folder of class folders, a folder of images (one class), an uncompressed tar of images (one class) or
    with one tar per class, a folder of Hugging Face's Parquet shards or a pattern of their names.
    """

    source: Literal["originals"] = Field(description="Which data set: originals.")
    train: str = Field(min_length=1, description="Path of the training images; ~ stands for the home folder.")
    validation: str | None = Field(
        min_length=1, description="Path of the validation images, in any of the forms; null: a share of train."
    )
    validation_fraction: ValidationFraction | None = Field(
        description="Share of each class of train that is held out for validation; null where validation is given."
    )
    development_kit: str | None = Field(
        min_length=1,
        description="ILSVRC2012_devkit_t12.tar.gz or the folder from it, for the labels of ILSVRC2012_img_val.tar; "
        "used where validation is a tar of images.",
    )
    image_size: ImageSize
    center_crop: EvaluationCrop
    turn_by_exif: TurnByExif
    unreadable: Unreadable
    unpack_folder: str | None = Field(
        min_length=1,
        description="Where the images of Parquet shards are copied to, one .tar per shard; used for no other form.",
    )

    @model_validator(mode="after")
    def _one_validation_part(self) -> Self:
        if (self.validation is None) == (self.validation_fraction is None):
            raise ValueError("one of validation and validation_fraction should be given, and the other be null")
        return self


class EvaluationSet(_Settings):
    """Images for evaluation alone, such as COCO 2017 validation, in any form of ``Originals`` but Parquet shards."""

    images: str = Field(min_length=1, description="Path of the images; ~ stands for the home folder.")
    image_size: ImageSize
    center_crop: EvaluationCrop
    turn_by_exif: TurnByExif
    unreadable: Unreadable


PrepareData = Annotated[PhotoCrops | Digits | ImageFolder | Originals, Field(discriminator="source")]
"""The parameters of any source. To read them: ``pydantic.TypeAdapter(PrepareData)``, or as a field of a model."""
