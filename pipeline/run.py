"""What every stage does around its work: parameters in, outputs and their provenance out, errors in one line."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fvq.config import Parameters, load_parameters
from fvq.runtime.checkpoint import recipe_digest
from fvq.runtime.devices import best_device, check_gpus, use_cores
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import sha256_file
from fvq.runtime.processes import is_first, process_group
from fvq.runtime.provenance import Stopwatch, code_digest, library_versions, write_provenance
from fvq.runtime.status import status_record
from pipeline import tickets
from pipeline.launch import launch, launch_on_nodes, processes_to_start
from pipeline.slurm import allocation, current_job, log_of

Group = Literal["rows", "generators", "evaluation_sets", "repetitions"]

# What the names of a stage are names of, where it is not the rows.
_GROUPS: dict[str, Group] = {
    "prepare_evaluation_set": "evaluation_sets",
    "train_generator": "generators",
    "sample": "generators",
    "evaluate_generator": "generators",
    "sweep_guidance": "generators",
}
# Stages of repeated rows, with the block of parameters that they share with the rows' own.
_REPEATING = {"repeat_tokenizer": "train_tokenizer", "evaluate_repeat": "evaluate_tokenizer"}


class Run:
    """One run of a stage: ``python -m pipeline.<stage> [row]`` in the repository's root."""

    def __init__(self, stage: str, row: str | None, parameters: Parameters) -> None:
        self.stage, self.row, self.parameters = stage, row, parameters
        self.seed = parameters.repetitions[row].seed if stage in _REPEATING and row else parameters.seed
        self.device = best_device()
        self.inputs: dict[Path, str] = {}
        self.outputs: list[Path] = []
        self.output_folders: list[Path] = []
        self.checkpoint_every = _checkpoint_every()
        self._stopwatch = Stopwatch()
        use_cores(parameters.threads)

    @property
    def name(self) -> str:
        """The name that the command line gives."""
        assert self.row is not None
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

    def input_folder(self, stage: str, name: str, row: str | None = None) -> Path:
        """The path of a folder among another stage's outputs, each of its files recorded with its hash."""
        path = self.folder(stage, row) / name
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        self.inputs |= {file: sha256_file(file) for file in files}  # hidden are the marks of tools such as Snakemake
        return path

    def output(self, file: str) -> Path:
        """The path of one of this stage's outputs, recorded."""
        path = self.folder(self.stage, self.row) / file
        self.outputs.append(path)
        return path

    def output_folder(self, name: str) -> Path:
        """The path of a folder among this stage's outputs, recorded with what it holds in the end."""
        path = self.folder(self.stage, self.row) / name
        self.output_folders.append(path)
        return path

    @cached_property
    def resume_folder(self) -> Path:
        """Where an interrupted run's state lies: outside the outputs, keyed by all that the result follows from.

        Ask for all inputs first.
        """
        recipe = {
            "parameters": self.recipe(),
            "inputs": {str(path): digest for path, digest in self.inputs.items()},
            "code": code_digest(),
            "versions": library_versions(),
        }
        return Path("runs", self.parameters.study, self.stage, f"{self.row or 'all'}-{recipe_digest(recipe)}")

    @property
    def feature_folder(self) -> Path:
        """Where evaluations keep what the extractor says of images, by their content: the rows share a reference."""
        return Path("runs", self.parameters.study, "features")

    def recipe(self) -> dict[str, Any]:
        """The parameters that this stage and row's results depend on."""
        everything = self.parameters.model_dump(mode="json")
        chosen = {"study": self.parameters.study, "seed": self.seed}
        if self.stage in everything:
            chosen[self.stage] = everything[self.stage]
        group, names = _GROUPS.get(self.stage, "rows"), [self.row]
        if self.stage == "small_experiments":
            chosen["train_tokenizer"] = everything["train_tokenizer"]
            names = [self.parameters.small_experiments.sizes_row]
        if self.stage == "map_codes":
            names = list(self.parameters.mapped_rows)
        if self.stage in _REPEATING:
            block = _REPEATING[self.stage]
            chosen[block] = everything[block]
            names = [self.parameters.repetitions[self.name].row]
        if self.stage == "evaluate_elsewhere":
            chosen |= {name: everything[name] for name in ("evaluation_sets", "evaluate_tokenizer")}
        if self.stage in ("sample", "sweep_guidance"):
            ignored = ["batch_size", *(["count", "cfg_scale"] if self.stage == "sweep_guidance" else [])]
            sample = self.parameters.sample.of(self.name).model_dump(mode="json", exclude={"cfg_scale_of"})
            chosen["sample"] = {key: value for key, value in sample.items() if key not in ignored}
        if self.stage == "sweep_guidance":
            chosen[f"swept_generators.{self.name}"] = everything["swept_generators"][self.name]
        return chosen | {f"{group}.{name}": everything[group][name] for name in names if name is not None}

    def drop_state(self) -> None:
        """Remove the resume state: the outputs are whole. In a job of Snakemake, leave a note for it to do that."""
        if "resume_folder" not in self.__dict__:
            return
        if note := os.environ.get(tickets.STATE_VARIABLE):
            Path(note).write_text(str(self.resume_folder), encoding="utf-8")
        else:
            shutil.rmtree(self.resume_folder, ignore_errors=True)

    def finish(self) -> None:
        """Write the provenance record beside the outputs."""
        inside = [path for folder in self.output_folders for path in sorted(folder.rglob("*")) if path.is_file()]
        write_provenance(
            self.folder(self.stage, self.row) / "provenance.json",
            stage=self.stage,
            row=self.row,
            parameters=self.recipe(),
            inputs=self.inputs,
            outputs=[*self.outputs, *inside],
            seed=self.seed,
            stopwatch=self._stopwatch,
            generated=("dvc.lock", "reports"),
        )


