"""Work in segments: none is done twice, none is lost, and what is damaged is done anew."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projects import run_script
from safetensors.torch import load_file

from fvq.evaluate import segments
from fvq.evaluate.segments import segment_bounds, work_in_segments
from fvq.runtime.interruption import Interrupted

TESTS = str(Path(__file__).parent)


@pytest.fixture
def short(monkeypatch):
    """Segments of 4 images."""
    monkeypatch.setattr(segments, "_SHORTEST", 4)


class Squares:
    """Squares of the images' numbers; counts what is asked of it."""

    def __init__(self, disturb=lambda start: None):
        self.done, self._disturb = [], disturb

    def __call__(self, start, stop, advance):
        self.done.append((start, stop))
        for _ in range(start, stop):
            self._disturb(start)
            advance(1)
        return {"squares": torch.arange(start, stop) ** 2, "grid": torch.arange(6).view(2, 3).T + start}


def squares(count, work, folder=None):
    parts = list(work_in_segments(count, work, description="squares", folder=folder))
    assert all(torch.equal(part["grid"], torch.arange(6).view(2, 3).T + part["squares"][0].sqrt()) for part in parts)
    return torch.cat([part["squares"] for part in parts]).tolist()


@given(count=st.one_of(st.integers(1, 10_000), st.integers(1, 3_000_000)))
def test_bounds_are_whole_and_as_even_as_can_be(count):
    bounds = segment_bounds(count)
    assert bounds[0][0] == 0 and bounds[-1][1] == count and len(bounds) <= 32
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    lengths = {stop - start for start, stop in bounds[:-1]}
    assert len(lengths) <= 1 and all(length >= 2000 for length in lengths)
    assert 0 < bounds[-1][1] - bounds[-1][0] <= max(2000, *lengths, 0)


@pytest.mark.parametrize("count", [1, 4, 11, 200])
def test_segments_come_in_order_with_and_without_a_folder(short, tmp_path, count):
    expected = [number**2 for number in range(count)]
    assert squares(count, Squares()) == squares(count, Squares(), tmp_path) == expected


def test_without_a_folder_a_segment_is_done_when_it_is_asked_for(short):
    work = Squares()
    parts = work_in_segments(11, work, description="squares")
    next(parts)
    assert work.done == [(0, 4)]
    assert len(list(parts)) == 2


def test_finished_segments_are_found_again(short, tmp_path):
    squares(11, Squares(), tmp_path)
    again = Squares()
    assert squares(11, again, tmp_path) == [number**2 for number in range(11)] and not again.done
    (tmp_path / "images-00000004-00000008.safetensors").unlink()
    assert squares(11, again, tmp_path) == [number**2 for number in range(11)] and again.done == [(4, 8)]


def test_finished_segments_are_read_once(short, tmp_path, monkeypatch):
    squares(11, Squares(), tmp_path)
    read = []
    monkeypatch.setattr(segments, "load_file", lambda path: read.append(path) or load_file(path))
    assert squares(11, Squares(), tmp_path) == [number**2 for number in range(11)]
    assert len(read) == 3


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_damaged_segment_is_done_anew_and_kept(short, tmp_path, left):
    squares(11, Squares(), tmp_path)
    path = tmp_path / "images-00000004-00000008.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    again = Squares()
    assert squares(11, again, tmp_path) == [number**2 for number in range(11)]
    assert again.done == [(4, 8)] and path.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_it_and_the_finished_segments_stay(short, tmp_path, number):
    before = signal.getsignal(number)
    stopped = Squares(lambda start: os.kill(os.getpid(), number) if start == 8 else None)
    with pytest.raises(Interrupted) as told:
        squares(14, stopped, tmp_path)
    assert str(told.value) == (
        f"squares: {number.name} received; 2 of 4 segments are kept, the same command goes on from there"
    )
    assert signal.getsignal(number) is before
    again = Squares()
    assert squares(14, again, tmp_path) == [number**2 for number in range(14)]
    assert again.done == [(8, 12), (12, 14)]


def test_an_error_leaves_the_finished_segments(short, tmp_path):
    def fail(start):
        if start == 4:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        squares(11, Squares(fail), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["images-00000000-00000004.safetensors"]


def test_several_processes_need_a_folder(monkeypatch):
    monkeypatch.setattr(segments, "number_of_processes", lambda: 2)
    with pytest.raises(ValueError, match="needs a folder that all of them see"):
        next(work_in_segments(3, Squares(), description="squares"))


def test_killed_inside_a_write_the_next_run_does_that_segment_and_the_rest(tmp_path):
    told = run_script(
        f"import sys; sys.path.insert(0, {TESTS!r})\n",
        """
        import os, signal
        from pathlib import Path
        from test_evaluate_segments import Squares, segments, squares

        segments._SHORTEST, folder = 4, Path(sys.argv[1])
        write, written = segments.save_file, []

        def killed_in_the_second(tensors, path):
            write(tensors, path)
            written.append(path)
            if len(written) == 2:
                os.truncate(path, 50)
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            segments.save_file = killed_in_the_second
            squares(11, Squares(), folder)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        again = Squares()
        assert squares(11, again, folder) == [number**2 for number in range(11)]
        print(again.done, file=sys.stderr)
        """,
        tmp_path,
    )
    assert told.splitlines()[-1] == "[(4, 8), (8, 11)]"


TWO = f"""
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {TESTS!r})
    from fvq.runtime.interruption import Interrupted
    from fvq.runtime.processes import process_group
    from test_evaluate_segments import Squares, segments, squares

    segments._SHORTEST = 4
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

    def stop_at_work(start):
        if start == 4:  # the second process's first segment
            os.kill(os.getpid(), signal.SIGUSR1)

    def stop_the_one_that_waits(start):
        if start == 16:  # the first process's last segment
            while not (folder / "waiting/images-00000012-00000016.safetensors").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            os.kill(int((folder / "second").read_text()), signal.SIGTERM)

    if rank == 1:
        (folder / "second").write_text(str(os.getpid()))
    with process_group():
        for name, disturb in (("working", stop_at_work), ("waiting", stop_the_one_that_waits)):
            try:
                squares(20, Squares(disturb), folder / name)
            except Interrupted as told:
                (folder / f"{{name}}-{{rank}}").write_text(str(told))
"""


def test_a_signal_to_one_process_interrupts_both(tmp_path):
    """Whether it came to the second process at work or while it waited for the first."""
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    for rank in (0, 1):
        assert "SIGUSR1 received; 3 of 5 segments are kept" in (tmp_path / f"working-{rank}").read_text()
        assert "SIGTERM received; 5 of 5 segments are kept" in (tmp_path / f"waiting-{rank}").read_text()
