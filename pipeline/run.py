"""What every stage does around its work: parameters in, outputs and their provenance out, errors in one line."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import fvq
from fvq.config import Parameters, load_parameters
from fvq.runtime.checkpoint import recipe_digest
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import sha256_file
from fvq.runtime.provenance import Stopwatch, library_versions, write_provenance


class Run:
    """One run of a stage: ``python -m pipeline.<stage> [row]`` in the repository's root."""

    def __init__(self, stage: str, row: str | None, parameters: Parameters) -> None:
        self.stage, self.row, self.parameters = stage, row, parameters
        self.seed = parameters.seed
        self.device = best_device()
        self.inputs: dict[Path, str] = {}
        self.outputs: list[Path] = []
        self.checkpoint_every = int(os.environ.get("FVQ_CHECKPOINT_EVERY", "200"))
        self._stopwatch = Stopwatch()
        use_cores(parameters.threads)

    @property
    def name(self) -> str:
        """The row's name; UserError where the command was called without one."""
        if self.row is None:
            raise UserError(f"pipeline.{self.stage}: which row? Usage: python -m pipeline.{self.stage} ROW")
        return self.row

    def folder(self, stage: str, row: str | None) -> Path:
        """Where a stage's outputs lie."""
        if stage == "render":
            return Path("reports")
        return Path("results", self.parameters.study, stage, *([row] if row else []))

    def input(self, stage: str, file: str, row: str | None = None) -> Path:
        """The path of another stage's output, recorded with its hash."""
        path = self.folder(stage, row) / file
        self.inputs[path] = sha256_file(path)
        return path

    def output(self, file: str) -> Path:
        """The path of one of this stage's outputs, recorded."""
        path = self.folder(self.stage, self.row) / file
        self.outputs.append(path)
        return path

    @cached_property
    def resume_folder(self) -> Path:
        """Where an interrupted run's state lies: outside the outputs, keyed by all that the result follows from.

        Ask for all inputs first.
        """
        recipe = {
            "parameters": self.recipe(),
            "inputs": {str(path): digest for path, digest in self.inputs.items()},
            "code": _code_digest(),
            "versions": library_versions(),
        }
        return Path("runs", self.parameters.study, self.stage, f"{self.row or 'all'}-{recipe_digest(recipe)}")

    def recipe(self) -> dict[str, Any]:
        """The parameters that this stage and row depend on."""
        everything = self.parameters.model_dump(mode="json")
        chosen = {"study": self.parameters.study, "seed": self.seed}
        if self.stage in everything:
            chosen[self.stage] = everything[self.stage]
        rows = [self.row]
        if self.stage == "small_experiments":
            chosen["train_tokenizer"] = everything["train_tokenizer"]
            rows = [self.parameters.small_experiments.sizes_row]
        if self.stage == "map_codes":
            rows = list(everything["rows"])
        for group in ("rows", "generators"):
            chosen |= {f"{group}.{row}": everything[group][row] for row in rows if row in everything[group]}
        return chosen

    def finish(self) -> None:
        """Write the provenance record beside the outputs and drop the resume state."""
        write_provenance(
            self.folder(self.stage, self.row) / "provenance.json",
            stage=self.stage,
            row=self.row,
            parameters=self.recipe(),
            inputs=self.inputs,
            outputs=self.outputs,
            seed=self.seed,
            stopwatch=self._stopwatch,
            generated=("dvc.lock", "reports"),
        )
        if "resume_folder" in self.__dict__:
            shutil.rmtree(self.resume_folder, ignore_errors=True)


def run_stage(stage: str, work: Callable[[Run], None]) -> None:
    """Run ``work`` for the row that the command line names; exit with one line on bad input."""
    arguments = sys.argv[1:]
    with one_line_errors(), _outputs_kept():
        if len(arguments) > 1:
            raise UserError(f"pipeline.{stage}: takes one row at most, not {' '.join(arguments)}")
        parameters = load_parameters()
        row = arguments[0] if arguments else None
        if row is not None and row not in parameters.rows and row not in parameters.generators:
            raise UserError(f"pipeline.{stage}: no row {row} in params.yaml; there are {', '.join(parameters.rows)}")
        run = Run(stage, row, parameters)
        work(run)
        run.finish()


@contextmanager
def _outputs_kept() -> Iterator[None]:
    """Where the work fails under ``dvc repro``, which removes a stage's outputs first, they come back."""
    try:
        yield
    except BaseException:
        stage = os.environ.get("DVC_STAGE")
        if stage:
            from pipeline.restore import restore_outputs  # takes a second, and only failures need it

            restore_outputs(stage)
        raise


def _code_digest() -> str:
    """Of the library's source: a resumed run must not mix two versions of it."""
    root = Path(fvq.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
