"""DVC and Snakemake on one dvc.yaml: a toy project around the real pipeline/dag.py, Snakefile and profiles."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = [
    "Snakefile",
    ".dvcignore",
    *(f"pipeline/{name}.py" for name in ("dag", "job", "needs", "plan", "slurm", "tickets", "watch")),
    "profiles/default/profile.v9+.yaml",
    "slurm/profile.v9+.yaml",
    "src/fvq/runtime/errors.py",
    "src/fvq/runtime/interruption.py",
    *(f"src/fvq/runtime/{name}.py" for name in ("files", "progress", "status")),
]

# The Snakefile's folder comes first on the module path: this stands in for the real fvq.config.
CONFIG = """
from types import SimpleNamespace

import yaml
from fvq.runtime.errors import UserError

def load_parameters():
    with open("params.yaml") as file:
        for key, row in yaml.safe_load(file)["rows"].items():
            if row["codes"] < 1:
                raise UserError(f"params.yaml: rows.{key}.codes: must be at least 1")
    return SimpleNamespace(study="toy")
"""

PARAMETERS = """\
seed: 1
study: toy
rows:
  vq: {codes: 4}
  fvq: {codes: 8}
"""

# A file and a folder that persist, outputs that do not, metrics in git, and a stage that reads the folder around other
# stages' outputs: every form that the real dvc.yaml uses.
STAGES = """\
stages:
  prepare:
    cmd: python stages.py prepare
    deps: [source/prepare.txt]
    params: [seed]
    outs:
      - results/${study}/data/
  train:
    foreach: ${rows}
    do:
      cmd: python stages.py train ${key}
      deps: [source/train.txt, "results/${study}/data"]
      params: ["rows.${key}"]
      outs:
        - results/${study}/train/${key}/model.txt:
            persist: true
        - results/${study}/train/${key}/history.csv
      meta: {threads: 2, scale: small, needs: {small: {memory_gb: 0.1}, large: {gpus: 8}}}
  evaluate:
    foreach: ${rows}
    do:
      cmd: python stages.py evaluate ${key}
      deps: [source/evaluate.txt, "results/${study}/train/${key}/model.txt"]
      outs:
        - results/${study}/evaluate/${key}/images.txt
      metrics:
        - results/${study}/evaluate/${key}/metrics.json:
            cache: false
  render:
    cmd: python stages.py render
    deps: [source/render.txt, "results/${study}/evaluate"]
    outs:
      - reports/:
          persist: true
"""

SCRIPT = """
import json, os, sys, time
from pathlib import Path
import yaml

parameters = yaml.safe_load(Path("params.yaml").read_text())
results = Path("results") / parameters["study"]
stage, row = sys.argv[1], (sys.argv[2:] or [""])[0]
name = f"{stage}@{row}" if row else stage

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)

with open("ran.txt", "a") as file:
    file.write(f"{name} {os.environ.get('OMP_NUM_THREADS')}\\n")
if os.environ.get("TOY_FAIL") == name:
    sys.exit("told to fail")
if os.environ.get("TOY_EDIT") == name:
    Path(f"source/{stage}.txt").write_text("edited while it runs")
if os.environ.get("TOY_WAIT") == name:
    time.sleep(20)

if stage == "prepare":
    for part in "ab":
        write(results / "data" / f"{part}.txt", f"{parameters['seed']} {part}")
elif stage == "train":
    data = [path.read_text() for path in sorted((results / "data").glob("*.txt"))]
    write(results / "train" / row / "model.txt", f"{parameters['rows'][row]['codes']} codes from {data}")
    write(results / "train" / row / "history.csv", "step,usage")
elif stage == "evaluate":
    model = (results / "train" / row / "model.txt").read_text()
    write(results / "evaluate" / row / "images.txt", model)
    write(results / "evaluate" / row / "metrics.json", json.dumps({"codes": int(model.split()[0])}))
else:
    metrics = sorted((results / "evaluate").glob("*/metrics.json"))
    write(Path("reports/tables/table.txt"), "".join(path.read_text() for path in metrics))
