"""A stage's job: receipts, what the schedulers' signals do to it, and jobs that an earlier head left behind."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[1]
NAME = "train@fvq"
TICKETS = Path(".dvc/tmp/tickets")
TICKET = "0123abcd 89ef\n"

# `ready` holds the number of the stage's process; what it does first, each test says.
STAGE = """\
import os, signal, sys, time
from pathlib import Path

def save_and_leave(*_):
    time.sleep(0.3)
    Path("saved").touch()
    os._exit(75)

{first}
Path(".ready").write_text(str(os.getpid()))
os.rename(".ready", "ready")
deadline = time.monotonic() + 20
while not os.path.exists("go") and time.monotonic() < deadline:
    time.sleep(0.02)
"""
HEEDLESS = "pass"
SAVES = "[signal.signal(number, save_and_leave) for number in (signal.SIGTERM, signal.SIGUSR1)]"
FAILS = "signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))"
UNWARNED = "assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN"


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster; this process works in a folder of its own, in no job."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    TICKETS.mkdir(parents=True)
    (TICKETS / NAME).write_text(TICKET)
    return fake


def run(command: str, files: tuple[str, ...] = (), folders: tuple[str, ...] = ()) -> int:
    from pipeline.job import run_job
    from pipeline.plan import Stage

    return run_job(Stage(NAME, command, 1, {}, list(files), list(folders), []))


def receipt() -> str | None:
    path = TICKETS / f"{NAME}.receipt"
    return path.read_text() if path.exists() else None


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the job of a stage in a process of its own, and returns when the stage is ready for signals."""
    from pipeline.plan import Stage, write_stages

    started = []

    def job(first: str, before: str = "", **variables: str) -> subprocess.Popen[bytes]:
        Path("stage.py").write_text(STAGE.replace("{first}", first))
        command = f"{before}{sys.executable} stage.py"
        write_stages([Stage("other", "false", 1, {}, [], [], []), Stage(NAME, command, 1, {}, [], [], [])])
        with Path("said.txt").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.job", NAME],
                env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
                stderr=said,
            )
        started.append(process)
        wait_for(lambda: Path("ready").exists() or process.poll() is not None)
        assert process.poll() is None, Path("said.txt").read_text()
        return process

    yield job
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def requeued(cluster: FakeSlurm) -> list[str]:
    """What Slurm was asked to put back into the queue."""
    return [words for words in cluster.called("scontrol") if words.startswith("requeue")]


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status and standard error."""
    status = process.wait(20)
    return status, Path("said.txt").read_text()


class TestReceipts:
    def test_a_stage_that_succeeds_leaves_the_ticket_of_its_start(self) -> None:
        from pipeline import tickets

        assert run("true") == 0
        assert receipt() == TICKET
        assert tickets.has_receipt(NAME)
        # Another head may ask for something else meanwhile.
        assert run(f"echo other > {TICKETS / NAME}") == 0
        assert receipt() == TICKET
        assert not tickets.has_receipt(NAME)

    def test_one_that_fails_leaves_none_and_its_status(self) -> None:
        assert run("true") == 0
        assert run("sh -c 'exit 3'") == 3
        assert receipt() is None

    def test_all_commands_of_a_stage_must_succeed(self) -> None:
        """A list of them in dvc.yaml: DVC stops at the first that fails."""
        assert run("touch first; false\ntouch second") == 1
        assert not Path("second").exists()
        assert receipt() is None

    @pytest.mark.parametrize("command", ["touch first && touch second", "touch first; touch second"])
    def test_all_parts_of_a_command_run(self, command: str) -> None:
        assert run(command) == 0
        assert Path("second").exists()

    def test_a_command_with_a_variable_of_its_own(self) -> None:
        assert run("FVQ_PROCESSES=2 sh -c 'test $FVQ_PROCESSES = 2'") == 0

    def test_without_a_ticket_nothing_runs(self) -> None:
        (TICKETS / NAME).unlink()
        with pytest.raises(OSError, match=NAME):
            run("touch ran")
        assert not Path("ran").exists()

    def test_files_of_before_are_gone_from_folders_and_no_others(self) -> None:
        for name in ("live/plots/old.tsv", "live/.hidden", "out/model.txt", "out/history.csv"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("old")
        look = "ls -A live out > seen.txt 2>/dev/null; mkdir live; touch live/new.tsv"
        assert run(f"sh -c '{look}'", files=("out/model.txt", "out/history.csv"), folders=("live", "absent")) == 0
        assert Path("seen.txt").read_text().split() == ["out:", "history.csv", "model.txt"]
        assert list(Path("live").iterdir()) == [Path("live/new.tsv")]

    def test_a_receipt_names_the_run_that_made_the_files(self) -> None:
        """By the provenance of each file's run, which no other writes."""
        from pipeline import tickets

        records = [Path("a/provenance.json"), Path("b/provenance.json")]
        files = ("a/model.txt", *map(str, records))
        make = "mkdir a b; touch a/model.txt; echo 1 | tee a/provenance.json > b/provenance.json"
        assert run(f"sh -c '{make}'", files) == 0
        digest = hashlib.sha256(b"1\n").hexdigest()
        assert receipt() == f"{TICKET}{digest}  a/provenance.json\n{digest}  b/provenance.json\n"
        assert tickets.has_receipt(NAME)
        for path in records:
            path.write_text("2\n")  # as `dvc checkout` does, or Snakemake after a failure
            assert not tickets.has_receipt(NAME)
            path.unlink()
            assert not tickets.has_receipt(NAME)
            path.write_text("1\n")
            assert tickets.has_receipt(NAME)
        (TICKETS / NAME).write_text("another\n")
        assert not tickets.has_receipt(NAME)


