"""Training a LlamaGen on tokens: the generation column of the paper's Table 6."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.generate.settings import GeneratorTraining, Recipe
from fvq.generate.source import TokenSource
from fvq.generate.step import GeneratorStep
from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.batches import steps_per_epoch, total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.processes import is_first
from fvq.runtime.schedule import learning_rate_factor
from fvq.runtime.seeds import seed_all
from fvq.runtime.training import History, Row, run_steps


def train_generator(
    config: LlamaGenConfig,
    source: TokenSource,
    recipe: Recipe,
    settings: GeneratorTraining,
    seed: int,
    checkpoint_folder: Path | None = None,
    *,
    checkpoint_every: int | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[Row], None] | None = None,
) -> tuple[LlamaGen, History]:
    """Train on tokens, by this process or by all of its group, each with its part of every batch.

    ``on_row`` sees each row of the history as it is made.

    Returns:
        The model in evaluation mode on the CPU, and the history: ``step``, ``epoch``, ``learning_rate`` (of that step),
        and since the row before the means of ``loss`` (nats per token), ``perplexity`` (its exponential), ``accuracy``
        (share of tokens whose likeliest guess is right, under dropout) and ``gradient_norm`` (before clipping).

    Raises:
        UserError: the tokens do not fit the configuration, the batch does not divide among the processes, or the loss
            is no longer finite.
        Interrupted: a scheduler's signal came, and the state is saved.
    """
    part = _part_of_batch(recipe.batch_size, settings.accumulate)
    per_epoch = steps_per_epoch(source.images, recipe.batch_size)
    length = total_steps(recipe.epochs, recipe.steps, per_epoch)
    seed_all(seed, "generator weights")
    optimize = GeneratorStep(config, settings, torch.device(device))

    def rate(step: int) -> float:
        return recipe.learning_rate * learning_rate_factor(step, length, recipe.schedule)

    def step(index: int) -> Mapping[str, Tensor | float]:
        tokens, labels = source.batch(index, recipe.batch_size, seed, part)
        _check_batch(config, tokens, labels)
        if number_of_processes() > 1:  # of which each drops other units
            seed_all(seed, "step", index, process_number())
        return optimize(tokens, labels, rate(index))

    def complete(row: Row) -> Row:
        done = int(row["step"])
        return {
            "step": done,
            "epoch": done / per_epoch,
            "learning_rate": rate(done - 1),
            "loss": row["loss"],
            "perplexity": math.exp(min(row["loss"], 700.0)),  # beyond it a float overflows
            "accuracy": row["accuracy"],
            "gradient_norm": row["gradient_norm"],
        }

    def tell(row: Row, _: bool) -> str:
        if on_row and is_first():
            on_row(complete(row))
        return f"loss {row['loss']:.4g}, accuracy {100 * row['accuracy']:.1f} %"

    history = run_steps(
        step,
        total_steps=length,
        state=optimize.state(),
        seed=seed,
        log_every=settings.log_every,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        on_row=tell,
        images_per_step=recipe.batch_size,
        description="training the generator",
    )
    return optimize.result(), [complete(row) for row in history]


def _part_of_batch(batch_size: int, accumulate: int) -> slice:
    """This process's images of each batch."""
    processes = number_of_processes()
    if batch_size % (processes * accumulate):
        raise UserError(
            f"batch_size: {batch_size} images do not divide into {processes * accumulate} equal parts ({processes} "
            f"processes, which FVQ_PROCESSES sets, times train_generator.accumulate {accumulate})"
        )
    share = batch_size // processes
    return slice(process_number() * share, (process_number() + 1) * share)


def _check_batch(config: LlamaGenConfig, tokens: Tensor, labels: Tensor) -> None:
    """An index out of range would end in torch's own words, or on a GPU in none."""
    if tokens.shape[1] != config.tokens:
        raise UserError(
            f"grid: {config.grid} means {config.tokens} tokens per image, and the data has {tokens.shape[1]}"
        )
    for key, values, limit in (
        ("vocabulary_size", tokens, config.vocabulary_size),
        ("classes", labels, config.classes),
    ):
        for extreme in (int(values.min()), int(values.max())):
            if not 0 <= extreme < limit:
                raise UserError(f"{key}: the data holds {extreme}, and with {limit} the largest is {limit - 1}")
