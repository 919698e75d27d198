"""Records of running stages: what they tell, how they end, and that they never disturb the work."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fvq.runtime import status
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import write_json
from fvq.runtime.interruption import Interrupted
from fvq.runtime.progress import track
from fvq.runtime.status import read_queue, read_records, remove_queue, status_record, write_queue
from fvq.runtime.training import run_steps


@pytest.fixture
def path(tmp_path):
    return tmp_path / "status" / "train_tokenizer@fvq.json"


@pytest.fixture
def quick_heart(monkeypatch):
    monkeypatch.setattr(status, "_HEARTBEAT_SECONDS", 0.002)


def record(path, **more):
    return status_record(path, stage="train_tokenizer", row="fvq", **more)


def read(path):
    return read_records(path.parent).get("train_tokenizer@fvq")


def wait_until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_record_is_there_while_the_work_runs(path):
    before = datetime.now(UTC).replace(microsecond=0)
    with record(path, job="4711", log="runs/study/logs/fvq.out"):
        found = read(path)
        assert list(read_records(path.parent)) == ["train_tokenizer@fvq"]
        assert (found.stage, found.row, found.state) == ("train_tokenizer", "fvq", "running")
        assert (found.host, found.process) == (socket.gethostname(), os.getpid())
        assert (found.job, found.log) == ("4711", "runs/study/logs/fvq.out")
        assert found.progress is None and found.message is None
        assert before <= found.started_at <= found.updated_at <= datetime.now(UTC)
        assert json.loads(path.read_text())["started_at"].endswith("Z")
    assert list(path.parent.iterdir()) == []


def test_a_stage_that_runs_once_has_its_name_alone(tmp_path):
    with status_record(tmp_path / "render.json", stage="render", row=None):
        assert list(read_records(tmp_path)) == ["render"]


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (Interrupted("training: SIGUSR1 received"), "interrupted", "training: SIGUSR1 received"),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(75), "interrupted", "exit status 75"),
        (SystemExit(3), "failed", "exit status 3"),
        (SystemExit("no images"), "failed", "exit status no images"),
        (ValueError("two\n lines"), "failed", "ValueError: two lines"),
        (ValueError("x" * 600), "failed", f"ValueError: {'x' * 487}…"),
        (BrokenPipeError(), "failed", "BrokenPipeError"),
    ],
)
def test_what_an_error_leaves(path, error, state, message):
    with pytest.raises(type(error)) as raised, record(path):
        raise error
    assert raised.value is error
    found = read(path)
    assert (found.state, found.message) == (state, message)


@pytest.mark.parametrize(
    "error",
    [
        UserError("seed: must be a number,\n not x"),
        OSError(errno.ENOSPC, "No space left on device", "/scratch/state.pt"),
        OSError("a socket's own words"),
        MemoryError(),
    ],
)
def test_mendable_errors_are_worded_as_commands_word_them(path, capsys, error):
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    said = capsys.readouterr().err
    with pytest.raises(type(error)), record(path):
        raise error
    assert said == f"fvq: error: {read(path).message}\n"
    assert capsys.readouterr().err == ""
    # A command within has told it already and ends with a status.
    with pytest.raises(SystemExit), record(path), one_line_errors():
        raise error
    assert said == f"fvq: error: {read(path).message}\n" == capsys.readouterr().err


def test_an_interruption_that_a_command_has_told(path):
    with pytest.raises(SystemExit), record(path), one_line_errors():
        raise Interrupted("saved after step 3")
    assert (read(path).state, read(path).message) == ("interrupted", "saved after step 3")


def test_an_error_keeps_its_traceback(path):
    def work():
        raise UserError("no")

    with pytest.raises(UserError) as raised, record(path):
        work()
    own = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert own[0] == "test_an_error_keeps_its_traceback" and own[-1] == "work"
    assert not {"_message", "one_line_errors"} & set(own)


def test_an_exit_without_a_status_is_a_normal_end(path):
    for end in (SystemExit(), SystemExit(0)):
        with pytest.raises(SystemExit), record(path):
            raise end
        assert not path.exists()


def test_a_later_run_takes_the_place_of_a_failed_one(path):
    with pytest.raises(ValueError), record(path):
        raise ValueError
    with record(path):
        assert read(path).state == "running" and read(path).message is None
    assert not path.exists()


def test_progress_comes_with_the_heartbeat(path, quick_heart):
    with record(path), track("training", 400, 100, unit="images", per_step=16) as advance:
        advance(20, "loss .5")
        wait_until(lambda: (found := read(path)) and found.progress and found.progress.done == 120)
        found = read(path).progress
        assert (found.description, found.total, found.unit, found.note) == ("training", 400, "steps", "loss .5")
        assert found.seconds_left > 0
        assert found.facts().startswith("120/400 steps, ") and " images/s, loss .5, " in found.facts()


def test_a_failed_record_still_tells_how_far_it_was(path, quick_heart):
    with pytest.raises(ValueError), record(path), track("training", 400) as advance:
        advance(20)
        wait_until(lambda: read(path).progress)
        raise ValueError
    assert read(path).state == "failed" and read(path).progress.done == 20


def test_a_training_is_followed_step_by_step(path, quick_heart):
    def step(index):
        if index == 3:
            wait_until(lambda: (found := read(path)) and found.progress and found.progress.done == 3)
        return {"loss": 1.0}

    with record(path):
        run_steps(step, total_steps=5, state={}, seed=0, log_every=1, on_row=lambda row, new: f"loss {row['loss']}")
        wait_until(lambda: read(path).progress is None)


def test_a_training_that_a_scheduler_interrupts(path, tmp_path):
    def step(index):
        os.kill(os.getpid(), signal.SIGUSR1)
        return {"loss": 1.0}

    with pytest.raises(Interrupted), record(path):
        run_steps(step, total_steps=5, state={}, seed=0, log_every=1, checkpoint_folder=tmp_path / "state")
    assert read(path).state == "interrupted" and "SIGUSR1" in read(path).message


def test_nothing_is_written_after_the_end(path, monkeypatch):
    monkeypatch.setattr(status, "_HEARTBEAT_SECONDS", 0.001)
    begun, main = threading.Event(), threading.current_thread()

    def slow_write(target, data):
        if threading.current_thread() is not main:
            begun.set()
            time.sleep(0.05)  # the block ends while this heartbeat is on its way
        write_json(target, data)

    monkeypatch.setattr(status, "write_json", slow_write)
    with record(path):
        assert begun.wait(10)
    assert not path.exists()
    begun.clear()
    with pytest.raises(UserError), record(path):
        assert begun.wait(10)
        raise UserError("no")
    assert read(path).state == "failed"
    time.sleep(0.1)
    assert read(path).state == "failed"


def test_many_short_runs_leave_nothing(path, monkeypatch):
    monkeypatch.setattr(status, "_HEARTBEAT_SECONDS", 0.0)
    for _ in range(50):
        with record(path):
            time.sleep(0.001)
        assert not path.exists()
    time.sleep(0.02)
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_stops_no_work(path, monkeypatch, capsys, quick_heart):
    attempts = []

    def full(target, data):
        attempts.append(data["state"])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(status, "write_json", full)
    with record(path):
        wait_until(lambda: len(attempts) > 3)
    with pytest.raises(UserError, match=r"^the work's own$"), record(path):
        raise UserError("the work's own")
    assert attempts[-1] == "failed" and not path.exists()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("fvq status" in line and "No space left" in line for line in said)


def test_a_record_comes_back_when_there_is_room_again(path, monkeypatch, quick_heart):
    room = threading.Event()

    def write(target, data):
        if not room.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(target, data)

    monkeypatch.setattr(status, "write_json", write)
    with record(path):
        assert read(path) is None
        room.set()
        wait_until(lambda: read(path))


def test_a_folder_that_cannot_be_made_stops_no_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with record(tmp_path / "file" / "x.json"):
        pass
    assert "no record of this run" in capsys.readouterr().err


def test_nor_does_a_standard_error_that_is_full_too(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        with record(tmp_path / "file" / "x.json"):
            done = True
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert done


_KILLED = """
import sys, time
from pathlib import Path
from fvq.runtime.status import status_record
with status_record(Path(sys.argv[1]), stage="train_tokenizer", row="fvq", job="4711"):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_lost_after_a_minute_of_silence(path):
    with subprocess.Popen([sys.executable, "-c", _KILLED, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = read(path)
    assert found.state == "running" and found.process == process.pid
    silent_for = [found.state_at(found.updated_at + timedelta(seconds=seconds)) for seconds in (0, 15, 60, 61, 10**6)]
    assert silent_for == ["running", "running", "running", "lost", "lost"]
    assert found.state_at(found.updated_at - timedelta(seconds=30)) == "running"  # this machine's clock is behind
    with record(path):
        assert read(path).state_at(datetime.now(UTC)) == "running" and read(path).process == os.getpid()
    assert not path.exists()


def test_one_that_ended_is_never_lost(path):
    with pytest.raises(Interrupted), record(path):
        raise Interrupted("saved")
    assert read(path).state_at(datetime.now(UTC) + timedelta(days=9)) == "interrupted"


def test_damaged_records_and_other_files_are_none(tmp_path):
    with status_record(tmp_path / "render.json", stage="render", row=None):
        whole = (tmp_path / "render.json").read_text()
        (tmp_path / "half.json").write_text(whole[: len(whole) // 2])
        (tmp_path / "empty.json").write_text("")
        (tmp_path / "list.json").write_text("[]")
        (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
        (tmp_path / "state.json").write_text(whole.replace('"running"', '"dreaming"'))
        (tmp_path / "endless.json").write_text(
            whole.replace(
                '"progress": null',
                '"progress": {"description": "", "done": 1, "total": 2, "unit": null, "rate": "", "note": "", '
                '"seconds_left": Infinity}',
            ).replace('"render"', '"sample"')
        )
        (tmp_path / "zoneless.json").write_text(whole.replace("Z", ""))
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "sample.txt").write_text(whole.replace('"render"', '"sample"'))
        (tmp_path / ".sample.json.0a1b.tmp.json").write_text(whole.replace('"render"', '"sample"'))
        write_queue(tmp_path / "queue.json", ["sample@fvq"])
        assert list(read_records(tmp_path)) == ["render"]
    assert read_records(tmp_path / "missing") == {}


def test_the_queue_of_a_head_process(tmp_path):
    path = tmp_path / "status" / "queue.json"
    assert read_queue(path) is None
    write_queue(path, ["render", "sample@fvq"])
    queue = read_queue(path)
    assert queue.stages == ("render", "sample@fvq")
    assert (queue.host, queue.process) == (socket.gethostname(), os.getpid())
    assert abs(queue.written_at - datetime.now(UTC)) < timedelta(seconds=5)
    path.write_text(path.read_text()[:-9])
    assert read_queue(path) is None
    remove_queue(path)
    remove_queue(path)
    assert not path.exists()


def test_a_head_that_is_gone_is_known_on_its_machine_alone(tmp_path):
    path = tmp_path / "queue.json"
    write_queue(path, [])
    assert not read_queue(path).ended
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"process": gone.pid}))
    assert read_queue(path).ended
    path.write_text(json.dumps(content | {"process": gone.pid, "host": "elsewhere"}))
    assert not read_queue(path).ended
    path.write_text(json.dumps(content | {"process": 10**30}))
    assert read_queue(path) is None


def test_records_need_no_torch():
    code = "import sys, fvq.runtime.status; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