"""

ALL = ["evaluate@fvq", "evaluate@vq", "prepare", "render", "train@fvq", "train@vq"]
BELOW_FVQ = ["evaluate@fvq", "render", "train@fvq"]


class Toy:
    """A project in a folder of its own, with ways to run the engines and to ask which stages ran."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        binaries = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([binaries, os.environ["PATH"]]),
            "HOME": str(home),
            **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")},
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(home / "dvc"),
            **{f"GIT_{who}_{what}": "toy@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self.environment.pop("PYTHONPATH", None)
        self.environment.pop("OMP_NUM_THREADS", None)

    def run(self, *command: str, status: int = 0, **environment: str) -> str:
        """Run a command, check its exit status, return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def dvc(self, *arguments: str, **environment: str) -> str:
        return self.run("dvc", *arguments, **environment)

    def snakemake(self, *arguments: str, status: int = 0, **environment: str) -> str:
        return self.run("snakemake", *(arguments or ("-c2",)), status=status, **environment)

    def git_commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "state")

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def ran(self) -> list[str]:
        """The stages that ran since the last call, sorted."""
        return sorted(line.split()[0] for line in self.ran_with_threads())

    def ran_with_threads(self) -> list[str]:
        log = self.folder / "ran.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def assert_up_to_date(self) -> None:
        assert self.dvc("status").strip() == "Data and pipelines are up to date."


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    folder = tmp_path / "toy"
    for name in COPIED:
        target = folder / name.removeprefix("src/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    texts = {
        "pipeline/__init__.py": "",
        "fvq/__init__.py": "",
        "fvq/runtime/__init__.py": "",
        "fvq/config.py": CONFIG,
        "params.yaml": PARAMETERS,
        "dvc.yaml": STAGES,
        "stages.py": SCRIPT,
        **{f"source/{stage}.txt": "as committed" for stage in ("prepare", "train", "evaluate", "render")},
        ".gitignore": ".snakemake/\n__pycache__/\nran.txt\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    project = Toy(folder, tmp_path / "home")
    project.run("git", "init", "-q")
    project.dvc("init", "-q")
    project.git_commit()
    return project


def test_each_engine_leaves_the_other_nothing_to_do(toy: Toy) -> None:
    toy.snakemake()
    lines = toy.ran_with_threads()
    assert sorted(line.split()[0] for line in lines) == ALL
    assert {line for line in lines if line.startswith("train")} == {"train@vq 2", "train@fvq 2"}
    toy.assert_up_to_date()
    toy.dvc("repro")
    assert toy.ran() == []

    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.dvc("repro")
    assert toy.ran() == BELOW_FVQ
    for path in (toy.folder / "source").iterdir():
        path.touch()
    assert "Nothing to be done" in toy.snakemake("-n", "--profile", "slurm")

    # Snakemake's own records hold these very parameters; what is on disk came of others.
    toy.edit("params.yaml", "codes: 16", "codes: 8")
    toy.snakemake()
    assert toy.ran() == BELOW_FVQ
    toy.assert_up_to_date()
    assert '{"codes": 8}{"codes": 4}' in (toy.folder / "reports/tables/table.txt").read_text()


def test_only_what_finished_on_unchanged_sources_is_committed(toy: Toy) -> None:
    said = toy.snakemake("-c2", "-k", status=1, TOY_FAIL="train@vq", TOY_EDIT="evaluate@fvq")
    assert toy.ran() == ["evaluate@fvq", "prepare", "train@fvq", "train@vq"]
    assert "committed to dvc.lock: prepare, train@fvq\n" in said
    assert "not committed, since what it reads changed meanwhile: evaluate@fvq\n" in said
    assert "still to run: evaluate@fvq, train@vq, evaluate@vq, render\n" in said

    status = json.loads(toy.dvc("status", "--json"))
    assert sorted(status) == ["evaluate@fvq", "evaluate@vq", "render", "train@vq"]
    toy.snakemake()
    assert toy.ran() == ["evaluate@fvq", "evaluate@vq", "render", "train@vq"]
    toy.assert_up_to_date()


def test_a_clone_with_pulled_outputs_has_nothing_to_do(toy: Toy, tmp_path: Path) -> None:
    toy.dvc("repro", "-q")
    assert toy.ran() == ALL
    toy.dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    toy.git_commit()
    toy.dvc("push", "-q")
    toy.run("git", "clone", "-q", str(toy.folder), str(tmp_path / "clone"))
    clone = Toy(tmp_path / "clone", tmp_path / "other-home")
    clone.dvc("pull", "-q")
    assert "Nothing to be done" in clone.snakemake()
    assert clone.ran() == []
    clone.assert_up_to_date()
    assert clone.run("git", "status", "--short") == ""


def test_bad_input_is_one_line_before_any_work(toy: Toy) -> None:
    toy.edit("params.yaml", "codes: 8", "codes: 0")
    said = toy.snakemake(status=1).splitlines()
    assert said[-1] == "fvq: error: params.yaml: rows.fvq.codes: must be at least 1"
    assert not any("Traceback" in line or "Building DAG" in line for line in said)
    toy.edit("params.yaml", "codes: 0", "codes: 8")

    (toy.folder / "source/render.txt").unlink()
    said = toy.run(sys.executable, "-m", "pipeline.dag", status=1)
    assert said == "fvq: error: source/render.txt: missing, and stage render reads it\n"
    toy.run("git", "checkout", "-q", ".")

    toy.edit("dvc.yaml", "params: [seed]", "params: [sed]")
    said = toy.run(sys.executable, "-m", "pipeline.dag", status=1)
    assert said == "fvq: error: Parameters 'sed' are missing from 'params.yaml'.\n"

    shutil.rmtree(toy.folder / ".dvc")
    said = toy.run(sys.executable, "-m", "pipeline.dag", status=1)
    assert said.startswith("fvq: error: .dvc: no such folder")
    assert toy.ran() == []


def test_stages_as_rules_see_them(toy: Toy) -> None:
    program = """if True:
        import dataclasses, json
        from pipeline import dag
        print(json.dumps([dataclasses.asdict(stage) for stage in dag.load_stages()], default=sorted))
    """
    stages = {stage["name"]: stage for stage in json.loads(toy.run(sys.executable, "-c", program))}
    assert sorted(stages) == ALL
    assert (stages["prepare"]["files"], stages["prepare"]["folders"]) == ([], ["results/toy/data"])
    train = stages["train@fvq"]
    assert (train["command"], train["threads"]) == ("python stages.py train fvq", 2)
    assert train["resources"] == {"mem_mb": 100}
    assert train["upstream"] == ["results/toy/data"]
    # The folder results/toy/evaluate is nobody's output: what lies in it is.
    assert stages["render"]["upstream"] == [
        f"results/toy/evaluate/{row}/{file}" for row in ("fvq", "vq") for file in ("images.txt", "metrics.json")
    ]


@pytest.mark.slow
def test_a_killed_snakemake_loses_no_finished_stage(toy: Toy) -> None:
    command = ["snakemake", "-c2"]
    environment = {**toy.environment, "TOY_WAIT": "evaluate@fvq"}
    head = subprocess.Popen(command, cwd=toy.folder, env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    log = toy.folder / "ran.txt"
    while not (log.exists() and "evaluate@fvq" in log.read_text()):
        assert head.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    finished = sorted(set(toy.ran()) - {"evaluate@fvq"})
    assert {"prepare", "train@fvq"} <= set(finished)

    said = toy.run(sys.executable, "-m", "pipeline.dag")
    assert "committed to dvc.lock: prepare, train@fvq" in said
    toy.snakemake()
    again = toy.ran()
    # What was running beside it was cut off too.
    assert "evaluate@fvq" in again
    assert not {"prepare", "train@fvq"} & set(again)
    toy.assert_up_to_date()


@pytest.mark.slow
def test_what_a_killed_snakemake_left_at_work_is_taken(toy: Toy) -> None:
    """Its upstream finished, and is not recorded: recording that now would change what the stage works by."""
    environment = {**toy.environment, "TOY_WAIT": "train@fvq"}
    head = subprocess.Popen(
        ["snakemake", "-c2", "train@fvq"], cwd=toy.folder, env=environment, stderr=subprocess.DEVNULL
    )
    ran, deadline = toy.folder / "ran.txt", time.monotonic() + 60
    while not (ran.exists() and "train@fvq" in ran.read_text()):
        assert time.monotonic() < deadline and head.poll() is None
        time.sleep(0.1)
    head.kill()
    head.wait()
    said = toy.snakemake("-c2", "train@fvq")
    assert "train@fvq: another process is at work on it; waiting for its end" in said
    assert toy.ran() == ["prepare", "train@fvq"]
    toy.snakemake()
    assert "train@fvq" not in toy.ran()
    toy.assert_up_to_date()


def test_git_history_and_other_studies(toy: Toy) -> None:
    toy.snakemake()
    toy.git_commit()
    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.snakemake()
    toy.git_commit()
    toy.run("git", "checkout", "-q", "HEAD~1")
    toy.dvc("checkout", "-q")
    toy.ran()
    assert "Nothing to be done" in toy.snakemake()

    # Another study has other paths; the reports, made of them, keep theirs.
    toy.edit("params.yaml", "study: toy", "study: other")
    toy.dvc("repro", "-q")
    assert toy.ran() == ALL
    assert "Nothing to be done" in toy.snakemake()
    toy.edit("params.yaml", "study: other", "study: toy")
    toy.snakemake()
    assert "render" in toy.ran()
    toy.assert_up_to_date()


def test_a_failed_stage_runs_again_when_asked_again(toy: Toy) -> None:
    """Its outputs of before are put back, and must not be taken for those that were asked for."""
    toy.snakemake()
    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.ran()
    toy.snakemake("-c2", status=1, TOY_FAIL="train@fvq")
    assert toy.ran() == ["train@fvq"]
    toy.snakemake()
    assert toy.ran() == BELOW_FVQ
    toy.assert_up_to_date()


@pytest.mark.slow
def test_outputs_that_are_not_those_of_the_last_run(toy: Toy) -> None:
    toy.dvc("repro", "-q")
    toy.ran()
    model = toy.folder / "results/toy/train/fvq/model.txt"
    model.unlink()
    toy.snakemake()
    assert toy.ran() == BELOW_FVQ
    table = toy.folder / "reports/tables/table.txt"
    table.write_text("by hand")
    toy.snakemake()
    assert toy.ran() == ["render"]
    assert "by hand" not in table.read_text()

    # Younger than the tickets, and still of the parameters before.
    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.snakemake("-n")
    for path in (toy.folder / "results").rglob("*.*"):
        path.touch()
    toy.snakemake("-c2", status=1, TOY_FAIL="train@fvq")
    assert toy.ran() == ["train@fvq"]
    assert model.read_text().startswith("8 codes")
    toy.snakemake()
    assert toy.ran() == BELOW_FVQ
    assert model.read_text().startswith("16 codes")
    toy.snakemake("-c2", "-F")
    assert toy.ran() == ALL
    toy.assert_up_to_date()


NOT_ROOT = """
import os

access = os.access

def access_as_others(path, mode, **options):
    writable = not mode & os.W_OK or not os.path.exists(path) or os.stat(path).st_mode & 0o200
    return bool(writable) and access(path, mode, **options)

os.access = access_as_others
"""


def test_files_linked_to_the_cache_are_made_anew(toy: Toy, tmp_path: Path) -> None:
    # Tests may be run by root, for whom nothing is read-only.
    (tmp_path / "sitecustomize.py").write_text(NOT_ROOT)
    toy.environment["PYTHONPATH"] = str(tmp_path)
    toy.dvc("config", "cache.type", "hardlink,copy")
    toy.snakemake()
    model = toy.folder / "results/toy/train/fvq/model.txt"
    assert model.stat().st_nlink > 1
    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.snakemake("-c2", status=1, TOY_FAIL="train@fvq")
    assert model.stat().st_nlink == 1  # what Snakemake put back is not the cache's file
    assert model.stat().st_mode & 0o200
    toy.snakemake()
    assert model.read_text().startswith("16 codes")
    toy.edit("params.yaml", "codes: 16", "codes: 8")
    toy.ran()
    toy.dvc("repro", "-q")  # from DVC's cache of runs: what was there before is undamaged
    toy.assert_up_to_date()
    assert model.read_text().startswith("8 codes")


def test_results_that_were_removed_before_they_were_recorded_are_made_anew(toy: Toy) -> None:
    toy.snakemake("-c2", status=1, TOY_FAIL="evaluate@fvq")
    toy.edit("params.yaml", "codes: 8", "codes: 16")
    toy.snakemake("-c1", "train@fvq", status=1, TOY_FAIL="train@fvq")
    toy.ran()
    # A head that is killed between a job's end and the recording leaves a receipt.
    toy.snakemake("-c1", "train@fvq", "--no-hooks")
    assert toy.ran() == ["train@fvq"]
    (toy.folder / "results/toy/train/fvq/history.csv").unlink()
    toy.snakemake()
    assert "train@fvq" in toy.ran()
    toy.assert_up_to_date()
