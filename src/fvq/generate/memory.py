"""How many images can be drawn at once: reckoned before anything is allocated, not found by crashing."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fvq.generate.matrices import can_pack
from fvq.runtime.errors import UserError

if TYPE_CHECKING:
    from fvq.generate.llamagen import LlamaGen, LlamaGenConfig

# A larger batch gains nothing: the products are bound by arithmetic, and on a CPU the cache leaves the processor's own.
_MOST_ON_CPU = 64
_MOST_ON_GPU = 1024
# What is left to the allocator's gaps, the CUDA context, the tokenizer beside the generator.
_SPARED = 0.2


def bytes_per_image(config: "LlamaGenConfig", itemsize: int, *, guided: bool) -> int:
    """Memory that one more image takes in a batch: cached keys and values, activations, logits and their sums.

    Args:
        config: of the generator.
        itemsize: bytes of a weight, which are those of a cached value.
        guided: whether each image is computed twice, with its class and without.
    """
    sequences = 2 if guided else 1
    # And one block's once more in float32, where attention has no kernel for its heads.
    cache = 2 * config.width * config.tokens * (config.depth * itemsize + 4)
    activations = 8 * max(config.width, config.feedforward_width) * max(itemsize, 4)
    logits = config.vocabulary_size * (itemsize + 4)
    # Guided logits, their order, probabilities in float32 and sums in float64.
    drawing = config.vocabulary_size * (3 * 4 + 3 * 8)
    return sequences * (cache + activations + logits) + drawing + config.tokens * 16


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate.

    On a GPU as its driver says. Else what the system and the process's control groups leave, shared equally among the
    processes that ``torchrun`` started here.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + kept
    left = min([_left_to_the_system(), *_left_to_control_groups()])
    return left // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_to_the_system() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_to_control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each group from the process's own up to the root leaves, cached files counted as free."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        second = controllers == ""  # version of the groups' interface
        top = root if second else root / "memory"
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names)
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or no limit
                continue
            cached = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
            left.append(limit - used + cached)
    return left


def planned_batch_size(model: "LlamaGen", *, guided: bool, free: int | None = None) -> int:
    """The largest useful number of images at once that fits beside the model's weights: a multiple of 32, or 16, 8, …

    Args:
        model: on the device and in the precision that it will sample in.
        guided: as in ``bytes_per_image``.
        free: bytes to plan with; by default what is free now.

    Raises:
        UserError: not even one image fits.
    """
    weight = model.output.weight
    free = free_memory(weight.device) if free is None else free
    packed = sum(parameter.nbytes for parameter in model.parameters()) if can_pack(weight) else 0
    each = bytes_per_image(model.config, weight.itemsize, guided=guided)
    fitting = int((free * (1 - _SPARED) - packed) // each)
    if fitting < 1:
        raise UserError(
            f"sampling: {free / 1e9:.1f} GB are free on {weight.device}, and this generator needs "
            f"{(packed + each) / (1 - _SPARED) / 1e9:.1f} GB for one image"
        )
    fitting = min(fitting, _MOST_ON_CPU if weight.device.type == "cpu" else _MOST_ON_GPU)
    return fitting // 32 * 32 if fitting >= 32 else 2 ** (fitting.bit_length() - 1)
