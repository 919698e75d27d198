"""Figure 7: the quantization loss in training for codebooks of several sizes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fvq.data.open import LabelledImages
from fvq.runtime.schedule import Schedule
from fvq.runtime.training import History
from fvq.tokenizer.config import TokenizerConfig
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.training import train_tokenizer


def train_on_sizes(
    config: TokenizerConfig,
    table: LabelledImages,
    settings: TokenizerTraining,
    schedule: Schedule,
    *,
    sizes: Sequence[int],
    steps: int,
    seed: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[int, History]:
    """Train one FVQ tokenizer for each codebook size, all else equal (paper, Appendix C).

    Args:
        config: of the quantizer fvq; its codebook size is replaced, and its bridge takes the default patch of each.
        table: the images to train on.
        settings: losses and optimiser.
        schedule: of the learning rate, over ``steps``.
        sizes: codebook sizes.
        steps: length of each training.
        seed: the same for each size: the same images in the same order.
        checkpoint_folder: where each training's resume state goes, as ``train_tokenizer`` says.
        checkpoint_every: steps between two such states.
        device: where to train.

    Returns:
        For each size the rows of the history: ``step``; the means since the row before of ``codebook`` and
        ``commitment`` (Eq. 5, weighted) and their sum ``loss``; ``usage`` and its ``usage_tokens`` in that window.

    Raises:
        ValueError: another quantizer, a size given twice or one that does not fit the bridge; before any training.
        UserError: from the training.
    """
    if config.quantizer != "fvq":
        raise ValueError(f"codebook sizes are compared with the quantizer fvq, not {config.quantizer}")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes must differ from each other, not {', '.join(map(str, sizes))}")
    values = config.model_dump()
    values["bridge"]["patch"] = None
    configs = {size: TokenizerConfig.model_validate({**values, "codebook_size": size}) for size in sizes}
    histories: dict[int, History] = {}
    for size, sized in configs.items():
        _, history = train_tokenizer(
            sized,
            table,
            settings,
            schedule,
            steps=steps,
            seed=seed,
            checkpoint_folder=checkpoint_folder / str(size) if checkpoint_folder else None,
            checkpoint_every=checkpoint_every,
            device=device,
        )
        histories[size] = [
            {
                "step": row["step"],
                "loss": row["codebook"] + row["commitment"],
                **{name: row[name] for name in ("codebook", "commitment", "usage", "usage_tokens")},
            }
            for row in history
        ]
    return histories
