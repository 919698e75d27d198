"""A stage on two nodes, which are processes on this machine that a stand-in for ``srun`` starts."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[1]

# What a stage that runs in parallel does, from the job's variables on.
LAUNCHER = """
import sys
from pipeline.launch import launch_on_nodes
from pipeline.slurm import allocation

launch_on_nodes("tiny.stage", sys.argv[1:], 1, allocation())
"""
STAGE = """
import os, sys, time
from pathlib import Path

import torch
import torch.distributed as dist
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.processes import in_any_process, is_first, process_group

with process_group(), one_line_errors(), signals_noted() as received:
    node, wanted = os.environ["SLURMD_NODENAME"], sys.argv[1]
    total = torch.tensor([10**dist.get_rank()])
    dist.all_reduce(total)
    said = f"{dist.get_rank()} of {dist.get_world_size()}: {total.item()}, {sys.argv[1:]}"
    Path(f".{node}").write_text(f"{os.getpid()} {said}")
    os.rename(f".{node}", node)
    if wanted == "fail" and node == "n1":
        raise UserError("told to fail")
    deadline = time.monotonic() + 60
    while wanted == "wait" and time.monotonic() < deadline:
        if in_any_process(received() is not None):
            Path(f"{node}.saved").touch()
            while received() is None:  # the other node's process may have been told first
                time.sleep(0.01)
            raise Interrupted(f"{received()} received")
        time.sleep(0.05)
    if wanted == "fail":
        time.sleep(60)
"""
# A process of a stage that takes its time to save, and that notes every further signal.
SLOW = """
import os, signal, time
from pathlib import Path

rank, received = os.environ["RANK"], []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: received.append(number))
Path(f"{rank}.ready").touch()
deadline = time.monotonic() + 30
while not received and time.monotonic() < deadline:
    time.sleep(0.02)
Path(f"{rank}.saving").touch()
time.sleep(2)
Path(f"{rank}.saved").touch()
raise SystemExit(75)
"""


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A job of two nodes. This process is on the second one, n2, in a folder with a stage that says what it finds."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed
    for name in [name for name in os.environ if name.startswith(("SLURM", "FVQ_")) or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    fake = FakeSlurm(tmp_path / "bin")
    fake.addresses = {"n1": "192.0.2.1", "n2": "127.0.0.1"}
    project = tmp_path / "project"
    fake.add("7", "rule_tiny", project, nodes=("n1", "n2"))
    (project / "tiny").mkdir(parents=True)
    (project / "tiny/__init__.py").touch()
    (project / "tiny/stage.py").write_text(STAGE)
    (project / "tiny/slow.py").write_text(SLOW)
    monkeypatch.chdir(project)
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    paths = {"PATH": fake.path, "PYTHONPATH": f"{ROOT}{os.pathsep}{project}"}
    for name, value in (job | paths | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}).items():
        monkeypatch.setenv(name, value)
    return fake


def launch(*words: str) -> int:
    """The exit status of the stage on both nodes; the words tell what it is to do."""
    from pipeline.launch import launch_on_nodes
    from pipeline.slurm import allocation

    before = signal.getsignal(signal.SIGTERM)
    nodes = allocation()
    assert nodes is not None
    try:
        launch_on_nodes("tiny.stage", list(words), 1, nodes)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    finally:
        assert signal.getsignal(signal.SIGTERM) is before
        assert list(Path("runs").iterdir()) == []
    return 0


def wait_for(paths: list[str], process: subprocess.Popen[bytes]) -> None:
    """Return when the files are there; fails where the process ends before."""
    deadline = time.monotonic() + 60
    while not all(Path(path).exists() for path in paths):
        assert process.poll() is None and time.monotonic() < deadline, Path("said.txt").read_text()
        time.sleep(0.02)


def is_alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestOnTwoNodes:
    def test_they_meet_and_the_node_that_launches_is_the_first(self) -> None:
        assert launch("add", "two words", "--more") == 0
        words = "11, ['add', 'two words', '--more']"
        assert Path("n2").read_text().split(" ", 1)[1] == f"0 of 2: {words}"
        assert Path("n1").read_text().split(" ", 1)[1] == f"1 of 2: {words}"

    def test_where_one_fails_the_other_is_ended(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert launch("fail") == 1
        assert "fvq: error: told to fail\n" in capfd.readouterr().err
        other, deadline = int(Path("n2").read_text().split()[0]), time.monotonic() + 20
        while is_alive(other):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_a_signal_reaches_both_which_save_their_state(self) -> None:
        with Path("said.txt").open("w") as said:
            process = subprocess.Popen([sys.executable, "-c", LAUNCHER, "wait"], stderr=said)
        try:
            wait_for(["n1", "n2"], process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 75, Path("said.txt").read_text()
        finally:
            process.kill()
        assert Path("n1.saved").exists() and Path("n2.saved").exists()
        assert list(Path("runs").iterdir()) == []
        assert Path("said.txt").read_text().count("fvq: SIGUSR1 received") == 1

    def test_where_srun_starts_nothing_its_word_is_told(
        self, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("pipeline.launch.without_step", dict)
        assert launch("add") == 1
        assert "srun: error: Unable to create step" in capfd.readouterr().err
        assert not Path("n1").exists()

    def test_gpus_are_missed_on_the_node_that_lacks_them(
        self, cluster: FakeSlurm, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """This node, which has got none, is checked before; the other one's are seen from there alone."""
        cluster.variables = {"n1": {"SLURM_STEP_GPUS": "0,1"}}
        cluster.save()
        assert launch("add") == 1
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fvq: error: ")]
        assert len(said) == 1
        assert said[0].startswith("fvq: error: 2 GPUs are allocated on node n1 and torch sees 0: ")
        assert not Path("n2").exists(), "the stage ran"


