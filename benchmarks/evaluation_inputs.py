"""What several of the evaluator's cases use: images, a folder, and the floor that the machine sets."""

import functools
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import torch
from cases import Work
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 256
FLOOR = "floor: one square product of as many multiply-adds"


@functools.cache
def process_folder() -> Path:
    """A folder of the process's lifetime."""
    folder = Path(tempfile.mkdtemp(prefix="fvq-benchmark-"))
    # Runs at the end of the processes that measure memory, too.
    Finalize(None, shutil.rmtree, args=(folder,), exitpriority=0)
    return folder


@functools.lru_cache(maxsize=2)
def random_images(count: int) -> Tensor:
    """Images uint8 (N, 3, 256, 256): coarse noise made smooth, a little fine noise upon it, as PNG compresses them."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(count, 3, SIDE // 16, SIDE // 16, generator=generator)
    smooth = interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    return smooth.add_(torch.randn(smooth.shape, generator=generator), alpha=4).round_().clamp_(0, 255).byte()


def one_product(multiply_adds: float) -> Work:
    """One product of square float32 matrices: the rate that this machine reaches where nothing else is to do."""
    side = round(multiply_adds ** (1 / 3))
    a, b, out = (torch.randn(side, side) for _ in range(3))

    def work() -> None:
        torch.mm(a, b, out=out)

    return work
