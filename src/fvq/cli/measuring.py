"""What ``fvq evaluate`` and ``fvq statistics`` share: the protocol with the wanted crop, and the cache."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fvq.evaluate.preparation import AS_STORED, Preparation
from fvq.evaluate.protocols import PROTOCOLS, Protocol, ProtocolName
from fvq.runtime.errors import UserError

Crop = Literal["adm", "plain"]


def prepared_protocol(name: ProtocolName, size: int | None, crop: Crop | None) -> Protocol:
    """The protocol of that name; with a ``size``, on images cut to it, by ADM's crop where none is named.

    Raises:
        UserError: a ``size`` with a protocol that fixes how images are prepared.
    """
    protocol = PROTOCOLS[name]
    if size is None:
        return protocol
    if protocol.preparation != AS_STORED:
        raise UserError(f"--size: is fixed by the protocol {name}: {protocol.preparation.describe()}")
    return replace(protocol, preparation=Preparation(size, crop or "adm"))


def cache_folder(folder: Path | None) -> Path:
    """Where features are kept: in ``folder``, else ``$FVQ_CACHE``, else ``fvq`` in the user's folder of caches.

    Raises:
        UserError: it cannot be written.
    """
    own = os.environ.get("FVQ_CACHE")
    if folder is None:
        folder = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvq"
    features = folder / "features"
    nearest = next(path for path in (features.absolute(), *features.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{folder}: cannot be written; --cache names another folder, --no-cache does without")
    return features


def check_processes(cache: Path | None) -> None:
    """UserError where several processes have no cache, by which each tells the others what it did."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if cache is None and processes != "1":
        raise UserError(
            f"--no-cache: {processes} processes share the work through the cache; --cache names a folder that all see"
        )
