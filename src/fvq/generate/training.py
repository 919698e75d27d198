"""Training a LlamaGen on token tables: the generation column of the paper's Table 6."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.runtime.batches import batch_indices, steps_per_epoch, total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule, learning_rate_factor
from fvq.runtime.seeds import seed_all
from fvq.runtime.training import History, run_steps

# Rows of logits that exist at once. More gain nothing on a CPU, whose caches they leave.
_ROWS = 256


DecayRate = Annotated[float, Field(ge=0, lt=1)]


class GeneratorTraining(BaseModel):
    """How a generator is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: PositiveFloat | None = Field(description="passes over the token table; null where steps counts")
    steps: PositiveInt | None = Field(description="optimisation steps; null where epochs counts")
    batch_size: PositiveInt = Field(description="images per step")
    learning_rate: PositiveFloat = Field(description="the schedule's full rate, for this batch size")
    weight_decay: NonNegativeFloat = Field(description="of weights with two or more dimensions, embeddings included")
    betas: tuple[DecayRate, DecayRate] = Field(description="AdamW's decay rates of the first and second moments")
    gradient_clip: PositiveFloat = Field(description="largest norm of all gradients together")
    schedule: Schedule = Field(description="how the learning rate changes")
    log_every: PositiveInt = Field(description="steps between rows of the history")


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a bias-free linear layer, a few rows of logits at a time.

    The gradients are made together with the loss, so that no more than ``_ROWS`` rows of logits exist at any moment.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = features.new_zeros(())
        correct = targets.new_zeros(())
        for_features, for_weight = torch.empty_like(features), torch.zeros_like(weight)
        pieces = (torch.split(part, _ROWS) for part in (features, targets, for_features))
        for x, y, gradient in zip(*pieces, strict=True):
            logits = x @ weight.T
            largest, guess = logits.max(1)
            correct += (guess == y).sum()
            of_target = logits.gather(1, y[:, None])[:, 0] - largest
            exponentials = logits.sub_(largest[:, None]).exp_()
            total = exponentials.sum(1)
            loss += (total.log() - of_target).sum()
            # Softmax minus the one-hot target is the gradient with respect to the logits.
            probabilities = exponentials.div_(total[:, None])
            probabilities[torch.arange(len(y), device=y.device), y] -= 1
            torch.mm(probabilities, weight, out=gradient)
            for_weight.addmm_(probabilities.T, x)
        ctx.save_for_backward(for_features.div_(len(targets)), for_weight.div_(len(targets)))
        accuracy = correct / len(targets)
        ctx.mark_non_differentiable(accuracy)
        return loss / len(targets), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        for_features, for_weight = ctx.saved_tensors
        return for_features * scale, for_weight * scale, None


def linear_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy (nats) of logits ``features @ weight.T`` and the share of rows whose largest logit is right.

    Args:
        features: (N, width).
        weight: (K, width), of the same dtype.
        targets: (N,) int64.
    """
    loss, accuracy = _LinearCrossEntropy.apply(features, weight, targets)
    return loss, accuracy


def build_optimizer(model: LlamaGen, settings: GeneratorTraining) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings and leaves the norms' scales alone."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def train_generator(
    config: LlamaGenConfig,
    tokens: Tensor,
    labels: Tensor,
    settings: GeneratorTraining,
    seed: int,
    checkpoint_folder: Path | None = None,
    *,
    checkpoint_every: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[LlamaGen, History]:
    """Train on tokens (N, h*w) int64 with labels (N,) int64.

    Returns:
        The model in evaluation mode, and the history: ``step``, ``epoch``, ``learning_rate`` (of that step), and since
        the row before ``loss`` (nats per token), ``perplexity`` (its exponential) and ``accuracy`` (share of tokens
        whose likeliest guess is right, under dropout).

    Raises:
        UserError: the tokens do not fit the configuration, or the loss is no longer finite.
    """
    _check_data(config, tokens, labels)
    per_epoch = steps_per_epoch(len(tokens), settings.batch_size)
    length = total_steps(settings.epochs, settings.steps, per_epoch)
    seed_all(seed, "generator weights")
    model = LlamaGen(config).to(device).train()
    optimizer = build_optimizer(model, settings)

    def rate(step: int) -> float:
        return settings.learning_rate * learning_rate_factor(step, length, settings.schedule)

    def step(index: int) -> Mapping[str, Tensor | float]:
        chosen = batch_indices(len(tokens), settings.batch_size, index, seed)
        batch = tokens[chosen].to(device)
        features = model.features(labels[chosen].to(device), batch)
        loss, accuracy = linear_cross_entropy(features.flatten(0, 1), model.output.weight, batch.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(index)
        optimizer.step()
        return {"loss": loss, "accuracy": accuracy}

    history = run_steps(
        step,
        total_steps=length,
        state={"model": model, "optimizer": optimizer},
        seed=seed,
        log_every=settings.log_every,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        description="training the generator",
    )
    rows: History = [
        {
            "step": row["step"],
            "epoch": row["step"] / per_epoch,
            "learning_rate": rate(int(row["step"]) - 1),
            "loss": row["loss"],
            "perplexity": math.exp(min(row["loss"], 700.0)),  # beyond it a float overflows
            "accuracy": row["accuracy"],
        }
        for row in history
    ]
    return model.eval(), rows


def _check_data(config: LlamaGenConfig, tokens: Tensor, labels: Tensor) -> None:
    """An index out of range would end in torch's own words, or on a GPU in none."""
    if tokens.dim() != 2 or tokens.shape[1] != config.tokens:
        raise UserError(
            f"grid: {config.grid} means {config.tokens} tokens per image, and the data is {tuple(tokens.shape)}"
        )
    if labels.shape != tokens.shape[:1]:
        raise UserError(f"labels: {tuple(labels.shape)} for {len(tokens)} images")
    if not len(tokens):
        raise UserError("tokens: there are no images to train on")
    for key, values, limit in (
        ("vocabulary_size", tokens, config.vocabulary_size),
        ("classes", labels, config.classes),
    ):
        for extreme in (int(values.min()), int(values.max())):
            if not 0 <= extreme < limit:
                raise UserError(f"{key}: the data holds {extreme}, and with {limit} the largest is {limit - 1}")
