"""``python -m pipeline.compose [OVERRIDE …]``: write params.yaml from conf/, as ``dvc exp run -S OVERRIDE …`` does.

``--check`` writes nothing: it fails where params.yaml says something else than conf/ composes, because the next
``dvc exp run`` would silently undo it.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException

from fvq.config import load_parameters
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import write_atomically


def compose(target: Path, overrides: list[str]) -> None:
    """Write the composed parameters to ``target``; UserError where an override does not fit."""
    try:
        with Repo("."):
            compose_and_dump(target, str(Path("conf").resolve()), None, "config", "conf", overrides)
    except (DvcException, HydraException) as error:
        raise UserError(f"conf: {' '.join(str(error.__cause__ or error).split())}") from None


def differing_keys(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in dict.fromkeys([*one, *other])
            for found in differing_keys(one.get(key), other.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if one == other else [prefix]


def main(arguments: list[str]) -> None:
    """Compose, or check."""
    check = "--check" in arguments
    overrides = [argument for argument in arguments if argument != "--check"]
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder, "params.yaml")
        compose(composed, overrides)
        load_parameters(composed)
        if not check:
            with write_atomically("params.yaml") as temporary:
                temporary.write_bytes(composed.read_bytes())
            print("params.yaml: composed from conf/" + (f" with {' '.join(overrides)}" if overrides else ""))
            return
        keys = differing_keys(yaml.safe_load(Path("params.yaml").read_text()), yaml.safe_load(composed.read_text()))
        if keys:
            raise UserError(
                f"params.yaml: {', '.join(keys[:5])}: not what conf/ composes; the next `dvc exp run` would undo it. "
                "Edit conf/, then run: python -m pipeline.compose"
            )


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
