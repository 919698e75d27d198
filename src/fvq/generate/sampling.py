"""How tokens are drawn: settings, labels, truncated draws."""

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator

if TYPE_CHECKING:
    from fvq.generate.llamagen import LlamaGenConfig


class SamplingSettings(BaseModel):
    """How tokens are drawn; see ``LlamaGen.sample``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cfg_scale: float = Field(ge=1, description="classifier-free guidance; 1 is none")
    cfg_start: int = Field(
        ge=0, description="the first token that is guided, from 0; LlamaGen's cfg_interval is the reverse, its end"
    )
    temperature: float = Field(ge=0, description="divides the logits; 0 takes the likeliest token")
    top_k: int = Field(ge=0, description="only this many likeliest tokens are drawn; 0 is all")
    top_p: float = Field(
        gt=0, le=1, description="only the likeliest tokens of this joint probability are drawn; 1 is all"
    )

    def guides(self, tokens: int) -> bool:
        """Whether any of an image's ``tokens`` is guided, which takes every step twice the work."""
        return self.cfg_scale > 1 and self.cfg_start < tokens


def class_labels(count: int, classes: int, how: Literal["balanced", "uniform"], seed: int) -> Tensor:
    """``count`` labels (int64) from 0 to ``classes - 1``.

    ``balanced``: 0, 1, 2, … over and over, so that counts differ by at most one in any stretch. ``uniform``: drawn
    independently, as LlamaGen's sampling script does.
    """
    if how == "balanced":
        return torch.arange(count) % classes
    if how == "uniform":
        return torch.randint(classes, (count,), generator=generator(seed, "sampled labels"))
    raise UserError(f"labels: {how!r} is neither balanced nor uniform")


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, K) with -inf outside the ``top_k`` likeliest (0: all) and, among those, outside the fewest likeliest
    whose probability reaches ``top_p``. Of equal logits the lower index is kept.
    """
    vocabulary = logits.shape[-1]
    if not 0 < top_k < vocabulary:
        top_k = vocabulary
    if top_k == vocabulary and top_p == 1:
        return logits
    # Only a threshold is taken from the order: draws go by vocabulary, where near-equal tokens cannot swap places.
    kept = torch.full_like(logits[:, :1], top_k, dtype=torch.int64)
    if top_p < 1:
        ordered = logits.sort(descending=True).values if top_k == vocabulary else logits.topk(top_k).values
        cumulative = ordered.softmax(-1).cumsum(-1, dtype=torch.float64)
        kept = 1 + (cumulative[:, :-1] < top_p).sum(-1, keepdim=True)
        threshold = ordered.gather(-1, kept - 1)
    else:
        threshold = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
    below = logits < threshold
    # A GPU's step must not wait for an answer, and there the general way costs little.
    if logits.device.type == "cpu" and bool((vocabulary - below.sum(-1, keepdim=True) == kept).all()):
        return logits.masked_fill(below, -torch.inf)
    above, ties = logits > threshold, logits == threshold
    first_ties = ties & (ties.cumsum(-1) <= kept - above.sum(-1, keepdim=True))
    return logits.masked_fill(~(above | first_ties), -torch.inf)


def draw(logits: Tensor, settings: SamplingSettings, uniforms: Tensor) -> Tensor:
    """Tokens (B,) from logits (B, K), by inverse cumulative probability at ``uniforms`` (B,) float64 in (0, 1]."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    kept = truncate(logits.float() / settings.temperature, settings.top_k, settings.top_p)
    return _invert(kept.softmax(-1), uniforms)


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token of each row (B, K) at which the sum of probabilities reaches the uniform's share of their total.

    Found in two stages, so that sums run over sqrt(K) values: first the stretch of tokens, then the token in it. Shares
    are above 0, and so no token of probability 0 is ever drawn.
    """
    stretch = math.isqrt(probabilities.shape[-1] - 1) + 1
    stretches = F.pad(probabilities, (0, -probabilities.shape[-1] % stretch)).unflatten(-1, (-1, stretch))
    sums = stretches.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms[:, None] * sums[:, -1:]
    which = torch.searchsorted(sums, target)
    rest = target - F.pad(sums, (1, 0)).gather(1, which)
    inside = stretches.gather(1, which[:, :, None].expand(-1, -1, stretch))[:, 0].cumsum(-1, dtype=torch.float64)
    # Added up in another order a stretch may come out a hair short.
    return (which * stretch + torch.searchsorted(inside, torch.minimum(rest, inside[:, -1:])))[:, 0]


def check_settings(config: "LlamaGenConfig", settings: SamplingSettings, batch_size: int | None) -> None:
    """UserError where a generator of this kind cannot be guided, or no image is to be drawn at once."""
    if settings.cfg_scale > 1 and config.class_dropout == 0:
        raise UserError("cfg_scale: this generator was trained with class_dropout 0 and cannot be guided; set it to 1")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: must be at least 1, not {batch_size}")


def check_labels(config: "LlamaGenConfig", labels: Tensor) -> None:
    """UserError naming a label that is no class of the generator."""
    wrong = labels[(labels < 0) | (labels >= config.classes)]
    if len(wrong):
        raise UserError(f"labels: {int(wrong[0])} is no class of this generator (0 to {config.classes - 1})")
