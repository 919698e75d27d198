"""Random streams that follow from named parts, so that nothing depends on what was drawn before."""

import hashlib

import torch


def seed_from(*parts: object) -> int:
    """A 63-bit seed from a hash of the parts, the same on every machine: ``seed_from(0, "crops", 3)``."""
    text = "\x1f".join(repr(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator of the stream that ``parts`` name."""
    return torch.Generator(device).manual_seed(seed_from(*parts))


def seed_all(*parts: object) -> None:
    """Start torch's global streams (all devices) at the place that ``parts`` name."""
    torch.manual_seed(seed_from(*parts))
