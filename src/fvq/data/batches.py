"""Which pixels a training step sees: a function of the seed and the step alone, decoded ahead where they are many."""

import atexit
import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import resource_tracker
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fvq.data.image_table import ImageTable
from fvq.data.open import LabelledImages
from fvq.runtime.batches import batch_indices
from fvq.runtime.devices import available_cores
from fvq.runtime.errors import UserError
from fvq.runtime.interruption import SIGNALS
from fvq.runtime.seeds import generator

_MOST_WORKERS = 16
# Not fork: torch's threads do not survive it. Not forkserver: a scheduler's signal would end the server.
_SPAWN = multiprocessing.get_context("spawn")


class TrainingBatches:
    """The batches of a training, by step. Several processes' parts together are the one-process batch."""

    def __init__(
        self,
        images: LabelledImages,
        *,
        batch_size: int,
        seed: int,
        flip: bool,
        crop: tuple[float, float] | None,
        process: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        workers: int | None = None,
    ) -> None:
        """
        Args:
            images: what is trained on.
            batch_size: images per step, all processes together.
            seed: of order, crops and mirroring.
            flip: mirror half of the images left to right.
            crop: least and most share of the shorter side (``fvq.data.crops.random_crop``); None: centre crops.
            process: this process's place among those that train, from 0.
            processes: their number.
            accumulate: equal parts in which a process takes its images: the first parts of all processes together are
                the first part of one alone, and so on.
            workers: processes that decode ahead where the images do not fit in memory; 0: none, this one does it. None:
                as many as there are cores for each training process of this machine, at most 16.

        Raises:
            UserError: random crops of an image table, shares that cannot be, a batch that the processes cannot share.
        """
        shares = processes * accumulate
        if batch_size % shares:
            raise UserError(
                f"train_tokenizer.batch_size: {batch_size} images do not divide into {shares} equal parts "
                f"({processes} processes, which FVQ_PROCESSES sets, times accumulate {accumulate})"
            )
        if crop and not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"train_tokenizer.crop: shares above 0 up to 1, the smaller first, not {list(crop)}")
        places_b = torch.arange(batch_size).view(accumulate, processes, -1)[:, process].flatten()
        self._local = _LocalBatches(images, batch_size, seed, flip, crop, places_b)
        self._workers = 0 if images.fits_in_memory else _default_workers() if workers is None else workers
        self._steps = _StepsFrom()
        self._loader: DataLoader[Tensor | UserError] | None = None
        self._decoded: Iterator[Tensor | UserError] | None = None
        self._next_step = 0
        self._ending = _SPAWN.RawValue("b", 0)  # shared with the workers

    def __call__(self, step: int) -> Tensor:
        """This process's images of ``step`` (from 0), uint8 (batch_size / processes, 3, S, S) on the CPU.

        Workers start at the first call and expect steps in order; another step costs a new start of what they decode.

        Raises:
            UserError: fewer images than the batch takes, or one that cannot be read.
        """
        if not self._workers:
            return self._local.batch(step)
        if self._decoded is None or step != self._next_step:
            self._steps.first = step
            if self._loader is None:
                self._loader = self._start_workers()
            self._decoded = iter(self._loader)
        self._next_step = step + 1
        batch = next(self._decoded)
        if isinstance(batch, UserError):
            raise batch
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        self._ending.value = 1
        self._decoded = self._loader = None

    def _start_workers(self) -> DataLoader[Tensor | UserError]:
        self._ending.value = 0
        # multiprocessing's tracker inherits the mask: a scheduler's signal to all processes would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # Runs before multiprocessing's own end, which waits for the workers that it terminates.
        atexit.register(setattr, self._ending, "value", 1)
        return DataLoader(
            self._local,
            batch_size=None,
            sampler=self._steps,
            num_workers=self._workers,
            persistent_workers=True,
            multiprocessing_context=_SPAWN,
            worker_init_fn=partial(_tie_to_parent, self._ending),
            generator=torch.Generator(),  # else the start would draw from the training's own random stream
        )


class _StepsFrom:
    """Steps from ``first`` on, without end."""

    first = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _LocalBatches(Dataset["Tensor | UserError"]):
    """What a worker needs to make one process's part of any step's batch."""

    def __init__(
        self,
        images: LabelledImages,
        batch_size: int,
        seed: int,
        flip: bool,
        crop: tuple[float, float] | None,
        places_b: Tensor,
    ) -> None:
        if crop and isinstance(images, ImageTable):
            raise UserError(
                f"train_tokenizer.crop: {images.path} is an image table, and image tables hold squares of the training "
                f"size already; use null"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.crop = crop
        self.places_b = places_b  # this process's, within the whole batch

    def batch(self, step: int) -> Tensor:
        """uint8 (share, 3, S, S). Draws are made for the whole batch, so that they do not depend on the processes."""
        indices_b = batch_indices(len(self.images), self.batch_size, step, self.seed)[self.places_b]
        if self.crop and not isinstance(self.images, ImageTable):
            crops_generator = generator(self.seed, "crops", step)
            draws_b3 = torch.rand(self.batch_size, 3, dtype=torch.float64, generator=crops_generator)
            images_bchw = self.images.random_crops(indices_b, draws_b3[self.places_b], *self.crop)
        else:
            images_bchw = self.images.images(indices_b)
        if self.flip:
            mirrored = torch.rand(self.batch_size, 1, 1, 1, generator=generator(self.seed, "step", step)) < 0.5
            images_bchw = torch.where(mirrored[self.places_b], images_bchw.flip(-1), images_bchw)
        return images_bchw

    def __getitem__(self, step: int) -> Tensor | UserError:
        try:
            return self.batch(step)
        except UserError as error:  # as a value: the loader would wrap the worker's traceback around its text
            return error


def _default_workers() -> int:
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, available_cores() // processes_here))


def _tie_to_parent(ending: ctypes.c_byte, _: int) -> None:
    """In a worker: live as long as the training process wants, not as long as signals and accidents let it.

    Schedulers signal all processes of a job, and the training process still needs its batch to end a step. Where that
    process is killed, torch notices only if the worker was up before.
    """

    def end_if_wanted(*_: object) -> None:
        if ending.value:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, end_if_wanted)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
