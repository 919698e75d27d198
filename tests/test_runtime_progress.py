"""Progress as people read it: on a terminal, in a file, after an interruption."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fvq.runtime import progress
from fvq.runtime.progress import Standing, duration, latest_standing, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that only ``passes``."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def passes(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_line_every_half_minute(clock, capsys):
    with track("training the tokenizer", 5000, unit="images", per_step=103) as advance:
        for _ in range(300):
            clock.passes(0.25)
            advance(1, "usage 97.1 %, loss .0043")
    assert lines(capsys) == [
        "training the tokenizer: 120/5,000 steps, 412 images/s, usage 97.1 %, loss .0043, 20 min 20 s left",
        "training the tokenizer: 240/5,000 steps, 412 images/s, usage 97.1 %, loss .0043, 19 min 50 s left",
    ]


def test_counts_of_one_and_without_a_unit(clock, capsys):
    for unit in ("images", None):
        with track("reading", 2000, unit=unit) as advance:
            clock.passes(30)
            advance(1000)
    assert lines(capsys) == [
        "reading: 1,000/2,000 images, 33 images/s, 30 s left",
        "reading: 1,000/2,000, 33/s, 30 s left",
    ]


def test_slow_counts(clock, capsys):
    with track("training", 10) as advance:
        for _ in range(2):
            clock.passes(100)
            advance(1)
    assert lines(capsys) == ["training: 1/10, 0.01/s, 15 min 0 s left", "training: 2/10, 0.01/s, 13 min 20 s left"]


def test_what_was_done_before_is_no_part_of_the_rate(clock, capsys):
    with track("training", 1100, 1000) as advance:
        clock.passes(40)
        advance(20)
    assert lines(capsys) == ["training: 1,020/1,100, 0.5/s, 2 min 40 s left"]


def test_the_rate_is_that_of_the_last_seconds(clock, capsys):
    with track("training", 10_000) as advance:
        for seconds, times in ((1, 29), (0.05, 700)):
            for _ in range(times):
                clock.passes(seconds)
                advance(1)
    first, second = (float(re.search(r", ([\d.]+)/s", line)[1]) for line in lines(capsys))
    assert 1 < first < 3
    assert second == 20


def test_a_note_stays_until_the_next(clock, capsys):
    with track("training", 100) as advance:
        for note in ("loss .5", "", "loss .4"):
            clock.passes(31)
            advance(1, note)
    assert [re.search(r"loss \.\d", line)[0] for line in lines(capsys)] == ["loss .5", "loss .5", "loss .4"]


def test_nothing_at_the_end_in_no_time_or_hidden(clock, capsys):
    with track("reading", 3) as advance:
        advance(1)
        clock.passes(29.9)
        advance(1)
        clock.passes(60)
        advance(1)
    with track("training", 100, hidden=True) as advance:
        clock.passes(60)
        advance(1, "loss .5")
        advance(1)
    assert lines(capsys) == []


def on_a_terminal(monkeypatch, width):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda file: Console(file=screen, force_terminal=True, width=width, color_system=None)
    )
    with track("training the tokenizer", 5000, unit="images", per_step=100) as advance:
        advance(1200, "usage 97.1 %, loss .0043")
    return [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", screen.getvalue()).splitlines() if line.strip()]


def test_a_bar_on_a_terminal(monkeypatch):
    shown = on_a_terminal(monkeypatch, 160)
    assert any(
        re.search(
            r"^training the tokenizer .+ 1,200/5,000 steps, [\d,]+ images/s, usage 97\.1 %, loss \.0043, "
            r"\d+ s left, 0 s so far$",
            line.strip(),
        )
        for line in shown
    ), shown


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch):
    shown = on_a_terminal(monkeypatch, 80)
    assert max(len(line) for line in shown) <= 80
    words = " ".join(" ".join(shown).split())
    for fact in ("training the tokenizer", "1,200/5,000 steps", "images/s", "usage 97.1 %", "loss .0043", "so far"):
        assert fact in words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (38.4, "38 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3599.6, "1 h 0 min"),
        (11_520, "3 h 12 min"),
        (86_390, "1 d 0 h"),
        (187_000, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e8))
def test_durations_are_rounded_to_their_last_unit(seconds):
    sizes = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+) (\w+)", duration(seconds))
    assert abs(sum(int(count) * sizes[unit] for count, unit in parts) - seconds) <= sizes[parts[-1][1]] / 2 + 1e-6
    assert all(0 <= int(count) < {"s": 60, "min": 60, "h": 24, "d": 10**9}[unit] for count, unit in parts)


def test_the_latest_open_track_tells_others_how_far_it_is(clock):
    assert latest_standing() is None
    with track("reading", 10, unit="images") as outer:
        clock.passes(2)
        outer(4, "first")
        with track("training", 100, 20, unit="images", per_step=8) as inner:
            assert latest_standing() == Standing("training", 20, 100, "steps", "", "", None)
            clock.passes(5)
            inner(10, "loss .5")
            assert latest_standing() == Standing("training", 30, 100, "steps", "16 images/s", "loss .5", 35)
            with track("hidden", 3, hidden=True) as nobody:
                nobody(1)
                assert latest_standing().description == "training"
        assert latest_standing() == Standing("reading", 4, 10, "images", "2 images/s", "first", 3)
    with pytest.raises(ValueError), track("failing", 3):
        raise ValueError
    assert latest_standing() is None


def test_a_track_on_a_terminal_tells_it_too(monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=io.StringIO(), force_terminal=True))
    with track("reading", 10) as advance:
        advance(4)
        assert latest_standing().facts().startswith("4/10, ")
