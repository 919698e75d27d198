"""Training a tokenizer: the losses of Eq. 35 under the schedule of Table 6."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fvq.data.batches import TrainingBatches
from fvq.data.image_table import to_model_range
from fvq.data.open import LabelledImages
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.processes import number_of_processes, process_number
from fvq.quantize.usage import SlidingUsage, UsageCounter
from fvq.runtime.batches import steps_per_epoch, total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.processes import is_first
from fvq.runtime.schedule import Schedule, learning_rate_factor
from fvq.runtime.seeds import seed_all
from fvq.runtime.training import History, Row, run_steps
from fvq.tokenizer.average import MovingAverage
from fvq.tokenizer.config import TokenizerConfig
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.stability import StabilityProbe
from fvq.tokenizer.step import TokenizerStep
from fvq.tokenizer.tokenizer import Tokenizer
from fvq.tokenizer.watching import UsageWatch, save_grid

_DESCRIPTION = "training the tokenizer"
_GRID_IMAGES = 8


def train_tokenizer(
    config: TokenizerConfig,
    images: LabelledImages,
    settings: TokenizerTraining,
    schedule: Schedule,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[Row], None] | None = None,
    grid_folder: Path | None = None,
) -> tuple[Tokenizer, History]:
    """Train on the images for ``epochs`` passes or ``steps`` steps, by this process or by all of its group.

    ``on_row`` sees each row of the history as it is made; pictures of reconstructions go to ``grid_folder``.

    Returns:
        The tokenizer, bridge included, in evaluation mode; and the history: ``step``, ``epoch``, ``learning_rate`` (of
        that step), and since the row before the means of ``loss``, its terms by name and ``gradient_norm`` (before
        clipping), and ``usage``, ``usage_tokens``, ``perplexity`` of the tokens seen; ``sliding_usage``,
        ``sliding_usage_tokens``; and, for a quantizer with a codebook that learns by gradients, what ``StabilityProbe``
        says of that step.

    Raises:
        UserError: the images do not fit the configuration, weights are missing, or a loss is no longer finite.
        Interrupted: a scheduler's signal came, and the state is saved.
    """
    if images.image_size != config.image_size:
        raise UserError(f"{images.path}: holds images of {images.image_size} pixels, not {config.image_size}")
    per_epoch = steps_per_epoch(len(images), settings.batch_size)
    length = total_steps(epochs, steps, per_epoch)
    seed_all(seed, "tokenizer weights")
    tokenizer = Tokenizer(config).to(device).train()
    optimize = TokenizerStep(tokenizer, settings)
    usage, sliding_usage = UsageCounter(config.codebook_size, device), SlidingUsage(config.codebook_size)
    state = {**optimize.state(), "usage": usage, "sliding_usage": sliding_usage}
    average = None if settings.ema_decay is None else MovingAverage(tokenizer, settings.ema_decay)
    if average:
        state["average"] = average
    result = average.tokenizer if average else tokenizer
    probe = _stability_probe(tokenizer, images, settings.probe_images)
    last_probe: dict[str, float] = {}

    def rate(step: int) -> float:
        return settings.scaled_learning_rate * learning_rate_factor(step, length, schedule)

    def count(indices: Tensor) -> None:
        usage.add(indices)
        sliding_usage.add(indices)

    def step(index: int) -> Mapping[str, Tensor | float]:
        done = index + 1
        watched = probe is not None and (done % settings.log_every == 0 or done == length)
        if probe and watched:
            probe.before()
        figures = optimize(index, batches(index), rate(index), count)
        if probe and watched:
            last_probe.update(probe.after())
        if average:
            average.update(tokenizer)
        if grid_folder and settings.grid_every and done % settings.grid_every == 0 and is_first():
            save_grid(result, images.images(torch.arange(min(_GRID_IMAGES, len(images)))), grid_folder, done)
        return figures

    def summarize() -> dict[str, float]:
        counted, sliding = usage.figures(), sliding_usage.figures()
        usage.reset()
        names = ("usage", "usage_tokens", "perplexity", "sliding_usage", "sliding_usage_tokens")
        return {name: {**counted, **sliding}[name] for name in names} | last_probe

    def complete(row: Row) -> Row:
        done = int(row["step"])
        return {"step": done, "epoch": done / per_epoch, "learning_rate": rate(done - 1), **row}

    watch = UsageWatch(config.codebook_size)

    def tell(row: Row, new: bool) -> str:
        warning = watch.add(row)
        if is_first():
            if warning and new:
                print(f"fvq: {_DESCRIPTION}: {warning}", file=sys.stderr, flush=True)
            if on_row:
                on_row(complete(row))
        return f"usage {100 * row['usage']:.1f} %, loss {row['loss']:.4g}"

    with TrainingBatches(
        images,
        batch_size=settings.batch_size,
        seed=seed,
        flip=settings.flip,
        crop=settings.crop,
        process=process_number(),
        processes=number_of_processes(),
        accumulate=settings.accumulate,
    ) as batches:
        history = run_steps(
            step,
            total_steps=length,
            state=state,
            seed=seed,
            log_every=settings.log_every,
            checkpoint_folder=checkpoint_folder,
            checkpoint_every=checkpoint_every,
            summarize=summarize,
            on_row=tell,
            images_per_step=settings.batch_size,
            description=_DESCRIPTION,
        )
    return result.eval(), [complete(row) for row in history]


def _stability_probe(tokenizer: Tokenizer, images: LabelledImages, count: int) -> StabilityProbe | None:
    """A probe on the first images, where the quantizer has a codebook that learns by gradients."""
    if not count or not is_first() or not isinstance(tokenizer.quantizer, CodebookQuantizer):
        return None
    first = to_model_range(images.images(torch.arange(min(count, len(images)))))
    return StabilityProbe(tokenizer, first.to(tokenizer.device))
