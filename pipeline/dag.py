"""The stages of dvc.yaml for Snakemake: DVC decides what is stale, Snakemake where and when a stage runs.

Each stage has a *ticket*, a small file in DVC's own ignored folder. It holds the stage's recipe, a digest of all that
its outputs follow from, and is an input of its Snakemake rule. A fresh stage's ticket is dated 1970, so it never asks
for a run; a stale one's is dated now, so it does. A job that succeeds leaves a *receipt*: the ticket as it was when the
job started. What has a receipt for its present recipe is committed, as by ``dvc commit``. A source edited while the job
ran changes the recipe, so that job is not committed and its stage stays stale.

``python -m pipeline.dag`` commits what a killed ``snakemake`` has finished and not committed.
"""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import networkx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import write_atomically

TICKETS = Path(".dvc/tmp/tickets")
_NEVER = 1  # seconds since 1970: older than any output


class Commit(NamedTuple):
    """What ``commit`` did, as stage names."""

    committed: list[str]
    refused: list[str]  # finished, but a source, a parameter or the command changed while the job ran
    stale: list[str]  # what is left to run, the refused among them


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml as a Snakemake rule sees it. Paths are relative to the repository root."""

    name: str
    command: str
    threads: int
    resources: dict[str, Any]
    outputs: list[str]
    folders: frozenset[str]  # the outputs that are folders
    upstream: list[str]  # the outputs of other stages that this one reads

    @property
    def ticket(self) -> Path:
        return TICKETS / self.name

    @property
    def receipt(self) -> Path:
        return TICKETS / f"{self.name}.receipt"


def load_stages() -> list[Stage]:
    """The stages of dvc.yaml, upstream first. Hashes nothing and takes no lock.

    Raises:
        UserError: no DVC metadata here, or dvc.yaml is not valid.
    """
    with _open_repository() as repo:
        return [_describe(stage, repo) for stage in _in_order(repo)]


def issue_tickets(*, renew: bool = False) -> set[str]:
    """Write the ticket of each stale stage, date back those of the fresh ones. Returns the names of the fresh stages.

    A stale stage with a receipt for its recipe keeps its ticket: its outputs are those of a finished job. Others get a
    new one with ``renew``, for when no job is at work: Snakemake takes the outputs that it puts back after a failure
    for those of the ticket that the failed job had.

    Raises:
        UserError: as ``load_stages``; a dependency that no stage makes is missing; another DVC process works here.
    """
    recipes, fresh = _survey()
    for name, recipe in recipes.items():
        ticket = TICKETS / name
        known = _recipe(ticket) == recipe and not (renew and name not in fresh and not _has_receipt(name))
        if not known or (name not in fresh and ticket.stat().st_mtime <= _NEVER):
            # Snakemake compares small inputs by content: the second word makes each issue of a ticket new to it.
            with write_atomically(ticket) as temporary:
                temporary.write_text(f"{recipe} {secrets.token_hex(4)}\n", encoding="utf-8")
        elif name not in fresh and not _has_receipt(name):
            # Outputs may be younger for other reasons, such as `dvc checkout`. The content stays: a job may be at work.
            ticket.touch()
        if name in fresh:
            os.utime(ticket, (_NEVER, _NEVER))
    return fresh


def commit(*, renew: bool = False) -> Commit:
    """Record finished jobs in dvc.lock and DVC's cache, then issue the tickets anew (``renew`` as there).

    Raises:
        UserError: as ``issue_tickets``.
    """
    recipes, fresh = _survey()
    finished = [name for name in recipes if name not in fresh and _has_receipt(name)]
    committed = [name for name in finished if _recipe(TICKETS / name) == recipes[name]]
    if committed:
        with _open_repository() as repo, repo.lock, repo.scm_context:
            stages = [stage for stage in repo.index.stages if stage.addressing in committed]
            for stage in stages:
                stage.save()
                stage.commit()
            # `dvc commit` with many names reads the graph and writes the lock file anew for each.
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    fresh = issue_tickets(renew=renew)
    return Commit(
        committed=committed,
        refused=[name for name in finished if name not in committed],
        stale=[name for name in recipes if name not in fresh],
    )


def report(done: Commit) -> None:
    """Print what ``commit`` did, and what is left."""
    for text, names in (
        ("committed to dvc.lock", done.committed),
        ("not committed, since what it reads changed meanwhile", done.refused),
        ("still to run", done.stale),
    ):
        if names:
            print(f"{text}: {', '.join(names)}", file=sys.stderr)
    if not any(done):
        print("every stage is up to date", file=sys.stderr)


def check_parameters() -> None:
    """Read params.yaml. Raises UserError, which names the key, where it is not valid."""
    from fvq.config import load_parameters

    load_parameters()


@contextmanager
def _open_repository() -> Iterator[Any]:
    """DVC's repository object, its errors as one line."""
    if not Path(".dvc").is_dir():
        raise UserError(".dvc: no such folder; run this from the root of a clone, or make one with: dvc init")
    try:
        with Repo(".") as repo:
            yield repo
    except LockError as error:
        raise UserError("another DVC process works in this folder; wait for it to end and try again") from error
    except DvcException as error:
        causes = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise UserError(" ".join(": ".join(causes).split())) from error


