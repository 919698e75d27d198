"""Training a tokenizer: the losses of Eq. 35 under the schedule of Table 6."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.data.image_table import ImageTable, to_model_range
from fvq.evaluate.lpips_network import load_lpips_network
from fvq.evaluate.pretrained import VGG16_FILE, find_pretrained, where_to_put
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.usage import SlidingUsage, UsageCounter
from fvq.runtime.batches import batch_indices, steps_per_epoch, total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule, learning_rate_factor
from fvq.runtime.seeds import seed_all
from fvq.runtime.training import History, Stateful, run_steps
from fvq.tokenizer.config import TokenizerConfig
from fvq.tokenizer.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from fvq.tokenizer.stability import StabilityProbe
from fvq.tokenizer.tokenizer import Tokenizer

_DESCRIPTION = "training the tokenizer"

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class TokenizerTraining(BaseModel):
    """How a tokenizer is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: int = Field(ge=1, description="images per step")
    learning_rate: float = Field(gt=0, description="Adam's rate at the schedule's full height, for this batch size")
    betas: tuple[DecayRate, DecayRate] = Field(description="Adam's decay rates of the first and second moments")
    gradient_clip: float = Field(gt=0, description="largest norm of all gradients together")
    reconstruction_weight: float = Field(ge=0, description="weight of the mean squared error")
    perceptual_weight: float = Field(ge=0, description="weight of LPIPS-VGG; 0 leaves it out")
    perceptual_weights: str | None = Field(description="file of the VGG-16 trunk; null: the usual folders")
    adversarial_weight: float = Field(ge=0, description="weight of the hinge loss; 0 leaves the discriminator out")
    adversarial_start: int = Field(ge=0, description="step from which the discriminator counts")
    flip: bool = Field(description="mirror half of the images left to right")
    log_every: int = Field(ge=1, description="steps between rows of the history")
    probe_images: int = Field(ge=0, description="images whose assignments are watched over these steps; 0: none")


