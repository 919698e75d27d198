"""The cluster that the other tests of this folder run on."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from slurm.cluster import NODES, SLURM_CONF, Cluster, missing, slurm_cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("cluster"), cores_per_node=2) as cluster:
        yield cluster


def in_folder(folder: Path) -> list[str]:
    """Processes that work in a folder: slurmd's children do not tell by their variables where they belong."""
    found = []
    for process in psutil.process_iter():
        try:
            if folder in [Path(process.cwd()), *Path(process.cwd()).parents]:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_in(cluster: Cluster, number: int, *states: str) -> bool:
    return cluster.job(number).state in states


def test_a_step_on_two_nodes_has_gpus_of_both(cluster: Cluster) -> None:
    finished = cluster.run(
        *("srun", "--nodes=2", "--gres=gpu:a100:2"),
        *("sh", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES"),
    )
    assert sorted(finished.stdout.splitlines()) == ["n1 0 2 0,1", "n2 1 2 0,1"]


def test_two_jobs_on_one_node_get_different_gpus(cluster: Cluster) -> None:
    wanted = ("--nodelist=n1", "--gres=gpu:a100:3", "--mem=1000")
    step = "echo $CUDA_VISIBLE_DEVICES > gpus-$SLURM_JOB_ID; sleep 300"
    jobs = [cluster.submit(step, *wanted) for _ in range(2)]
    files = [cluster.folder / f"gpus-{number}" for number in jobs]
    cluster.wait_for(lambda: all(file.exists() and file.read_text() for file in files), 30, "both jobs run")
    visible = [set(file.read_text().strip().split(",")) for file in files]
    for number in jobs:
        cluster.cancel(number)
    assert [len(gpus) for gpus in visible] == [3, 3]
    assert not visible[0] & visible[1]


def test_a_batch_job_completes(cluster: Cluster) -> None:
    number = cluster.submit("echo from $SLURMD_NODENAME > said.txt", "--job-name=name", "--comment=what | it is")
    cluster.wait_for(lambda: is_in(cluster, number, "COMPLETED"), 30, "the job completes")
    job = cluster.job(number)
    assert (job.name, job.comment, job.workdir) == ("name", "what | it is", str(cluster.folder))
    assert (cluster.folder / "said.txt").read_text() == f"from {job.node}\n"


def test_more_than_there_is_gets_refused(cluster: Cluster) -> None:
    def refused(*options: str) -> str:
        return cluster.run("sbatch", *options, "--wrap=true", code=1).stderr

    assert "Requested node configuration is not available" in refused("--gres=gpu:a100:9")
    assert "Requested node configuration is not available" in refused("--gres=gpu:h100:1")
    assert "invalid partition specified: nonesuch" in refused("--partition=nonesuch")


def test_signals_reach_steps(cluster: Cluster) -> None:
    trap = "trap 'echo got it > trapped; exit 3' USR1; touch waiting; while :; do sleep 0.1; done"
    number = cluster.submit(f'srun sh -c "{trap}"')
    cluster.wait_for((cluster.folder / "waiting").exists, 30, "the step runs")
    cluster.cancel(number, "USR1")
    cluster.wait_for(lambda: is_in(cluster, number, "FAILED"), 30, "the job fails")
    assert (cluster.folder / "trapped").read_text() == "got it\n"


def test_jobs_go_on_without_their_slurmd(cluster: Cluster) -> None:
    number = cluster.submit("touch begun; while [ ! -e go ]; do sleep 0.1; done; echo done > outlived")
    cluster.wait_for((cluster.folder / "begun").exists, 30, "the script runs")
    node = cluster.job(number).node
    cluster.kill_node(node)
    (cluster.folder / "go").touch()
    cluster.wait_for((cluster.folder / "outlived").exists, 10, "the script goes on")
    cluster.start_node(node)
    cluster.wait_for(lambda: is_in(cluster, number, "COMPLETED"), 60, "the node reports the job's end")


def test_jobs_of_a_node_without_power(cluster: Cluster) -> None:
    note = "echo $SLURMD_NODENAME restarted ${SLURM_RESTART_COUNT:-0} >> started; sleep 300"
    wanted = ("--nodelist=n1", "--mem=1000")
    lost = cluster.submit("sleep 301", "--no-requeue", *wanted)
    again = cluster.submit(note, "--requeue", *wanted)
    cluster.wait_for(lambda: all(is_in(cluster, number, "RUNNING") for number in (lost, again)), 30, "both run")
    cluster.wait_for((cluster.folder / "started").exists, 10, "the script runs")
    cluster.kill_node("n1", power=True)
    assert not [line for line in in_folder(cluster.folder) if "sleep 30" in line or "slurmstepd" in line]
    cluster.wait_for(lambda: is_in(cluster, lost, "NODE_FAIL"), 60, "the job is lost with its node")
    assert cluster.job(again).state == "PENDING"
    assert cluster.node_states() == {"n1": "down*", "n2": "idle"}
    cluster.start_node("n1")
    assert cluster.node_states()["n1"] == "idle"
    cluster.wait_for(lambda: is_in(cluster, again, "RUNNING"), 60, "the job runs again")
    cluster.wait_for(lambda: len((cluster.folder / "started").read_text().splitlines()) == 2, 10, "its script too")
    cluster.cancel(again)
    assert (cluster.folder / "started").read_text().splitlines() == ["n1 restarted 0", "n1 restarted 1"]


def test_another_cluster_beside_it_and_nothing_left(cluster: Cluster, tmp_path: Path) -> None:
    with slurm_cluster(tmp_path, gpus=1) as second:
        assert second.run("scontrol", "ping").returncode == 0
        number = second.submit("trap '' TERM; env --ignore-environment setsid sleep 301 & touch runs; sleep 302; wait")
        assert number == 1
        second.wait_for((tmp_path / "runs").exists, 30, "the stubborn job runs")
        client = subprocess.Popen(["srun", "--nodes=2", "true"], env={**os.environ, **second.environment})
        second.wait_for(lambda: len(second.jobs()) == 2, 30, "a step waits for its nodes")
        until(lambda: {"sleep 301", "sleep 302"} < set(in_folder(tmp_path)))
        assert list(second.run_folder.glob("n?/gpu0"))
        assert second.leftovers()
    assert second.leftovers() == []
    assert in_folder(tmp_path) == []
    assert client.wait(10) != 0
    assert not second.run_folder.exists()
    assert cluster.node_states() == dict.fromkeys(NODES, "idle")


def test_nothing_runs_after_a_killed_test(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from slurm.cluster import slurm_cluster

        with slurm_cluster(Path(sys.argv[1])) as cluster:
            print(cluster.run_folder, flush=True)
            cluster.submit("sleep 301")
            time.sleep(300)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        run_folder = Path(killed.stdout.readline().strip())
        until(lambda: "sleep 301" in in_folder(tmp_path))
        killed.kill()
    until(lambda: not in_folder(tmp_path))
    shutil.rmtree(run_folder)


def test_a_daemon_that_ends_at_once_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.cluster.SLURM_CONF", "NoSuchKey=1\n" + SLURM_CONF)
    monkeypatch.setattr("slurm.cluster.START_SECONDS", 10)
    told = pytest.raises(AssertionError, match=r"both nodes are idle: not within 10 s(.|\n)*NoSuchKey")
    with told, slurm_cluster(tmp_path):
        pytest.fail("it came up")
    assert in_folder(tmp_path) == []


def test_what_is_missing_gets_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing() is None
    monkeypatch.setattr("slurm.cluster.PATH", str(tmp_path))
    assert missing() == ("not installed: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in str(missing())
