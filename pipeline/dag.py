"""The stages of dvc.yaml for Snakemake: DVC decides what is stale, Snakemake where and when a stage runs.

Each stage has a ticket with its recipe, and a receipt from the job that ran it to its end (pipeline/tickets.py). What
has a receipt for its present recipe is committed, as by ``dvc commit``. A source edited while the job ran changes the
recipe, so that job is not committed and its stage stays stale.

All this is the work of one process, the head. A job on a node needs neither DVC nor its locks: the head leaves it a
list of the stages.

``python -m pipeline.dag`` commits what a killed ``snakemake`` has finished and not committed.
"""

import fcntl
import hashlib
import json
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import networkx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.status import read_queue, read_records, remove_queue, write_queue
from pipeline import slurm, tickets
from pipeline.needs import check_resources, read_needs, suggest
from pipeline.plan import Plan, Stage, write_stages
from pipeline.watch import watch_jobs

_HEAD = tickets.FOLDER / "head"


class Commit(NamedTuple):
    """What ``commit`` did, as stage names."""

    committed: list[str]
    refused: list[str]  # finished, but a source, a parameter or the command changed while the job ran
    stale: list[str]  # what is left to run, the refused among them
    fresh: set[str]


def plan_run(defaults: Iterable[str], overwritten: Mapping[str, Iterable[str]]) -> Plan:
    """Take the head's place until this process ends, commit what is finished, and issue tickets.

    ``defaults`` are the names of the default resources, by command line and profile; ``overwritten`` those that
    ``--set-resources`` gives to stages.

    Raises:
        UserError: another ``snakemake`` is at work here; params.yaml, dvc.yaml or a resource is not valid; as
            ``issue_tickets``.
    """
    check_resources(defaults, "default-resources")
    for name, resources in overwritten.items():
        check_resources(resources, f"set-resources: {name}")
    study = check_parameters()
    become_head()
    earlier = slurm.jobs_at_work()
    if earlier or tickets.at_work():
        # Committing would change the recipes of the stages that these are at work on.
        fresh = issue_tickets()
    else:
        done = commit()
        if done.committed or done.refused:
            report(done)
        fresh = done.fresh
    stages = load_stages()
    known = [stage.name for stage in stages]
    for name in overwritten:
        if name not in known:
            raise UserError(
                f"set-resources: {name}: no such stage; {suggest(name, known, 'snakemake --list names them')}"
            )
    for stage in stages:
        path = tickets.earlier_jobs(stage.name)
        if stage.name in earlier:
            path.write_text("\n".join(earlier[stage.name]), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    write_stages(stages)
    # Before Snakemake looks: it refuses to replace what is read-only, and as root it would write into the cache.
    _unprotect(stage for stage in stages if stage.name not in fresh)
    return Plan(study, stages, fresh, earlier)


def become_head() -> None:
    """Keep every other ``snakemake`` out of this folder until this process ends.

    The lock is the kernel's, so that a killed process leaves none behind. File systems without locks are left without.

    Raises:
        UserError: another one is at work here.
    """
    _check_folder()
    _HEAD.parent.mkdir(parents=True, exist_ok=True)
    file = _HEAD.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        raise UserError(
            f"snakemake is at work in this folder already: {who}; `fvq status` shows how far it is"
        ) from None
    except OSError:
        pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)


_held: list[IO[str]] = []  # a lock ends with its file


def start(plan: Plan, names: list[str], *, here: bool) -> None:
    """Make the files of the stages that are going to run replaceable, and leave their names for ``fvq status``.

    Where they run in Slurm, not ``here``, their jobs are looked after from now on.

    Raises:
        UserError: ``here``, on this machine, a stage is to run that a job of Slurm is at work on.
    """
    for name, jobs in ((name, plan.earlier[name]) for name in names if name in plan.earlier):
        if here:
            end = f"wait for its end, or end it: scancel {' '.join(jobs)}"
            raise UserError(f"{name}: job {' '.join(jobs)} is at work on it; {end}")
    _unprotect(stage for stage in plan.stages if stage.name in names)  # those that `-F` asks for are not stale
    write_queue(_queue(plan.study), names)
    if not here:
        slurm.mark_use()
        watch_jobs(_queue(plan.study).with_name("waiting.json"))


def _unprotect(stages: Iterable[Stage]) -> None:
    """Part the files of stages from DVC's cache, hard links to which are read-only."""
    files = [Path(path).absolute() for stage in stages for path in stage.files]
    protected = [path for path in files if path.is_file() and not path.stat().st_mode & stat.S_IWUSR]
    if not protected:
        return
    with _open_repository() as repo:
        for path in protected:
            before = path.stat()
            repo.cache.local.unprotect(str(path))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # older than its stage's ticket


def tell_failures(study: str) -> None:
    """Print one line for each stage that failed since ``start``: the cause, and the log where there is one."""
    queue = read_queue(_queue(study))
    if queue is None:
        return
    records = read_records(_queue(study).parent)
    for name in (name for name in queue.stages if not tickets.has_receipt(name)):
        record = records.get(name)
        logs = [path for path in slurm.logs_of(name) if path.stat().st_mtime >= queue.written_at.timestamp()]
        if record and record.state != "running" and record.updated_at >= queue.written_at:
            cause = record.message or record.state
        elif logs:
            lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
            own = [line.removeprefix("fvq: error: ") for line in lines if line.startswith("fvq: error: ")]
            errors = own or [line for line in lines if "error: " in line] or ["no word of an error"]
            cause = errors[-1]
        else:
            continue
        print(f"fvq: {name}: {cause}" + (f" (log: {logs[-1]})" if logs else ""), file=sys.stderr)


