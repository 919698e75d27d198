"""What GPUs can do at most, by their vendor."""

import re
from dataclasses import dataclass

from fvq.plan.work import Work

DEFAULT_UTILIZATION = 0.4
"""Share of a GPU's peak that planning assumes. It is an assumption, one for all rows: ``fvq plan --measure`` finds that
of a device."""


@dataclass(frozen=True)
class Device:
    """A device's memory in bytes and its peak rates in FLOP/s, 2 for a multiply-add."""

    title: str
    memory: float
    bfloat16: float
    tf32: float
    float32: float

    def hours(self, work: Work, utilization: float) -> float:
        """Hours of one device for ``work`` at a share of its peak rates."""
        seconds = 2 * (work.bfloat16 / self.bfloat16 + work.tf32 / self.tf32 + work.float32 / self.float32)
        return seconds / utilization / 3600


GPUS = {
    "a100": Device("A100", 80e9, 312e12, 156e12, 19.5e12),
    "h100": Device("H100", 80e9, 989e12, 494e12, 67e12),
    "h200": Device("H200", 141e9, 989e12, 494e12, 67e12),
}
"""NVIDIA's SXM modules. The rates are the data sheets' dense ones, without sparsity: bfloat16 and TF32 on tensor cores,
float32 beside them. A step in float32 uses both of the latter: as torch leaves it, cuDNN's convolutions may take TF32
and matrix products may not. In a step under bfloat16 what autocast leaves in float32, the projector above all, counts
at that rate."""

_SLOWER = {"pcie", "nvl", "mig"}  # cards for a slot, and parts of a GPU


def known_gpu(name: str) -> Device | None:
    """The GPU that a driver calls so ("NVIDIA A100-SXM4-80GB"), None where it is another, such as a PCIe card."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if words & _SLOWER:
        return None
    return next((gpu for key, gpu in GPUS.items() if key in words), None)
