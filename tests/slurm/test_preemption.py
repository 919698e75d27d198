"""What takes a job or the head away from a study, and that the same command finishes it with the same results."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from slurm.cluster import Cluster
from slurm.head import Study

pytestmark = pytest.mark.slurm

TRAINING, FROZEN = "train_tokenizer@fvq", "freeze_codebook@fvq"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Study:
    """A study whose data is prepared, with a row vq that trains for a moment and a row fvq that takes half a minute."""
    study = Study.new(tmp_path_factory.mktemp("prepared"), cluster, "rows.vq.steps=20", "rows.fvq.steps=600")
    study.run("prepare_data")
    return study


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared: Study) -> dict[str, str]:
    """The results' digests of a run from start to end."""
    study = prepared.copy(tmp_path_factory.mktemp("undisturbed"))
    study.run("freeze_codebook@vq", FROZEN)
    return study.digests()


@pytest.fixture
def study(tmp_path: Path, prepared: Study) -> Study:
    return prepared.copy(tmp_path)


def assert_finished(study: Study, undisturbed: dict[str, str], *, without: str = "/vq/") -> None:
    assert study.digests() == {path: digest for path, digest in undisturbed.items() if without not in path}
    assert {TRAINING, FROZEN} <= study.recorded()
    assert not study.states(TRAINING), "a state outlived its training"
    assert study.project.run("dvc", "status", TRAINING, FROZEN).stdout.strip() == "Data and pipelines are up to date."


