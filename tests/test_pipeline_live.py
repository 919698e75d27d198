"""DVCLive's files: they hold the rows, follow from them alone, and nothing else changes on disk or goes out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    {"step": 25, "loss": 0.1 + 0.2, "usage": 1.0, "learning_rate": 3e-05},
    {"step": 50, "loss": 1e-9, "usage": 0.5, "learning_rate": 0.003, "adversarial": -0.25},
    {"step": 60, "loss": 123456.789, "usage": 0.25, "learning_rate": 0.001, "adversarial": 0.0},
]
NAMES = {"loss", "usage", "learning_rate", "adversarial"}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A git repository without a commit to stand in."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    return tmp_path


def live_log(folder):
    from pipeline.live import live_log

    return live_log(folder)


def write(folder, rows=ROWS):
    log = live_log(folder)
    for row in rows:
        log(row)
    return log


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def columns(folder):
    """What the files say: by name, the pairs of step and value."""
    found = {}
    for path in Path(folder, "plots/metrics").iterdir():
        header, *lines = (line.split("\t") for line in path.read_text().splitlines())
        assert header == ["step", path.stem]
        found[path.stem] = [(int(step), float(value)) for step, value in lines]
    return found


def as_columns(rows):
    names = {name for row in rows for name in row} - {"step"}
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def test_the_rows_come_back_while_it_runs(project):
    log = live_log(Path("live"))
    for done, row in enumerate(ROWS, 1):
        log(row)
        assert columns("live") == as_columns(ROWS[:done])
    assert set(files("live")) == {f"plots/metrics/{name}.tsv" for name in NAMES}


def test_the_same_rows_are_the_same_bytes(project):
    write(Path("one"))
    write(Path("two/below"))
    assert files("one") == files("two/below")


def test_a_resumed_training_gives_its_rows_again(project):
    write(Path("whole"))
    write(Path("live"), [{**row, "gone": 1.0} for row in ROWS[:2]])
    write(Path("live"))
    assert files("live") == files("whole")


def test_under_another_run_s_variables(project, monkeypatch):
    write(Path("whole"))
    write(Path("live"), ROWS[:2])
    ours = {
        "DVCLIVE_RESUME": "true",
        "DVCLIVE_TEST": "true",
        "DVC_STUDIO_TOKEN": "token",
        "DVC_STUDIO_REPO_URL": "url",
        "DVC_STUDIO_URL": "http://localhost:9",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    write(Path("live"))
    assert files("live") == files("whole")
    assert {name: os.environ[name] for name in ours} == ours
    assert "DVC_STUDIO_OFFLINE" not in os.environ


def test_it_writes_nowhere_else_and_says_nothing(project, capfd):
    before = files(project)
    write(project / "results/live")
    written = {f"results/live/plots/metrics/{name}.tsv" for name in NAMES}
    assert {name: content for name, content in files(project).items() if name not in written} == before
    assert capfd.readouterr() == ("", "")


def test_dvclive_is_imported_where_it_is_needed():
    program = "import sys, pipeline.live; sys.exit('dvclive' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
