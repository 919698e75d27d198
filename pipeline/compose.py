"""``python -m pipeline.compose [OVERRIDE …]``: write params.yaml from conf/, as ``dvc exp run -S OVERRIDE …`` does.

``--out FILE`` writes another file, for `fvq plan FILE`. ``--check`` writes nothing: it fails where params.yaml says
something else than conf/ composes, because the next ``dvc exp run`` would silently undo it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fvq.config import load_parameters
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import write_atomically

# The groups whose choice conf/ itself writes down, with the key that it stands in; later ones follow earlier ones.
_GROUPS = {"scale": "scale", "dataset": "dataset", "study": "selection"}
_MOST_OVERRIDES = 12


def compose(target: Path, overrides: list[str]) -> None:
    """Write the composed parameters to ``target``.

    Raises:
        UserError: an override does not fit, a file is no YAML, or two files of conf/rows define one row.
    """
    try:
        _check_rows_differ(Path("conf/rows"))
        with Repo("."):
            compose_and_dump(target, str(Path("conf").resolve()), None, "config", "conf", overrides)
    except (DvcException, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"conf: {' '.join(str(error.__cause__ or error).split())}") from None


def _check_rows_differ(folder: Path) -> None:
    """Of two definitions of a row the later one would win in silence."""
    known: dict[str, Path] = {}
    for path in sorted(folder.glob("*.yaml")):
        for name in yaml.safe_load(path.read_text(encoding="utf-8")) or {}:
            if name in known:
                raise UserError(f"{path}: the row {name} is in {known[name]} already; give it another name")
            known[name] = path


def overrides_for(parameters: dict[str, Any]) -> list[str] | None:
    """Overrides with which conf/ composes exactly these parameters; None where no few of them do.

    Groups come first, then what differs, the shallowest key first: rows follow most others.
    """
    overrides: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder, "params.yaml")
        for _ in range(_MOST_OVERRIDES):
            try:
                compose(composed, overrides)
            except UserError:
                return None
            content = yaml.safe_load(composed.read_text(encoding="utf-8"))
            different = [key for key in differing_keys(parameters, content) if not key.startswith(("shapes.", "study"))]
            if not differing_keys(parameters, content):
                return overrides
            group = next((group for group, key in _GROUPS.items() if parameters.get(key) != content.get(key)), None)
            if group:
                overrides.append(f"{group}={parameters[_GROUPS[group]]}")
                continue
            if not different:
                return None
            key = min(different, key=lambda name: name.count("."))
            value, known = _entry(parameters, key), _entry(content, key) is not None
            if value is None or isinstance(value[0], dict):  # one that only conf/ has, or a row that it does not know
                return None
            overrides.append(f"{'' if known else '++'}{key}={json.dumps(value[0], separators=(',', ':'))}")
    return None


def _entry(content: Any, key: str) -> tuple[Any] | None:
    """What stands at a dotted key; None where there is no such key."""
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
    return (content,)


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
    target = Path("params.yaml")
    if "--out" in overrides:
        position = overrides.index("--out")
        if position + 1 == len(overrides):
            raise UserError("--out: name a file")
        target = Path(overrides[position + 1])
        del overrides[position : position + 2]
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder, "params.yaml")
        compose(composed, overrides)
        load_parameters(composed)
        if not check:
            with write_atomically(target) as temporary:
                temporary.write_bytes(composed.read_bytes())
            print(f"{target}: composed from conf/" + (f" with {' '.join(overrides)}" if overrides else ""))
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
