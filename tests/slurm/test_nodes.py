"""A training on two nodes, and what its user reads where a node, the cluster or the profile does not do."""

import csv
import shlex
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.head import COMMAND, RESULTS, Study

pytestmark = pytest.mark.slurm

TRAINING = "train_tokenizer@fvq"
AT_WORK = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
NEEDS = "needs:\n          imagenet: {gpus: 8, gpu_type: a100, cores: 64, memory_gb: 400, hours: 24}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Study:
    study = Study.new(tmp_path_factory.mktemp("prepared"), cluster, "rows.fvq.steps=60")
    study.run("prepare_data")
    return study


@pytest.fixture
def study(tmp_path: Path, prepared: Study) -> Study:
    return prepared.copy(tmp_path)


def need(study: Study, needs: str) -> None:
    """What trainings ask for at this scale."""
    study.project.edit("dvc.yaml", NEEDS, f"needs:\n          ci: {needs}")


def history(study: Study) -> list[dict[str, float]]:
    with (study.project.path / RESULTS / "train_tokenizer/fvq/history.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_two_nodes_train_as_one_process_does(study: Study, tmp_path: Path) -> None:
    alone = study.copy(tmp_path / "alone")
    alone.project.run("snakemake", "-c1", TRAINING)

    need(study, "{nodes: 2, cores: 1, memory_gb: 4}")
    head = study.start(TRAINING, FVQ_CHECKPOINT_EVERY="1")  # soon enough to be warned in time
    (job,) = study.cluster.wait_for(
        lambda: [job for job in study.jobs(TRAINING) if job.state == "RUNNING"], 60, "the training runs"
    )
    assert job.node == "n[1-2]"
    # Warned, it saves what one process alone could go on from, and goes on with two.
    study.wait_for_state(TRAINING)
    study.cluster.cancel(job.id, "USR1")
    head.wait()
    assert "Restarts=1" in study.cluster.run("scontrol", "show", "job", str(job.id)).stdout

    one, two = history(alone), history(study)
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [row["learning_rate"] for row in two] == [row["learning_rate"] for row in one]
    # Sums in another order: the same at first, and after that within what rounding grows to.
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert two[0]["usage"] == one[0]["usage"]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=0.02)
    # Other files than those of one process, so it was not one process that made them; both are whole.
    assert history(study) != history(alone)
    study.run("freeze_codebook@fvq")


def test_nodes_that_cannot_reach_each_other(study: Study) -> None:
    need(study, "{nodes: 2, cores: 1, memory_gb: 4}")
    # An address of the network for documentation, which leads nowhere.
    said = study.run(TRAINING, code=1, FVQ_ADDRESS="192.0.2.1")
    assert f"fvq: {TRAINING}: " in said
    assert "cannot reach node n1 at 192.0.2.1, port" in said
    assert TRAINING not in study.recorded()


def test_gpus_that_torch_cannot_use(study: Study) -> None:
    need(study, "{gpus: 2, gpu_type: a100, cores: 1, memory_gb: 4}")
    said = study.run(TRAINING, code=1)
    (line,) = (line for line in said.splitlines() if line.startswith(f"fvq: {TRAINING}: "))
    assert "2 GPUs are allocated on node n" in line and "torch sees 0" in line


def test_more_gpus_than_a_node_has(study: Study) -> None:
    need(study, "{gpus: 9, gpu_type: a100, cores: 1, memory_gb: 4}")
    said = study.run(TRAINING, code=1)
    assert "Requested node configuration is not available" in said


def test_a_partition_that_is_none(study: Study) -> None:
    study.project.edit("slurm/profile.v9+.yaml", "# slurm_partition: gpu", "slurm_partition: gpus")
    said = study.run(TRAINING, code=1)
    assert "invalid partition specified: gpus" in said


def test_a_full_disk(study: Study) -> None:
    runs = study.project.path / "runs"
    runs.mkdir(exist_ok=True)
    study.project.run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs))
    try:
        said = study.run(TRAINING, code=1)
        (cause,) = (line for line in said.splitlines() if line.startswith(f"fvq: {TRAINING}: "))
        assert "No space left on device" in cause
    finally:
        study.project.run("umount", "-l", str(runs))
    study.run(TRAINING)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "  runtime: 60",
            "  runtme: 60",
            "fvq: error: default-resources: runtme: no such resource; did you mean runtime?",
        ),
        ("slurm-requeue: true", "slurm-reqeue: true", "snakemake: error: unrecognized arguments: --slurm-reqeue=True"),
    ],
)
def test_a_misspelt_profile(study: Study, old: str, new: str, told: str) -> None:
    study.project.edit("slurm/profile.v9+.yaml", old, new)
    status = 1 if told.startswith("fvq") else 2
    assert study.run(TRAINING, code=status).splitlines()[-1].strip() == told
    assert study.jobs(TRAINING) == []


def test_misspelt_needs(study: Study) -> None:
    need(study, "{gpu: 8}")
    said = study.run(TRAINING, code=1)
    assert said.splitlines()[-1].endswith("meta.needs.ci: gpu: is no known parameter")


def test_the_head_as_a_job_of_its_own(study: Study) -> None:
    """As docs/cluster.md advises where a login node ends what its users leave behind."""
    command = shlex.join([*COMMAND, TRAINING])
    options = ["--parsable", "--cpus-per-task=1", "--mem=1000", "--output=head.log", f"--wrap={command}"]
    number = int(study.project.run("sbatch", *options).stdout)
    ended = study.cluster.wait_for(
        lambda: study.cluster.job(number).state not in AT_WORK and study.cluster.job(number).state,
        300,
        "the head has ended",
    )
    assert ended == "COMPLETED", (study.project.path / "head.log").read_text()
    assert TRAINING in study.recorded()
