"""Weights as safetensors with their full configuration in the file's metadata."""

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically

Kind = Literal["tokenizer", "generator", "extractor"]


def save_weights(path: Path | str, tensors: Mapping[str, Tensor], *, kind: Kind, config: Mapping[str, Any]) -> None:
    """Write ``tensors`` under their module names with ``{"kind", "config"}`` as metadata, whole or not at all."""
    metadata = {"fvq": json.dumps({"kind": kind, "config": config}, sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata)
        except SafetensorError as error:  # safetensors has its own word for a full disk and the like
            found = re.search(r"os error (\d+)", str(error))
            code = int(found[1]) if found else errno.EIO
            raise OSError(code, os.strerror(code) if found else str(error)) from error


def load_weights(path: Path | str, *, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a file that ``save_weights`` wrote.

    Raises:
        UserError: the file is missing, damaged, not of this project, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("fvq", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(metadata, dict) or "kind" not in metadata or "config" not in metadata:
        raise UserError(f"{path}: holds no fvq configuration")
    if metadata["kind"] != kind:
        raise UserError(f"{path}: holds {_with_article(metadata['kind'])}, not {_with_article(kind)}")
    return tensors, metadata["config"]


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind == "extractor" else f"a {kind}"