def test_a_warned_training_goes_back_into_the_queue_by_itself(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start(FROZEN)
    job = study.wait_for_state(TRAINING)
    study.cluster.cancel(job.id, "USR1")
    study.cluster.wait_for(lambda: study.cluster.job(job.id).state == "PENDING", 60, "the job is queued again")
    assert study.states(TRAINING)
    study.cluster.run("scontrol", "hold", str(job.id))
    study.cluster.wait_for(
        lambda: "stages done, 2 queued;" in study.project.run("fvq", "status").stdout, 60, "the status tells so"
    )
    study.cluster.run("scontrol", "release", str(job.id))
    head.wait()
    assert [job.id for job in study.jobs(TRAINING)] == [job.id]
    assert "Restarts=1" in study.cluster.run("scontrol", "show", "job", str(job.id)).stdout
    assert_finished(study, undisturbed)


def test_a_cancelled_job(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start("freeze_codebook@vq", FROZEN)
    job = study.wait_for_state(TRAINING)
    study.wait_for_receipt("train_tokenizer@vq")
    study.cluster.cancel(job.id)
    said = head.wait(1)
    assert f"SLURM-job '{job.id}' failed, SLURM status is: 'CANCELLED'" in said
    assert "SIGTERM received; saved after step" in said  # the job's log, in the head's output
    assert {"train_tokenizer@vq", "freeze_codebook@vq"} <= study.recorded()
    assert TRAINING not in study.recorded()
    before = study.record("train_tokenizer", "vq")

    study.run("freeze_codebook@vq", FROZEN)
    assert study.record("train_tokenizer", "vq") == before
    assert_finished(study, undisturbed, without="no row")


@pytest.mark.parametrize(
    ("partition", "told"),
    [
        ("main", "SIGTERM received; saved after step"),
        ("spare", "was preempted and goes back into the queue"),
    ],
    ids=["told in time and requeued", "cancelled at once"],
)
def test_a_job_that_makes_way_for_another(study: Study, undisturbed: dict[str, str], partition: str, told: str) -> None:
    options = ("mem_mb=4000", "runtime=60", f"slurm_partition={partition}", "slurm_extra='--open-mode=append'")
    head = study.start(FROZEN, "--slurm-keep-successful-logs", "--default-resources", *options)
    job = study.wait_for_state(TRAINING)
    urgent = study.cluster.submit("sleep 1", "--partition=urgent", f"--nodelist={job.node}")
    study.cluster.wait_for(lambda: study.cluster.job(job.id).state != "RUNNING", 60, "the training makes way")
    study.cluster.wait_for(lambda: study.cluster.job(urgent).state == "COMPLETED", 60, "the other job has run")
    said = head.wait()
    assert [job.id for job in study.jobs(TRAINING)] == [job.id]
    assert "Restarts=1" in study.cluster.run("scontrol", "show", "job", str(job.id)).stdout
    assert told in said + study.log(TRAINING, job)
    assert_finished(study, undisturbed)


def test_a_node_without_power(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start(FROZEN)
    node = study.wait_for_state(TRAINING).node
    study.cluster.kill_node(node, power=True)
    try:
        head.wait()
    finally:
        study.cluster.start_node(node)
    assert study.jobs(TRAINING)[-1].node != node
    assert_finished(study, undisturbed)


def test_a_node_whose_daemon_dies_alone_goes_on(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start(FROZEN)
    job = study.wait_for_state(TRAINING)
    study.cluster.kill_node(job.node)
    study.cluster.start_node(job.node)
    head.wait()
    assert [job.id for job in study.jobs(TRAINING)] == [job.id]
    assert_finished(study, undisturbed)


@contextmanager
def held_up(study: Study) -> Iterator[None]:
    """The training makes no step meanwhile, so that it does not end."""
    (training,) = (process for process in psutil.process_iter() if is_training(process, study.project.path))
    training.suspend()
    try:
        yield
    finally:
        training.resume()


def test_a_job_over_its_time_limit(study: Study, undisturbed: dict[str, str]) -> None:
    """Without the profile's warning; the training hangs, so that it comes to its limit soon."""
    head = study.start(
        FROZEN,
        *("--default-resources", "mem_mb=4000", "runtime=1", "slurm_extra='--open-mode=append'"),
    )
    job = study.wait_for_state(TRAINING)
    (training,) = (process for process in psutil.process_iter() if is_training(process, study.project.path))
    os.kill(training.pid, signal.SIGSTOP)
    said = head.wait(1)
    assert f"SLURM-job '{job.id}' failed, SLURM status is: 'TIMEOUT'" in said
    assert study.states(TRAINING)
    study.run(FROZEN)
    assert_finished(study, undisturbed)


def is_training(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cmdline()[1:] == ["-m", "pipeline.train_tokenizer", "fvq"] and process.cwd() == str(folder)
    except psutil.Error:
        return False


def test_a_training_longer_than_its_time_limit_goes_on_by_itself(study: Study, undisturbed: dict[str, str]) -> None:
    """The profile's warning, sooner: the training is slowed down, so that it would take several limits."""
    head = study.start(
        FROZEN,
        *("--default-resources", "mem_mb=4000", "runtime=3", "slurm_extra='--signal=USR1@60 --open-mode=append'"),
    )
    job = study.wait_for_state(TRAINING)
    (training,) = (process for process in psutil.process_iter() if is_training(process, study.project.path))
    # Slurm warns between 60 and 120 seconds before the limit.
    end = time.monotonic() + 130
    with suppress(psutil.NoSuchProcess):  # it ends, as warned
        while time.monotonic() < end:
            training.suspend()
            time.sleep(1.9)
            training.resume()
            time.sleep(0.1)
    head.wait()
    assert [job.id for job in study.jobs(TRAINING)] == [job.id]
    assert "Restarts=0" not in study.cluster.run("scontrol", "show", "job", str(job.id)).stdout
    assert_finished(study, undisturbed)


def test_a_killed_head_leaves_jobs_that_the_next_one_queues_behind(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start("freeze_codebook@vq", FROZEN)
    job = study.wait_for_state(TRAINING)
    study.wait_for_receipt("train_tokenizer@vq")
    head.kill()
    before = study.record("train_tokenizer", "vq")

    with held_up(study):
        again = study.start("freeze_codebook@vq", FROZEN, "--slurm-keep-successful-logs")
        study.cluster.wait_for(lambda: len(study.jobs(TRAINING)) == 2, 120, "the next head's job is queued")
        first, second = study.jobs(TRAINING)
        assert (first.id, first.state) == (job.id, "RUNNING")
        assert (second.state, second.reason) == ("PENDING", "Dependency")
    again.wait()
    assert "made by an earlier job" in study.log(TRAINING, second)
    assert study.record("train_tokenizer", "vq") == before
    assert_finished(study, undisturbed, without="no row")


def test_a_second_snakemake_is_refused_while_one_is_at_work(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start(FROZEN)
    study.wait_for_state(TRAINING)
    for command in (("snakemake", "--profile", "slurm"), ("snakemake", "-c1"), ("python", "-m", "pipeline.dag")):
        said = study.project.run(*command, code=1).stderr.strip().splitlines()[-1]
        assert said.startswith(f"fvq: error: snakemake is at work in this folder already: process {head.process.pid} ")
    head.wait()
    assert len(study.jobs(TRAINING)) == 1
    assert_finished(study, undisturbed)


def test_status_tells_what_runs_and_what_waits(study: Study) -> None:
    head = study.start(FROZEN, FVQ_CHECKPOINT_EVERY="1")  # so that it takes longer than a record's ten seconds
    job = study.wait_for_state(TRAINING)
    record = study.project.path / "runs/ci-photos/status/train_tokenizer@fvq.json"
    study.cluster.wait_for(lambda: '"done"' in record.read_text(), 30, "the progress is written")
    told = study.project.run("fvq", "status").stdout
    assert f"1 running, 1 queued; head process {head.process.pid} on " in " ".join(told.split())
    assert f"job {job.id}" in told and "/600 steps" in told
    study.cluster.cancel(job.id)
    head.wait(1)
    told = study.project.run("fvq", "status").stdout
    assert "interrupted" in told and "SIGTERM received" in told
    assert f"runs/logs/rule_{TRAINING}/{job.id}.log" in told.replace("\n", "").replace(" ", "")


def test_jobs_of_a_killed_head_keep_a_snakemake_without_slurm_off(study: Study, undisturbed: dict[str, str]) -> None:
    head = study.start(FROZEN)
    job = study.wait_for_state(TRAINING)
    head.kill()
    with held_up(study):
        said = study.project.run("snakemake", "-c1", TRAINING, code=1)
    assert f"{TRAINING}: job {job.id} is at work on it; wait for its end, or end it: scancel {job.id}" in said.stderr
    study.cluster.wait_for(lambda: study.cluster.job(job.id).state == "COMPLETED", 300, "the job has ended")
    study.run(FROZEN)
    assert_finished(study, undisturbed)
