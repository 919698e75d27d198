"""How a tokenizer is trained."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DecayRate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class TokenizerTraining(BaseModel):
    """Losses (Eq. 35 of the paper) and recipe (Table 6, and what only the released scripts say)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: int = Field(ge=1, description="images per step, over all processes")
    accumulate: int = Field(ge=1, description="parts that a process's share of a batch is computed in, to save memory")
    precision: Literal["float32", "bfloat16"] = Field(
        description="of convolutions and attention, by autocast; weights, quantization and losses are float32"
    )
    learning_rate: float = Field(gt=0, description="Adam's rate at the schedule's full height")
    reference_batch_size: int | None = Field(
        ge=1, description="batch size that learning_rate is meant for, others scale it in proportion; null: this one"
    )
    betas: tuple[DecayRate, DecayRate] = Field(description="Adam's decay rates of the first and second moments")
    gradient_clip: float = Field(gt=0, description="largest norm of all gradients together")
    ema_decay: DecayRate | None = Field(description="the result is the weights' moving average; null: the weights")
    reconstruction_weight: float = Field(ge=0, description="weight of the mean squared error")
    perceptual_weight: float = Field(ge=0, description="weight of LPIPS-VGG; 0 leaves it out")
    perceptual_weights: str | None = Field(description="file of the VGG-16 trunk; null: the usual folders")
    adversarial_weight: float = Field(ge=0, description="weight of the hinge loss; 0 leaves the discriminator out")
    adversarial_start: int = Field(ge=0, description="step from which the discriminator counts")
    crop: tuple[Share, Share] | None = Field(
        description="random crops: least and most of the scaled image's shorter side; null: the centre crop"
    )
    flip: bool = Field(description="mirror half of the images left to right")
    log_every: int = Field(ge=1, description="steps between rows of the history")
    grid_every: int = Field(ge=0, description="steps between pictures of reconstructions; 0: none")
    probe_images: int = Field(ge=0, description="images whose assignments are watched over these steps; 0: none")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        if self.crop and self.crop[0] > self.crop[1]:
            raise ValueError(f"crop names the least share first, not {self.crop[0]} before {self.crop[1]}")
        return self

    @property
    def scaled_learning_rate(self) -> float:
        """The rate for this batch size: in proportion to it, without rounding down."""
        return self.learning_rate * (self.batch_size / (self.reference_batch_size or self.batch_size))