class TestSignals:
    def test_the_warning_leaves_a_stage_that_does_not_heed_it_alone(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(HEEDLESS, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGUSR1)
        os.kill(int(Path("ready").read_text()), signal.SIGUSR1)  # Slurm's reaches every process
        time.sleep(0.2)
        assert job.poll() is None
        Path("go").touch()
        assert finish(job) == (0, "")
        assert receipt() == TICKET
        assert requeued(cluster) == []

    def test_a_stage_is_deaf_to_the_warning_until_it_has_a_state(
        self, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        """While it starts, there is nothing to save, and nobody else to heed it."""
        job = start(UNWARNED)
        Path("go").touch()
        assert finish(job) == (0, "")

    @pytest.mark.parametrize(("variables", "wanted"), [({"SLURM_JOB_ID": "7"}, "SIG_IGN"), ({}, "SIG_DFL")])
    def test_so_is_all_of_the_pipeline_in_a_job(self, variables: dict[str, str], wanted: str) -> None:
        """Processes that others than the job start: by ``srun``, ``torchrun``, by hand."""
        program = "import signal, pipeline; print(signal.getsignal(signal.SIGUSR1).name)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == (f"{wanted}\n", "")

    @pytest.mark.parametrize("before", ["", "true\n"])
    def test_the_end_of_a_stage_that_saves_is_waited_for(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm, before: str
    ) -> None:
        """One command, and the last one of several: no shell stands between."""
        cluster.add("7", f"rule_{NAME}", Path.cwd(), state="COMPLETING")
        job = start(SAVES, before, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGTERM)
        assert finish(job) == (75, "")
        assert Path("saved").exists()
        assert receipt() is None

    def test_a_stage_that_dies_of_the_signal_tells_which(self, start: Callable[..., subprocess.Popen[bytes]]) -> None:
        job = start(HEEDLESS)
        job.send_signal(signal.SIGTERM)
        assert finish(job) == (128 + signal.SIGTERM, "")
        assert receipt() is None

    def test_a_killed_stage_tells_of_memory(self, start: Callable[..., subprocess.Popen[bytes]]) -> None:
        job = start(HEEDLESS)
        os.kill(int(Path("ready").read_text()), signal.SIGKILL)
        status, said = finish(job)
        assert (status, said.count("\n")) == (137, 1)
        assert said.startswith(f"fvq: error: {NAME}: killed") and "memory" in said
        assert receipt() is None


class TestState:
    """What a stage could go on from, which it notes when it is done."""

    @pytest.fixture(autouse=True)
    def saved(self) -> Path:
        path = Path("runs/state")
        path.mkdir(parents=True)
        (path / "step-3.pt").touch()
        return path

    def test_it_goes_when_the_receipt_is_there(self, saved: Path) -> None:
        assert run(f"printf runs/state > $FVQ_STATE_NOTE; test -e {saved}") == 0
        assert receipt() and not saved.exists()
        assert sorted(path.name for path in TICKETS.iterdir()) == [NAME, f"{NAME}.lock", f"{NAME}.receipt"]

    def test_it_stays_where_the_job_ends_before(self, saved: Path) -> None:
        """Such as in torchrun's own end; the job that comes next has nothing left to do but that."""
        assert run("printf runs/state > $FVQ_STATE_NOTE; exit 1") == 1
        assert saved.exists() and receipt() is None

    def test_without_a_note_nothing_goes(self, saved: Path) -> None:
        assert run("true") == 0
        assert saved.exists()


class TestRequeue:
    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
    @pytest.mark.parametrize("is_for_job", [True, False])
    def test_a_stage_that_saved_goes_back_into_the_queue(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm, number: int, is_for_job: bool
    ) -> None:
        """Warned, or preempted with time to save; whichever process Slurm's signal came to."""
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(SAVES, SLURM_JOB_ID="7")
        os.kill(job.pid if is_for_job else int(Path("ready").read_text()), number)
        wait_for(lambda: "goes back" in Path("said.txt").read_text())
        assert Path("saved").exists()
        assert job.poll() is None  # its end is Slurm's to bring: the head would take any other for a failure
        job.send_signal(signal.SIGTERM)
        status, said = finish(job)
        assert status != 0
        assert said == f"fvq: {NAME}: job 7 goes back into the queue\n"
        assert requeued(cluster) == ["requeue 7"]
        assert receipt() is None

    def test_a_job_that_slurm_does_not_requeue_ends(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        cluster.requeues = False
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(SAVES, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGUSR1)
        assert finish(job) == (75, f"fvq: {NAME}: not queued again: Job has already finished for job 7\n")
        assert requeued(cluster) == ["requeue 7"]

    def test_a_stage_that_cannot_save_goes_back_too_where_the_job_is_not_being_ended(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        """Preempted with some time: Slurm takes the job's end for its own, and would not start it again."""
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(HEEDLESS, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGTERM)
        wait_for(lambda: "goes back" in Path("said.txt").read_text())
        assert requeued(cluster) == ["requeue 7"]

    def test_a_cancelled_stage_does_not(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        cluster.add("7", f"rule_{NAME}", Path.cwd(), state="COMPLETING")
        job = start(HEEDLESS, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGTERM)
        assert finish(job) == (128 + signal.SIGTERM, "")
        assert requeued(cluster) == []

    @pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT"])
    def test_nor_does_one_that_slurm_is_ending(
        self, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        """Cancelled, or over its time: whoever did it starts the job again, or does not."""
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        cluster.add("7", f"rule_{NAME}", Path.cwd(), state=state)
        cluster.add("77", f"rule_{NAME}", Path.cwd())
        assert run("sh -c 'exit 75'") == 75
        assert requeued(cluster) == []

    def test_outside_of_a_job_there_is_no_queue(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(SAVES)
        job.send_signal(signal.SIGUSR1)
        assert finish(job) == (75, "")
        assert cluster.called("scontrol") == []

    def test_a_warned_stage_that_fails_is_not_asked_again(
        self, start: Callable[..., subprocess.Popen[bytes]], cluster: FakeSlurm
    ) -> None:
        cluster.add("7", f"rule_{NAME}", Path.cwd())
        job = start(FAILS, SLURM_JOB_ID="7")
        job.send_signal(signal.SIGUSR1)
        assert finish(job) == (1, "")
        assert requeued(cluster) == []


class TestEarlierJobs:
    """Those that a killed head left: the marker names them."""

    @pytest.fixture(autouse=True)
    def made(self) -> None:
        """What an earlier job made, all of it, and its receipt."""
        assert self.run()

    def run(self) -> bool:
        """Whether the stage ran."""
        Path("ran").unlink(missing_ok=True)
        make = "touch ran model.txt; mkdir -p live out; date +%s.%N > out/provenance.json"
        assert run(f"sh -c '{make}'", files=("model.txt", "out/provenance.json"), folders=("live",)) == 0
        digest = hashlib.sha256(Path("out/provenance.json").read_bytes()).hexdigest()
        assert receipt() == f"{TICKET}{digest}  out/provenance.json\n"
        return Path("ran").exists()

    def mark(self, *jobs: str) -> None:
        (TICKETS / f"{NAME}.jobs").write_text("\n".join(jobs))

    def test_what_they_made_is_not_made_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Outside of Slurm every one that is listed came before."""
        self.mark("5", "6")
        for _ in range(2):  # the marker is the head's, which writes it anew at its start
            assert not self.run()
            assert capsys.readouterr().err == f"{NAME}: made by an earlier job\n"
        assert Path("live").exists()

    def test_without_the_marker_a_receipt_saves_no_run(self) -> None:
        assert self.run()

    def test_of_three_heads_jobs_the_first_runs_the_stage(
        self, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Job 5 waited in the queue when the first head died, 6 when the second did; the receipt is one of before."""
        self.mark("5", "6")
        for number in ("5", "6", "7"):
            cluster.add(number, f"rule_{NAME}", Path.cwd(), state="PENDING")
        for number, runs in (("5", True), ("6", False), ("7", False)):
            monkeypatch.setenv("SLURM_JOB_ID", number)
            assert self.run() is runs
            cluster.end(number)
        assert capsys.readouterr().err == f"{NAME}: made by an earlier job\n" * 2

    @pytest.mark.parametrize(("listed", "current", "runs"), [("9", "10", False), ("10", "9", True)])
    def test_earlier_is_the_smaller_number(
        self, monkeypatch: pytest.MonkeyPatch, listed: str, current: str, runs: bool
    ) -> None:
        self.mark(listed)
        monkeypatch.setenv("SLURM_JOB_ID", current)
        assert self.run() is runs

    @pytest.mark.parametrize("path", ["model.txt", "live", "out/provenance.json", f"{TICKETS}/{NAME}.receipt"])
    def test_what_is_missing_is_made(self, path: str) -> None:
        self.mark("5")
        Path(path).rmdir() if path == "live" else Path(path).unlink()
        assert self.run()

    @pytest.mark.parametrize("path", [f"{TICKETS}/{NAME}.receipt", "out/provenance.json"])
    def test_what_another_run_made_is_made(self, path: str) -> None:
        self.mark("5")
        Path(path).write_text("of another\n")
        assert self.run()

    @pytest.mark.parametrize("is_made", [True, False])
    def test_a_job_does_not_wait_for_itself_nor_for_later_ones(
        self, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, is_made: bool
    ) -> None:
        self.mark("6", "7")
        cluster.add("6", f"rule_{NAME}", Path.cwd())
        cluster.add("7", f"rule_{NAME}", Path.cwd(), state="PENDING")
        monkeypatch.setenv("SLURM_JOB_ID", "6")
        if not is_made:
            (TICKETS / f"{NAME}.receipt").unlink()
        assert self.run()


class TestRestarts:
    """Jobs that Slurm starts again, such as those whose node died after their work was done."""

    @pytest.fixture(autouse=True)
    def made(self) -> None:
        assert run("touch model.txt", files=("model.txt",)) == 0

    def run(self) -> bool:
        """Whether the stage ran."""
        assert run("touch ran", files=("model.txt",)) == 0
        return Path("ran").exists()

    @pytest.fixture
    def in_job(self, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def put(restarts: int) -> None:
            cluster.add("7", f"rule_{NAME}", Path.cwd(), restarts=restarts)
            monkeypatch.setenv("SLURM_JOB_ID", "7")

        return put

    def test_what_the_first_start_made_is_not_made_again(
        self, in_job: Callable[[int], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_job(1)
        assert not self.run()
        assert capsys.readouterr().err == f"{NAME}: made by an earlier job\n"

    def test_the_first_start_runs_the_stage_even_so(self, in_job: Callable[[int], None]) -> None:
        """It was asked for: ``snakemake --forcerun``."""
        in_job(0)
        assert self.run()

    def test_a_stage_that_was_not_finished_goes_on(self, in_job: Callable[[int], None]) -> None:
        in_job(1)
        (TICKETS / f"{NAME}.receipt").unlink()
        assert self.run()

    def test_what_was_removed_is_made(self, in_job: Callable[[int], None]) -> None:
        in_job(1)
        Path("model.txt").unlink()
        assert run("touch model.txt ran", files=("model.txt",)) == 0
        assert Path("ran").exists()


class TestTwice:
    def test_a_second_job_waits_for_that_of_a_killed_head_and_finds_it_done(
        self, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        first = start(HEEDLESS)
        Path("ready").unlink()
        second = subprocess.Popen(
            [sys.executable, "-m", "pipeline.job", NAME],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert second.stderr is not None
            assert "another process is at work on it; waiting for its end" in second.stderr.readline()
            assert second.poll() is None
        finally:
            Path("go").touch()
            _, said = second.communicate(timeout=20)
            assert finish(first) == (0, "")
        assert (second.returncode, said) == (0, f"{NAME}: made by an earlier job\n")
        assert not Path("ready").exists(), "the stage ran twice"
        assert receipt() == TICKET

    def test_a_stage_that_outlives_its_killed_job_keeps_others_off(
        self, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        first = start(HEEDLESS)
        first.kill()
        first.wait()
        with Path(f".dvc/tmp/tickets/{NAME}.lock").open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path("go").touch()
            wait_for(lambda: can_lock(lock))


def can_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class TestHead:
    @pytest.fixture
    def head(self) -> Iterator[Callable[[], subprocess.Popen[str]]]:
        """Starts processes that become the head of this folder, or say why not."""
        program = """
from pipeline import dag
dag.become_head()
print("the head", flush=True)
input()
"""
        started = []

        def become() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.append(process)
            return process

        yield become
        for process in started:
            process.kill()
            process.wait()

    def test_there_is_one_and_a_killed_one_leaves_no_lock(self, head: Callable[[], subprocess.Popen[str]]) -> None:
        first = head()
        assert first.stdout and first.stdout.readline() == "the head\n"
        said, _ = head().communicate(timeout=20)
        assert f"UserError: snakemake is at work in this folder already: process {first.pid} on " in said
        assert "the head" not in said
        first.kill()
        first.wait()
        again = head()
        assert again.stdout and again.stdout.readline() == "the head\n"
