"""Many images from a generator: drawn in parts that a killed run finds again, by several processes, into one archive.

Tokens are kept in parts, not images: 26 MB for 50,000 images of 256 tokens, and decoding takes minutes where drawing
takes hours.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fvq.generate.decoding import Decoder
from fvq.generate.memory import planned_batch_size
from fvq.generate.sampling import SamplingSettings, check_labels, check_settings
from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.npz import ArrayStream, write_npz
from fvq.runtime.processes import gather, in_any_process, is_first, is_orphaned
from fvq.runtime.progress import Advance, track

if TYPE_CHECKING:
    from fvq.generate.llamagen import LlamaGen

# Images of a part: few, so that processes share evenly; planned batches are whole parts, or part them evenly.
_PART = 32
# Fewer images are drawn before the compiler is done.
_COMPILED_FROM = 2000
_DECODED_AT_ONCE = 256


def sample_many(
    model: "LlamaGen",
    labels: Tensor,
    settings: SamplingSettings,
    *,
    seed: int,
    part_folder: Path,
    batch_size: int | None = None,
) -> Tensor:
    """Tokens (N, h*w) int64, on the CPU, for labels (N,); a killed run goes on from its finished parts.

    Parts of a fixed number of images are written to ``part_folder`` as they come, and parts found there are not drawn
    again, whatever the batch size and the number of processes before and now: each image follows from the seed and its
    number. With P processes each calls this, draws every P-th part, and returns all tokens; the folder is one that all
    of them see. It belongs to this model, these labels, settings and seed: the caller names it after a digest of them,
    and removes it once the result is safely written. ``batch_size`` images are drawn at once, None plans as many as
    memory holds. At SIGTERM or SIGUSR1 the present batch is finished and kept.

    Raises:
        UserError: a label is out of range, a part in the folder is damaged or does not fit, guidance is impossible.
        Interrupted: a signal came, or ``torchrun`` was killed, and the parts are kept.
    """
    check_labels(model.config, labels)
    check_settings(model.config, settings, batch_size)
    parts = _Parts(part_folder, len(labels), model.config.tokens)
    mine = range(process_number(), len(parts.numbers), number_of_processes())
    missing = [index for index in mine if parts.read(index) is None]
    done, parent = parts.images_done(), os.getppid()
    with (
        signals_noted() as signal_name,
        track("sampling", len(labels), done, unit="images", hidden=not is_first()) as advance,
    ):
        pace = _Told(advance, done)
        batches: list[list[int]] = []
        if missing:
            at_once = batch_size or planned_batch_size(model, guided=settings.guides(model.config.tokens))
            parts_at_once = max(1, at_once // _PART)
            batches = [missing[first : first + parts_at_once] for first in range(0, len(missing), parts_at_once)]
            images = sum(len(parts.numbers[index]) for index in batches[0])
            compiled = model.output.weight.device.type == "cuda" and len(labels) >= _COMPILED_FROM
            decoder = Decoder(model, settings, min(at_once, images), compiled=compiled)
        turns = gather(len(batches))
        for turn in range(max(turns)):
            pace.processes = sum(turn < count for count in turns)
            if turn < len(batches):
                numbers = torch.cat([parts.numbers[index] for index in batches[turn]])
                tokens = decoder.sample(labels[numbers], seed, numbers, pace.tell)
                for index, drawn in zip(batches[turn], tokens.split(_PART), strict=True):
                    parts.write(index, drawn)
            # At this place all have written their parts.
            stopping = in_any_process(signal_name() is not None or is_orphaned(parent))
            done = parts.images_done()
            pace.correct(done)
            if stopping:
                raise Interrupted(
                    f"sampling: {signal_name() or 'a signal to another process'} received; {done:,} of "
                    f"{len(labels):,} images are drawn, the same command goes on from there"
                )
    return parts.all()


def write_samples(
    path: Path, tokens: Tensor, labels: Tensor, decode: Callable[[Tensor], Tensor], *, image_size: int
) -> None:
    """Write the archive that the ADM evaluator reads: ``arr_0`` uint8 (N, H, W, 3), and ``arr_1`` the labels (N,).

    ``decode`` gives images uint8 (n, 3, H, W) of tokens (n, h*w); a few hundred are held at a time.

    Raises:
        Interrupted: SIGTERM or SIGUSR1 came, and nothing was written.
    """
    count = len(tokens)
    with signals_noted() as signal_name, track("decoding", count, unit="images") as advance:

        def chunks() -> Iterator[npt.NDArray[np.uint8]]:
            for chunk in tokens.split(_DECODED_AT_ONCE):
                yield decode(chunk).permute(0, 2, 3, 1).numpy()
                advance(len(chunk))
                if signal_name():
                    raise Interrupted(f"decoding: {signal_name()} received; the same command goes on from the tokens")

        images = ArrayStream("arr_0", np.uint8, (count, image_size, image_size, 3), chunks())
        write_npz(path, [images, ArrayStream("arr_1", np.int64, (count,), [labels.numpy()])])


class _Told:
    """What the bar is told: images of all processes, within a batch as if each were as far as this one."""

    def __init__(self, advance: Advance, done: int) -> None:
        self.advance, self.done = advance, float(done)
        self.processes = 1
        """Those that draw at the moment."""

    def tell(self, images: float) -> None:
        images *= self.processes
        self.done += images
        self.advance(images)

    def correct(self, done: int) -> None:
        self.advance(done - self.done)
        self.done = done


class _Parts:
    """The files of a run: part i holds the tokens of images ``numbers[i]``."""

    def __init__(self, folder: Path, images: int, tokens: int) -> None:
        self.folder, self.tokens = folder, tokens
        self.numbers = torch.arange(images).split(_PART) if images else ()

    def path(self, index: int) -> Path:
        return self.folder / f"tokens-{index * _PART:08d}.npy"

    def write(self, index: int, tokens: Tensor) -> None:
        with write_atomically(self.path(index)) as temporary:
            np.save(temporary, tokens.numpy().astype(np.int32))

    def read(self, index: int) -> Tensor | None:
        """A part's tokens, int64; None where it is not there."""
        path, shape = self.path(index), (len(self.numbers[index]), self.tokens)
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError) as error:
            raise UserError(f"{path}: not readable ({error}); remove it and run again") from None
        if array.shape != shape or array.dtype != np.int32:
            raise UserError(f"{path}: holds {array.dtype} {array.shape}, not int32 {shape}; remove it and run again")
        return torch.from_numpy(array.astype(np.int64))

    def images_done(self) -> int:
        names = {path.name for path in self.folder.glob("tokens-*.npy")}
        return sum(len(numbers) for index, numbers in enumerate(self.numbers) if self.path(index).name in names)

    def all(self) -> Tensor:
        tokens = torch.empty(sum(map(len, self.numbers)), self.tokens, dtype=torch.int64)
        for index, numbers in enumerate(self.numbers):
            part = self.read(index)
            if part is None:
                raise UserError(f"{self.path(index)}: was drawn and is not there; do all processes see this folder?")
            tokens[numbers] = part
        return tokens