def train_tokenizer(
    config: TokenizerConfig,
    table: ImageTable,
    settings: TokenizerTraining,
    schedule: Schedule,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int = 500,
    device: torch.device | str = "cpu",
) -> tuple[Tokenizer, History]:
    """Train on the table's images for ``epochs`` passes or ``steps`` steps.

    Returns:
        The tokenizer, bridge included, in evaluation mode; and the history: ``step``, ``epoch``, ``learning_rate`` (of
        that step), and since the row before the means of ``loss`` and its terms by name, and ``usage``,
        ``usage_tokens``, ``perplexity`` of the tokens seen; ``sliding_usage``, ``sliding_usage_tokens``; and, for a
        quantizer with a codebook that learns by gradients, what ``StabilityProbe`` says of that step.

    Raises:
        UserError: the images do not fit the configuration, weights are missing, or a loss is no longer finite.
    """
    if table.image_size != config.image_size:
        raise UserError(f"{table.path}: holds images of {table.image_size} pixels, not {config.image_size}")
    per_epoch = steps_per_epoch(len(table), settings.batch_size)
    length = total_steps(epochs, steps, per_epoch)
    seed_all(seed, "tokenizer weights")
    tokenizer = Tokenizer(config).to(device).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True)
    usage, sliding_usage = UsageCounter(config.codebook_size), SlidingUsage(config.codebook_size)
    state: dict[str, Stateful] = {
        "tokenizer": tokenizer,
        "optimizer": optimizer,
        "usage": usage,
        "sliding_usage": sliding_usage,
    }
    perceptual = _perceptual_network(settings, device)
    adversary = Adversary(settings, device) if settings.adversarial_weight else None
    if adversary:
        if config.image_size < adversary.discriminator.smallest_side:
            raise UserError(
                f"train_tokenizer.adversarial_weight: the discriminator needs images of at least "
                f"{adversary.discriminator.smallest_side} pixels, not {config.image_size}; 0 leaves it out"
            )
        state |= {"discriminator": adversary.discriminator, "discriminator_optimizer": adversary.optimizer}

    def rate(step: int) -> float:
        return settings.learning_rate * learning_rate_factor(step, length, schedule)

    probe = _stability_probe(tokenizer, table, settings.probe_images)
    last_probe: dict[str, float] = {}

    def step(index: int) -> Mapping[str, Tensor | float]:
        try:
            return descend(index)
        except ValueError as reason:  # the images are sound: the weights no longer are
            raise UserError(f"{_DESCRIPTION}: {reason} at step {index}; a smaller learning rate may help") from None

    def descend(index: int) -> Mapping[str, Tensor | float]:
        watched = probe is not None and ((index + 1) % settings.log_every == 0 or index + 1 == length)
        if probe and watched:
            probe.before()
        images = to_model_range(table.images(batch_indices(len(table), settings.batch_size, index, seed)).to(device))
        if settings.flip:
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(mirrored.to(device), images.flip(-1), images)
        reconstruction, quantized = tokenizer(images)
        usage.add(quantized.indices)
        sliding_usage.add(quantized.indices)
        error = settings.reconstruction_weight * F.mse_loss(reconstruction, images)
        terms = {"reconstruction": error, **quantized.terms}
        if perceptual:
            terms["perceptual"] = settings.perceptual_weight * perceptual(reconstruction, images).mean()
        fooling = adversary is not None and index >= settings.adversarial_start
        if adversary and fooling:
            adversary.discriminator.requires_grad_(False)
            terms["adversarial"] = settings.adversarial_weight * generator_loss(adversary.discriminator(reconstruction))
        loss = torch.stack(list(terms.values())).sum()
        _descend(loss, tokenizer, optimizer, rate(index), settings.gradient_clip)
        if probe and watched:
            last_probe.update(probe.after())
        if adversary and fooling:
            terms["discriminator"] = adversary.step(images, reconstruction.detach(), rate(index))
        return {"loss": loss, **terms}

    def summarize() -> dict[str, float]:
        counted, sliding = usage.figures(), sliding_usage.figures()
        usage.reset()
        names = ("usage", "usage_tokens", "perplexity", "sliding_usage", "sliding_usage_tokens")
        return {name: {**counted, **sliding}[name] for name in names} | last_probe

    history = run_steps(
        step,
        total_steps=length,
        state=state,
        seed=seed,
        log_every=settings.log_every,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        summarize=summarize,
        description=_DESCRIPTION,
    )
    rows: History = [
        {"step": row["step"], "epoch": row["step"] / per_epoch, "learning_rate": rate(int(row["step"]) - 1), **row}
        for row in history
    ]
    return tokenizer.eval(), rows


def _stability_probe(tokenizer: Tokenizer, table: ImageTable, count: int) -> StabilityProbe | None:
    """A probe on the table's first images, where the quantizer has a codebook that learns by gradients."""
    if not count or not isinstance(tokenizer.quantizer, CodebookQuantizer):
        return None
    images = to_model_range(table.images(torch.arange(min(count, len(table)))))
    return StabilityProbe(tokenizer, images.to(tokenizer.device))


class Adversary:
    """The discriminator and its optimiser."""

    def __init__(self, settings: TokenizerTraining, device: torch.device | str) -> None:
        self.clip = settings.gradient_clip
        self.discriminator = PatchDiscriminator().to(device).train()
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True
        )

    def step(self, real: Tensor, fake: Tensor, rate: float) -> Tensor:
        """One step on images (B, 3, H, W) and their detached reconstructions; the loss."""
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        _descend(loss, self.discriminator, self.optimizer, rate, self.clip)
        return loss


def _descend(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _perceptual_network(settings: TokenizerTraining, device: torch.device | str) -> nn.Module | None:
    """LPIPS-VGG without gradients of its own, or None where its weight is 0."""
    if not settings.perceptual_weight:
        return None
    parameter = "train_tokenizer.perceptual_weights"
    found = find_pretrained(VGG16_FILE, settings.perceptual_weights, parameter)
    if found is None:
        raise UserError(where_to_put(VGG16_FILE, parameter))
    return load_lpips_network("vgg", found).to(device)
