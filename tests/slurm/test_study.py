"""The smallest study from start to end by ``snakemake --profile slurm``, and the same on this machine."""

import time
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.head import RESULTS, Study

pytestmark = pytest.mark.slurm

# Runs in every Python that is started: a job that opens DVC's locks is written down.
SPY = """
import os, sys

def listen(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".dvc/tmp/lock", ".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock")):
        with open(os.environ["FVQ_TEST_SPY"], "a") as file:
            file.write(f"{'job' if 'SLURM_JOB_ID' in os.environ else 'head'} {arguments[0]} {sys.argv}\\n")

sys.addaudithook(listen)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Study:
    return Study.new(tmp_path_factory.mktemp("fresh"), cluster)


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where those who open DVC's locks are written down."""
    return tmp_path_factory.mktemp("spied") / "opened.txt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fresh: Study, spied: Path) -> Study:
    """The study after one command."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "sitecustomize.py").write_text(SPY)
    study = fresh.copy(folder)
    started = time.monotonic()
    study.run(PYTHONPATH=str(folder), FVQ_TEST_SPY=str(spied))
    print(f"\nthe study on two nodes of one core: {time.monotonic() - started:.0f} s")
    return study


def test_the_study_comes_to_its_end(finished: Study) -> None:
    page = (finished.project.path / "reports/index.html").read_text()
    assert "FVQ" in page
    assert finished.project.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert finished.project.would_run() == []
    assert "Nothing to be done" in finished.run()
    assert not list((finished.project.path / "runs/logs").rglob("*.log")), "logs of jobs that succeeded"
    assert "17 of 17 stages done\n" in finished.project.run("fvq", "status").stdout


def test_the_results_are_those_of_this_machine(
    fresh: Study, finished: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = fresh.copy(tmp_path_factory.mktemp("here"))
    started = time.monotonic()
    here.project.run("snakemake", "-c2")
    print(f"\nthe study by snakemake -c2: {time.monotonic() - started:.0f} s")
    assert here.digests() == finished.digests()
    assert len(here.digests()) > 30


def test_nodes_leave_dvcs_locks_alone(finished: Study, spied: Path) -> None:
    assert len(finished.recorded()) >= 15
    opened = spied.read_text()
    assert {line.split()[0] for line in opened.splitlines()} == {"head"}, opened


def test_changed_needs_and_profile_run_nothing(finished: Study) -> None:
    finished.project.edit("dvc.yaml", "  needs:\n          imagenet: {gpus: 8", "  needs:\n          ci: {gpus: 8")
    finished.project.edit("slurm/profile.v9+.yaml", "  mem_mb: 8000", "  mem_mb: 4000")
    assert finished.project.would_run() == []
    assert "Nothing to be done" in finished.run()
    (finished.project.path / RESULTS / "sample/fvq/samples.npz").unlink()
    assert "sample@fvq" in finished.project.run("snakemake", "-n", "--profile", "slurm").stdout