def _in_order(repo: Any) -> list[Any]:
    """DVC's stages that run a command, upstream first."""
    # An edge of DVC's graph points from a stage to what it reads.
    order = networkx.lexicographical_topological_sort(
        repo.index.graph.reverse(), key=lambda stage: str(stage.addressing)
    )
    return [stage for stage in order if stage.cmd]


def _describe(stage: Any, repo: Any) -> Stage:
    meta = stage.meta or {}
    return Stage(
        name=stage.addressing,
        command=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
        threads=int(meta.get("threads", 1)),
        resources=dict(meta.get("resources", {})),
        outputs=[_path(out, repo) for out in stage.outs],
        # A folder that was never made is known by the slash after its name only.
        folders=frozenset(_path(out, repo) for out in stage.outs if out.def_path.endswith("/")),
        upstream=sorted({_path(out, repo) for out in _read_outputs(stage, repo)}),
    )


def _path(out: Any, repo: Any) -> str:
    return Path(out.fs_path).relative_to(repo.root_dir).as_posix()


def _read_outputs(stage: Any, repo: Any) -> list[Any]:
    """The outputs of other stages that a stage reads: a dependency itself, a file in it, or the folder around it."""
    return [out for dependency in stage.deps for out in _made_in(dependency, stage, repo)]


def _made_in(dependency: Any, stage: Any, repo: Any) -> list[Any]:
    path = Path(dependency.fs_path)
    return [
        out
        for other in repo.index.graph.successors(stage)
        if other.cmd
        for out in other.outs
        if path.is_relative_to(out.fs_path) or Path(out.fs_path).is_relative_to(path)
    ]


def _survey() -> tuple[dict[str, str], set[str]]:
    """The recipe of each stage by name, upstream first, and the names of the fresh stages."""
    recipes: dict[str, str] = {}
    fresh: set[str] = set()
    with _open_repository() as repo, repo.lock:
        for stage in _in_order(repo):
            sources = [_describe_dependency(dependency, stage, repo, recipes, fresh) for dependency in stage.deps]
            # What dvc.lock records of the outputs is part of it: after a run by DVC, an older job's receipt is void.
            records = [[out.def_path, out.hash_info.value] for out in stage.outs]
            text = json.dumps([stage.cmd, sources, records], sort_keys=True, default=str)
            recipes[stage.addressing] = hashlib.sha256(text.encode()).hexdigest()
            above = {out.stage.addressing for out in _read_outputs(stage, repo)}
            if above <= fresh and not stage.changed():
                fresh.add(stage.addressing)
    return recipes, fresh


def _describe_dependency(dependency: Any, stage: Any, repo: Any, recipes: dict[str, str], fresh: set[str]) -> Any:
    """What a recipe says of a dependency: its hash; for one that is yet to be made, the recipes of its makers."""
    outputs = _made_in(dependency, stage, repo)
    stale = sorted({out.stage.addressing for out in outputs} - fresh)
    if stale:
        others = sorted((out.def_path, out.hash_info.value) for out in outputs if out.stage.addressing in fresh)
        return [str(dependency), [recipes[name] for name in stale], others]
    if not dependency.exists:
        raise UserError(f"{dependency}: missing, and stage {stage.addressing} reads it")
    return [str(dependency), dependency.get_hash().value]


def _recipe(ticket: Path) -> str:
    """The recipe that a ticket carries, empty where there is none."""
    return ticket.read_text(encoding="utf-8").split(" ")[0] if ticket.exists() else ""


def _has_receipt(name: str) -> bool:
    """Whether a job ran to its end on the present ticket."""
    ticket, receipt = TICKETS / name, TICKETS / f"{name}.receipt"
    return ticket.exists() and receipt.exists() and receipt.read_text() == ticket.read_text()


if __name__ == "__main__":
    with one_line_errors():
        report(commit())