def tell_end(study: str) -> None:
    """Take the names back."""
    remove_queue(_queue(study))


def _queue(study: str) -> Path:
    return Path("runs", study, "status", "queue.json")


def load_stages() -> list[Stage]:
    """The stages of dvc.yaml, upstream first. Hashes nothing and takes no lock.

    Raises:
        UserError: no DVC metadata here, or dvc.yaml is not valid.
    """
    with _open_repository() as repo:
        return [_describe(stage, repo) for stage in _in_order(repo)]


def issue_tickets(*, renew: bool = False) -> set[str]:
    """Write the ticket of each stale stage, date back those of the fresh ones (``renew`` as in ``tickets.issue``).

    Returns the names of the fresh stages.

    Raises:
        UserError: as ``load_stages``; a dependency that no stage makes is missing; another DVC process works here.
    """
    recipes, fresh = _survey()
    for name, recipe in recipes.items():
        tickets.issue(name, recipe, fresh=name in fresh, renew=renew)
    return fresh


def commit(*, renew: bool = False) -> Commit:
    """Record finished jobs in dvc.lock and DVC's cache, then issue the tickets anew (``renew`` as there).

    Raises:
        UserError: as ``issue_tickets``.
    """
    recipes, fresh = _survey()
    finished = [name for name in recipes if name not in fresh and tickets.has_receipt(name)]
    committed = [name for name in finished if tickets.recipe(name) == recipes[name]]
    refused = [name for name in finished if name not in committed]
    with _open_repository() as repo, repo.lock, repo.scm_context:
        stages = [stage for stage in repo.index.stages if stage.addressing in committed]
        for stage in [stage for stage in stages if not all(out.exists for out in stage.outs)]:
            tickets.receipt(stage.addressing).unlink()  # somebody has removed what the job made
            stages.remove(stage)
        for stage in stages:
            stage.save()
            stage.commit()
        if stages:
            # `dvc commit` with many names reads the graph and writes the lock file anew for each.
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    saved = {stage.addressing for stage in stages}
    committed = [name for name in committed if name in saved]
    if stages:
        recipes, fresh = _survey()
    for name, recipe in recipes.items():
        tickets.issue(name, recipe, fresh=name in fresh, renew=renew)
    return Commit(
        committed=committed,
        refused=refused,
        stale=[name for name in recipes if name not in fresh],
        fresh=fresh,
    )


def commit_finished(*, renew: bool = False) -> None:
    """``commit`` and tell, unless jobs are still at work here: that would change the recipes they work by."""
    jobs = [job for listed in slurm.jobs_at_work().values() for job in listed]
    if jobs:
        print(
            f"nothing is committed to dvc.lock while jobs are at work here: {', '.join(jobs)}; the next snakemake does "
            "it, or when they have ended: python -m pipeline.dag",
            file=sys.stderr,
        )
        return
    slurm.forget_use()
    report(commit(renew=renew))


def report(done: Commit) -> None:
    """Print what ``commit`` did, and what is left."""
    for text, names in (
        ("committed to dvc.lock", done.committed),
        ("not committed, since what it reads changed meanwhile", done.refused),
        ("still to run", done.stale),
    ):
        if names:
            print(f"{text}: {', '.join(names)}", file=sys.stderr)
    if not done.committed and not done.stale:
        print("every stage is up to date", file=sys.stderr)


def check_parameters() -> str:
    """The name of the study in params.yaml. Raises UserError, which names the key, where that is not valid."""
    from fvq.config import load_parameters

    return load_parameters().study


def _check_folder() -> None:
    if not Path(".dvc").is_dir():
        raise UserError(".dvc: no such folder; run this from the root of a clone, or make one with: dvc init")


@contextmanager
def _open_repository() -> Iterator[Any]:
    """DVC's repository object, its errors as one line."""
    _check_folder()
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
    threads, resources = read_needs(stage.meta or {}, stage.addressing)
    return Stage(
        name=stage.addressing,
        command=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
        threads=threads,
        resources=resources,
        files=_files(stage, repo),
        folders=_folders(stage, repo),
        upstream=sorted(
            {path for maker in _makers(stage, repo) for path in _files(maker, repo) or _folders(maker, repo)}
        ),
    )


def _files(stage: Any, repo: Any) -> list[str]:
    return [_path(out, repo) for out in stage.outs if not _is_folder(out)]


def _folders(stage: Any, repo: Any) -> list[str]:
    return [_path(out, repo) for out in stage.outs if _is_folder(out)]


def _is_folder(out: Any) -> bool:
    return out.def_path.endswith("/")  # which tells it of one that was never made


def _path(out: Any, repo: Any) -> str:
    return Path(out.fs_path).relative_to(repo.root_dir).as_posix()


def _makers(stage: Any, repo: Any) -> list[Any]:
    """The stages that make what a stage reads: a dependency itself, a file in it, or the folder around it."""
    outputs = [out for dependency in stage.deps for out in _made_in(dependency, stage, repo)]
    return list({out.stage.addressing: out.stage for out in outputs}.values())


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
            above = {maker.addressing for maker in _makers(stage, repo)}
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


if __name__ == "__main__":
    with one_line_errors():
        become_head()
        commit_finished()
