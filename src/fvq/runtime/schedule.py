"""Learning-rate schedules of the paper's Table 6."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """Warm-up, a constant part, then annealing: Table 6's ``warmup(0.1) [baselr(0.3)-linear(0.7)]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    warmup: float = Field(ge=0, lt=1, description="share of all steps during which the rate rises linearly")
    warmup_from: float = Field(gt=0, le=1, description="the rate's factor at the first step of the warm-up")
    constant: float = Field(ge=0, le=1, description="share of the remaining steps at the full rate")
    final: float = Field(gt=0, le=1, description="the rate's factor at the last step")
    shape: Literal["linear", "cosine", "none"] = Field(description="how the rate falls; none keeps it at the full rate")


def learning_rate_factor(step: int, total_steps: int, schedule: Schedule) -> float:
    """The factor on the base learning rate at ``step`` (0 to total_steps - 1): Table 6 of the paper."""
    warmup_steps = round(schedule.warmup * total_steps)
    if step < warmup_steps:
        return schedule.warmup_from + (1 - schedule.warmup_from) * step / warmup_steps
    constant_steps = round(schedule.constant * (total_steps - warmup_steps))
    annealing_steps = total_steps - warmup_steps - constant_steps
    position = step - warmup_steps - constant_steps
    if schedule.shape == "none" or position < 0 or annealing_steps == 0:
        return 1.0
    progress = (position + 1) / annealing_steps
    remaining = 1 - progress if schedule.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * remaining