class TestSaving:
    @pytest.mark.parametrize("told", [(signal.SIGUSR1,) * 3, (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)])
    def test_processes_may_take_their_time_however_often_their_node_is_told(
        self, told: tuple[signal.Signals, ...]
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        node = [sys.executable, "-m", "pipeline.launch", "n2", "127.0.0.1", port, "2", "interrupted", "tiny.slow"]
        with Path("said.txt").open("w") as said:
            process = subprocess.Popen(node, stderr=said)
        try:
            wait_for(["0.ready", "1.ready"], process)
            for number in told:
                process.send_signal(number)
                time.sleep(0.2)
            wait_for(["0.saving"], process)
            assert not Path("0.saved").exists()
            assert process.wait(60) == 0, Path("said.txt").read_text()
            assert Path("0.saved").exists() and Path("1.saved").exists(), "it did not wait for them"
        finally:
            process.kill()
        assert Path("interrupted").exists()
        assert "Traceback" not in Path("said.txt").read_text()


class TestOneNode:
    """What one of two nodes makes of the end of its processes."""

    @pytest.fixture
    def end(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException | None], tuple[object, bool]]]:
        """Lets ``torchrun`` end so; gives the node's exit status, and whether it left word of an interruption."""
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

        def run(error: BaseException | None) -> tuple[object, bool]:
            from pipeline.launch import _run_on_node

            def torchrun(words: list[str]) -> None:
                assert {"--nnodes=2", "--node-rank=0", "--master-addr=127.0.0.1", "--nproc-per-node=4"} <= set(words)
                assert words[-3:] == ["--module", "tiny.stage", "fvq"]
                if error:
                    raise error

            monkeypatch.setattr("torch.distributed.run.main", torchrun)
            status = None
            try:
                _run_on_node("n2,n1", "127.0.0.1", "1", "4", "interrupted", "tiny.stage", "fvq")
            except SystemExit as end:
                status = end.code
            return status, Path("interrupted").exists()

        yield run
        for number, handler in handlers.items():
            signal.signal(number, handler)

    @pytest.mark.parametrize(
        ("statuses", "wanted"),
        [
            ((75, 75), (None, True)),  # not 75: at any other than 0, Slurm would kill those that still save their state
            ((75, 1), (1, False)),
            ((1,), (1, False)),
            ((-9,), (1, False)),
        ],
    )
    def test_statuses(
        self, end: Callable[..., object], statuses: tuple[int, ...], wanted: tuple[int | None, bool]
    ) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

        failures = {rank: ProcessFailure(rank, 1, status, "") for rank, status in enumerate(statuses)}
        assert end(ChildFailedError("tiny", failures)) == wanted

    @pytest.mark.parametrize(
        ("number", "wanted"), [("SIGUSR1", (None, True)), ("SIGTERM", (None, True)), ("SIGINT", (130, False))]
    )
    def test_signals(self, end: Callable[..., object], number: str, wanted: tuple[int | None, bool]) -> None:
        from torch.distributed.elastic.multiprocessing import SignalException

        assert end(SignalException("stopped", signal.Signals[number])) == wanted

    def test_success(self, end: Callable[..., object]) -> None:
        assert end(None) == (None, False)


class TestReaching:
    def test_a_node_that_listens_later_is_waited_for(self) -> None:
        from pipeline.launch import _wait_for_first

        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            timer = threading.Timer(0.3, first.listen)
            timer.start()
            _wait_for_first("n1", "n2", "127.0.0.1", first.getsockname()[1])
            timer.join()
            first.settimeout(1)
            first.accept()[0].close()

    @pytest.mark.parametrize("address", ["127.0.0.1", "no-such-node.invalid"])
    def test_one_that_cannot_be_reached_is_named(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        from fvq.runtime.errors import UserError
        from pipeline.launch import _wait_for_first

        monkeypatch.setattr("pipeline.launch._PATIENCE", 0.3)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else takes the port
            port = silent.getsockname()[1]
            with pytest.raises(UserError) as told:
                _wait_for_first("n1", "n2", address, port)
        message = str(told.value)
        assert message.startswith(f"node n2 cannot reach node n1 at {address}, port {port} ([Errno ")
        assert "FVQ_ADDRESS" in message and "\n" not in message