def run_stage(
    stage: str,
    work: Callable[[Run], None],
    *,
    each: Group | None = None,
    parallel: bool | Callable[[Parameters, str], bool] = False,
) -> None:
    """Run ``work``, for the one of ``each`` group that the command line names; exit with one line on bad input.

    With ``parallel`` (of the parameters and the name, where it is a function) it runs in one process per GPU, or in as
    many as ``torchrun`` or ``$FVQ_PROCESSES`` say; in a Slurm job of several nodes in that many on each.
    """
    arguments = sys.argv[1:]
    with one_line_errors(), _outputs_kept():
        if len(arguments) > 1:
            raise UserError(f"pipeline.{stage}: takes one row at most, not {' '.join(arguments)}")
        parameters = load_parameters()
        row = arguments[0] if arguments else None
        known = getattr(parameters, each) if each else {}
        if each and row not in known:
            raise UserError(f"pipeline.{stage}: {each} has no {row or 'name'}; there are {', '.join(known) or 'none'}")
        if row and not each:
            raise UserError(f"pipeline.{stage}: takes no name, not {row}")
        if callable(parallel):
            assert row is not None
            parallel = parallel(parameters, row)
        if "RANK" not in os.environ:
            with _status(stage, row, parameters):
                check_gpus()
        if parallel and _launch(f"pipeline.{stage}", arguments):
            return
        with process_group(), one_line_errors(), _status(stage, row, parameters):
            run = Run(stage, row, parameters)
            work(run)
            if first := is_first():
                run.finish()
        # Not before the processes have taken leave of each other: where that fails, the run goes on from its state.
        if first:
            run.drop_state()


def _launch(module: str, arguments: list[str]) -> bool:
    """Run the stage in several processes, on all nodes of the job; False where one process is to do it, this one."""
    count = processes_to_start()
    nodes = None if "RANK" in os.environ else allocation()
    if nodes:
        launch_on_nodes(module, arguments, count, nodes)
    elif count > 1:
        launch(module, arguments, count)
    return bool(nodes) or count > 1


def _status(stage: str, row: str | None, parameters: Parameters) -> AbstractContextManager[None]:
    """The record that ``fvq status`` reads; the first process keeps it."""
    if not is_first():
        return nullcontext()
    name = f"{stage}@{row}" if row else stage
    path = Path("runs", parameters.study, "status", f"{name}.json")
    job = current_job()
    return status_record(path, stage=stage, row=row, job=job, log=log_of(job) if job else None)


@contextmanager
def _outputs_kept() -> Iterator[None]:
    """Where the work fails under ``dvc repro``, which removes a stage's outputs first, they come back."""
    try:
        yield
    except BaseException:
        stage = os.environ.get("DVC_STAGE")
        if stage and "RANK" not in os.environ:  # launched processes leave it to the one that launched them
            from pipeline.restore import restore_outputs  # takes a second, and only failures need it

            restore_outputs(stage)
        raise


def _checkpoint_every() -> int | None:
    """``$FVQ_CHECKPOINT_EVERY`` in steps, None for the default."""
    wanted = os.environ.get("FVQ_CHECKPOINT_EVERY")
    if wanted and (not wanted.isdecimal() or int(wanted) < 1):
        raise UserError(f"FVQ_CHECKPOINT_EVERY: must be a number of steps from 1, not {wanted}")
    return int(wanted) if wanted else None
