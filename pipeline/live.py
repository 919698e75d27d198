"""Rows of a history as DVCLive logs, for ``dvc plots`` while a training runs."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvclive.live import Live

# DVC Studio would be told over the network; the others put the files elsewhere or add to those of an earlier run.
_ENVIRONMENT = {"DVC_STUDIO_OFFLINE": "true", "DVCLIVE_RESUME": "", "DVCLIVE_TEST": ""}


def live_log(folder: Path) -> Callable[[Mapping[str, float]], None]:
    """A function that appends a row, under its ``step``, to ``folder/plots/metrics/<name>.tsv`` for each other name.

    What the folder held is removed at the first row, so a resumed training gives all its rows again. The files follow
    from the rows alone, to the byte: they are outputs that DVC hashes.
    """
    opened: list[Live] = []

    def log(row: Mapping[str, float]) -> None:
        live = opened[0] if opened else _open(folder)
        opened[:] = [live]
        live.step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                live.log_metric(name, value)

    # Without `live.end()`, which would write the last row once more, as metrics.json among the plots.
    return log


def _open(folder: Path) -> "Live":
    from dvclive.live import Live  # takes a second

    class Files(Live):
        def _init_dvc(self) -> None:
            """Look for no repository: that would make one where there is none, and fail before the first commit."""

    if folder.exists():
        shutil.rmtree(folder)
    with _environment():
        return Files(dir=str(folder), save_dvc_exp=False, dvcyaml=None)


@contextmanager
def _environment() -> Iterator[None]:
    """These variables as above, and afterwards as they were."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
