"""Long work on many images in segments: a stopped run finds the finished ones again, and several processes share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.files import write_atomically
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.processes import gather, is_first, wait_for_all
from fvq.runtime.progress import Advance, track

# The bounds follow from the number of images alone, and with them the order of every sum.
_SHORTEST = 2000
_MOST = 32

Work = Callable[[int, int, Advance], dict[str, Tensor]]


def segment_bounds(count: int) -> list[tuple[int, int]]:
    """First image of each segment of ``count`` images, and the one after its last: 2,000 in each, in at most 32."""
    length = max(_SHORTEST, -(-count // _MOST))
    return [(start, min(start + length, count)) for start in range(0, count, length)]


def work_in_segments(
    images: int, work: Work, *, description: str, folder: Path | None = None
) -> Iterator[dict[str, Tensor]]:
    """What ``work(start, stop, advance)`` gives of each segment of so many ``images``, in their order.

    ``work`` calls ``advance`` with the number of images done, now and then. Without a ``folder`` a segment is worked on
    when it is asked for. With one, which belongs to this work, the call itself does them all; finished segments are
    kept there and found by the next run, and the caller removes it once their sum is safe. Several processes need a
    folder that all of them see: each works on every P-th segment and waits for the others, and then each can read all
    segments, one at a time.

    Schedulers signal all processes. One that receives a signal stops inside its segment; one that receives none first
    does all of its own; then all are interrupted together.

    Raises:
        Interrupted: SIGTERM or SIGUSR1 came, with a folder, to one of the processes; finished segments are kept.
        ValueError: several processes and no folder.
    """
    bounds = segment_bounds(images)
    if folder is None:
        if number_of_processes() > 1:
            raise ValueError("work in segments by several processes needs a folder that all of them see")
        return _worked(images, bounds, work, description)
    paths = [folder / f"images-{start:08d}-{stop:08d}.safetensors" for start, stop in bounds]
    _work_into(paths, images, bounds, work, description)
    return _stored(paths, bounds, work)


def _worked(
    images: int, bounds: Sequence[tuple[int, int]], work: Work, description: str
) -> Iterator[dict[str, Tensor]]:
    with track(description, images, unit="images") as told:
        for start, stop in bounds:
            yield work(start, stop, told)


class _Stopped(Exception):
    """This process has received a signal."""


def _work_into(
    paths: Sequence[Path], images: int, bounds: Sequence[tuple[int, int]], work: Work, description: str
) -> None:
    """Work on the segments that are missing, and wait until all processes have done theirs."""
    processes = number_of_processes()
    missing = [number for number, path in enumerate(paths) if not _is_whole(path)]
    done = images - sum(bounds[number][1] - bounds[number][0] for number in missing)
    with signals_noted() as signal_name, track(description, images, done, unit="images", hidden=not is_first()) as told:

        def advance(count: float, note: str = "") -> None:
            nonlocal done
            count = min(count * processes, images - done)  # the others are about as far
            done += int(count)
            told(count, note)
            if signal_name():
                raise _Stopped

        with suppress(_Stopped):
            for number in range(process_number(), len(bounds), processes):
                if number in missing:
                    _write(paths[number], work(*bounds[number], advance))
        wait_for_all()  # before the question: a signal may come while waiting
        received = next(filter(None, gather(signal_name())), None)
    if received is not None:
        kept = sum(path.exists() for path in paths)
        raise Interrupted(
            f"{description}: {received} received; {kept} of {len(paths)} segments are kept, the same command goes on "
            "from there"
        )


def _stored(paths: Sequence[Path], bounds: Sequence[tuple[int, int]], work: Work) -> Iterator[dict[str, Tensor]]:
    for (start, stop), path in zip(bounds, paths, strict=True):
        tensors = _read(path)
        yield work(start, stop, lambda count, note="": None) if tensors is None else tensors


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with write_atomically(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def _is_whole(path: Path) -> bool:
    """Whether the file has a header and the length that this tells; its tensors are not read."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> dict[str, Tensor] | None:
    """None where there is no whole file: the segment is done anew."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None
