"""Training of the feature classifier on the study's own training images."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from fvq.evaluate.images import check_images
from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.runtime.batches import batch_indices
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule, learning_rate_factor
from fvq.runtime.seeds import seed_all
from fvq.runtime.training import History, run_steps


class ExtractorTraining(BaseModel):
    """How the feature classifier is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="optimisation steps")
    batch_size: int = Field(ge=1, description="images in a step")
    learning_rate: float = Field(gt=0, description="AdamW's learning rate at the schedule's full height")
    weight_decay: float = Field(ge=0, description="AdamW's decoupled weight decay")
    width: int = Field(ge=8, multiple_of=8, description="channels of the first stage; a feature is four times as long")
    flips: bool = Field(description="mirror half of the images left to right; not for digits or letters")
    shift: int = Field(ge=0, description="largest random shift in pixels, each way")
    schedule: Schedule = Field(description="the learning rate over the steps")


def train_extractor(
    images: Tensor,
    labels: Tensor,
    settings: ExtractorTraining,
    *,
    name: str,
    classes: int,
    seed: int,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int | None = None,
    log_every: int = 50,
) -> tuple[ImageClassifier, History]:
    """A classifier of images uint8 (N, 3, S, S) by labels int64 (N,) in 0 to classes - 1, and its training's history.

    The history holds ``loss`` (cross entropy in nats), ``accuracy`` (0 to 1, on the augmented training images) and
    ``learning_rate``. The result follows from the arguments alone, interrupted or not.

    Raises:
        UserError: images or labels of a wrong type, shape or range; fewer images than a batch; a loss not finite.
    """
    check_images(images, "training images", at_least=2)
    _check_labels(labels, len(images), classes)
    if images.shape[2] != images.shape[3]:
        raise UserError(f"training images: must be square, not {images.shape[2]}x{images.shape[3]} pixels")
    if settings.shift >= images.shape[2]:
        raise UserError(f"shift: {settings.shift} pixels is no small shift of images of {images.shape[2]} pixels")
    seed_all(seed, "extractor", "initial weights")
    config = ImageClassifierConfig(name=name, image_size=images.shape[2], classes=classes, width=settings.width)
    classifier = ImageClassifier(config)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def step(index: int) -> dict[str, Tensor | float]:
        chosen = batch_indices(len(images), settings.batch_size, index, seed)
        rate = settings.learning_rate * learning_rate_factor(index, settings.steps, settings.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = classifier(augment(images[chosen], flips=settings.flips, shift=settings.shift)).logits
        loss = functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        accuracy = (logits.argmax(dim=1) == labels[chosen]).float().mean()
        return {"loss": loss, "accuracy": accuracy, "learning_rate": rate}

    history = run_steps(
        step,
        total_steps=settings.steps,
        state={"classifier": classifier, "optimizer": optimizer},
        seed=seed,
        log_every=log_every,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        description=f"extractor {name}",
    )
    return classifier.eval().requires_grad_(False), history


def augment(images: Tensor, *, flips: bool, shift: int) -> Tensor:
    """Images (B, 3, H, W), each shifted by up to ``shift`` pixels each way and reflected at the border, half of them
    mirrored left to right where ``flips``. Draws from torch's global random stream.
    """
    count, _, height, width = images.shape
    rows_bh = _shifted_positions(count, height, shift)
    columns_bw = _shifted_positions(count, width, shift)
    if flips:
        columns_bw = torch.where(torch.rand(count, 1) < 0.5, columns_bw.flip(1), columns_bw)
    images_bhw3 = images.movedim(1, 3)[torch.arange(count)[:, None, None], rows_bh[:, :, None], columns_bw[:, None, :]]
    return images_bhw3.movedim(3, 1)


def _shifted_positions(count: int, length: int, shift: int) -> Tensor:
    """Source positions int64 (count, length) of a random shift, reflected at both ends."""
    positions = torch.arange(length) + torch.randint(-shift, shift + 1, (count, 1))
    return (length - 1) - ((length - 1) - positions.abs()).abs()


def _check_labels(labels: Tensor, count: int, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise UserError(f"training labels: must be {count} int64 numbers, not {labels.dtype} {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"training labels: must lie in 0 to {classes - 1}, and {labels.min()} to {labels.max()} do not")
