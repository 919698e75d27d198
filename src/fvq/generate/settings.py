"""How a generator is trained."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fvq.runtime.batches import check_length
from fvq.runtime.schedule import Schedule

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """Batch size, length and learning rate: what the paper's generators and LlamaGen's differ in."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: PositiveInt = Field(description="images per step, over all processes")
    epochs: PositiveFloat | None = Field(description="times that each image is seen; null where steps counts")
    steps: PositiveInt | None = Field(description="optimisation steps; null where epochs counts")
    learning_rate: PositiveFloat = Field(description="the schedule's full rate, for this batch size")
    schedule: Schedule = Field(description="how the learning rate changes")

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        check_length(self.epochs, self.steps)
        return self


class GeneratorTraining(BaseModel):
    """What all recipes share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight_decay: NonNegativeFloat = Field(description="of weights with two or more dimensions, embeddings included")
    betas: tuple[DecayRate, DecayRate] = Field(description="AdamW's decay rates of the first and second moments")
    gradient_clip: PositiveFloat = Field(description="largest norm of all gradients together")
    accumulate: PositiveInt = Field(description="parts that a process's share of a batch is computed in")
    precision: Literal["float32", "bfloat16"] = Field(
        description="of matrix products and attention; weights, optimiser and gradients' sums over processes are "
        "float32. With sharding full bfloat16 also holds what blocks hand on, as in LlamaGen's own FSDP training"
    )
    compile: bool = Field(description="compile the transformer blocks: minutes at the start, then faster steps")
    sharding: Literal["none", "full"] = Field(
        description="full divides weights, gradients and optimiser among the processes (FSDP)"
    )
    log_every: PositiveInt = Field(description="steps between rows of the history")
