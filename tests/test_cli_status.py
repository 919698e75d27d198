"""``fvq status``: what it makes of a study's files."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fvq.cli import status
from fvq.cli.app import main
from fvq.cli.stages import STAGES
from fvq.runtime.files import write_json
from fvq.runtime.progress import Standing
from fvq.runtime.status import Record, write_queue, write_waiting

ROOT = Path(__file__).parents[1]
NOW = datetime.now(UTC).replace(microsecond=0)
HALF = Standing("training", 2480, 6000, "steps", "412 images/s", "loss .0043", 11_520.0)
SINGLE = ("prepare_data", "train_extractor", "list_further", "small_experiments", "map_codes", "render")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with the default study's parameters: five tokenizers, two of them with generators."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert list(content["rows"]) == ["vq", "linear", "mlp5", "fvq", "fvq_no_annealing"]
    assert list(content["generators"]) == ["vq", "fvq"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    # When the module is read, others' tests may be run before these.
    monkeypatch.setattr(sys.modules[__name__], "NOW", datetime.now(UTC).replace(microsecond=0))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield content["study"]
    monkeypatch.undo()
    time.tzset()


def change(**changes):
    content = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))


def finish(study, name, ago=3600):
    """The provenance record of a stage that ended so many seconds ago, after ten."""
    stage, _, row = name.partition("@")
    folder = Path("reports") if stage == "render" else Path("results", study, stage, row)
    started = (NOW - timedelta(seconds=ago + 10)).isoformat(timespec="seconds")
    facts = {"started_at": started, "wall_seconds": 10.0, "parameters": {"study": study}}
    write_json(folder / "provenance.json", facts)


def leave(study, name, state, ago=5, since=600, **more):
    """A stage's record, written so many seconds ago by a run that began so many seconds ago."""
    stage, _, row = name.partition("@")
    facts = {"host": "n1", "process": 12, "job": None, "log": None, "progress": None, "message": None} | more
    started, updated = NOW - timedelta(seconds=since), NOW - timedelta(seconds=ago)
    record = Record(stage=stage, row=row or None, state=state, started_at=started, updated_at=updated, **facts)
    write_json(Path("runs", study, "status", f"{name}.json"), record.model_dump(mode="json"))
    return record


def queue(study, *stages, ago=0, **more):
    path = Path("runs", study, "status", "queue.json")
    write_queue(path, stages)
    written = (NOW - timedelta(seconds=ago)).isoformat()
    write_json(path, json.loads(path.read_text()) | {"written_at": written} | more)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["status", *arguments])
    output = capsys.readouterr()
    return exit_.value.code or 0, output.out, output.err


def shown(capsys):
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    return out


def tables(out):
    """The tables by the word above their names: a dictionary of (name, column) to cell."""
    found, lines = {}, [line.rstrip() for line in out.splitlines()]
    for number, line in enumerate(lines):
        if set(line) == {"─"}:
            words = [(match[0], match.start()) for match in re.finditer(r"\S+", lines[number - 1])]
            if len(words) == 1:
                words.append(("", max(len(row.split("  ")[0]) for row in lines[number + 1 : number + 7])))
            title, cells = words[0][0], {}
            for row in lines[number + 1 :]:
                if not row.strip():
                    break
                ends = [start for _, start in words[1:]] + [len(row)]
                name = row[: ends[0]].strip()
                for (word, start), end in zip(words[1:], ends[1:], strict=True):
                    cells[name, word] = row[start:end].strip()
            found[title] = cells
    return found


def test_the_stages_are_those_of_the_pipeline():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    groups = {
        name: "repetitions" if "matrix" in stage else stage["foreach"].strip("${}") if "foreach" in stage else None
        for name, stage in stages.items()
    }
    assert groups == STAGES


def test_a_study_that_nobody_has_begun(study, capsys):
    out = shown(capsys)
    first = out.splitlines()[0]
    assert first == f"study {study}: 0 of 31 stages done"
    found = tables(out)
    assert list(found) == ["tokenizer", "generator", "stage"]
    assert set(found["generator"].values()) == set(found["stage"].values()) == {"–"}
    assert [name for name, column in found["stage"]] == list(SINGLE)
    tokenizer = found["tokenizer"]
    assert {column for _, column in tokenizer} == {"train", "freeze", "evaluate", "tokens"}
    assert [row for row, column in tokenizer if column == "tokens" and tokenizer[row, column]] == ["vq", "fvq"]


def test_every_state_has_its_cell_and_its_line(study, capsys):
    for name in ("prepare_data", "train_tokenizer@vq", "freeze_codebook@vq", "render"):
        finish(study, name)
    log = f"runs/{study}/logs/train_tokenizer@fvq.out"
    leave(study, "train_tokenizer@fvq", "running", job="4711", log=log, progress=HALF)
    leave(study, "train_tokenizer@linear", "running", ago=90)
    leave(study, "train_tokenizer@mlp5", "failed", message="train_tokenizer: loss is nan at step 120", log="mlp5.out")
    leave(study, "sample@vq", "interrupted", message="sampling: SIGUSR1 received")
    leave(study, "evaluate_tokenizer@vq", "running")
    queue(study, "freeze_codebook@fvq", "map_codes", ago=300)
    out = shown(capsys)
    found = tables(out)
    tokenizer, generator, single = found["tokenizer"], found["generator"], found["stage"]
    assert tokenizer["vq", "train"] == tokenizer["vq", "freeze"] == "done"
    assert tokenizer["vq", "evaluate"] == "running"
    assert tokenizer["fvq", "train"] == "41 % 3 h left"
    assert tokenizer["fvq", "freeze"] == "queued"
    assert tokenizer["linear", "train"] == "lost"
    assert tokenizer["mlp5", "train"] == "failed"
    assert generator["vq", "sample"] == "interrupted" and generator["fvq", "sample"] == "–"
    assert single["render", ""] == single["prepare_data", ""] == "done" and single["map_codes", ""] == "queued"
    begun, heard, silent = ((NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M") for seconds in (600, 5, 90))
    words = " ".join(out.split())
    head = f"head process {os.getpid()} on {os.uname().nodename} since {NOW - timedelta(seconds=300):%Y-%m-%d %H:%M}"
    counts = "4 of 31 stages done, 1 failed, 1 lost, 1 interrupted, 2 running, 2 queued"
    assert words.startswith(f"study {study}: {counts}; {head} ")
    assert words.endswith(
        f"train_tokenizer@mlp5 failed on n1, process 12, {heard}; train_tokenizer: loss is nan at step 120 "
        f"log mlp5.out "
        f"train_tokenizer@linear lost on n1, process 12, last heard of {silent} "
        f"sample@vq interrupted on n1, process 12, {heard}; sampling: SIGUSR1 received "
        f"train_tokenizer@fvq running on n1, job 4711, since {begun}; training: 2,480/6,000 steps, 412 images/s, "
        f"loss .0043, 3 h 12 min left log {log} "
        f"evaluate_tokenizer@vq running on n1, process 12, since {begun}"
    )
    assert f"\n  log {log}\n" in out


@pytest.mark.parametrize(
    ("progress", "cell"),
    [
        (HALF, "41 % 3 h left"),
        (Standing("training", 5999, 6000, "steps", "", "", 38), "99 % 38 s left"),
        (Standing("training", 6000, 6000, "steps", "", "", 0), "100 % 0 s left"),
        (Standing("training", 29, 100, "steps", "", "", None), "29 %"),
        (Standing("training", 0, 6000, "steps", "", "", None), "0 %"),
        (Standing("training", 7000, 6000, "steps", "", "", None), "100 %"),
        (Standing("reading", 0, 0, None, "", "", None), "running"),
        (None, "running"),
    ],
)
def test_progress_in_a_cell(study, capsys, progress, cell):
    leave(study, "train_tokenizer@fvq", "running", progress=progress)
    assert tables(shown(capsys))["tokenizer"]["fvq", "train"] == cell


def test_the_newest_word_counts(study, capsys):
    def cell():
        return tables(shown(capsys))["tokenizer"]["fvq", "train"]

    name = "train_tokenizer@fvq"
    finish(study, name, ago=3600)
    assert cell() == "done"
    queue(study, name, ago=1800)
    assert cell() == "queued"  # it runs again
    leave(study, name, "failed", ago=2000, since=2100)
    assert cell() == "queued"  # what failed before is tried again
    leave(study, name, "running", ago=5, since=2100)
    assert cell() == "running"  # begun under an earlier head, and alive
    leave(study, name, "failed", ago=900, since=1000)
    assert cell() == "failed"
    finish(study, name, ago=600)
    assert cell() == "done"
    # Killed after its last file: it was done. One that failed tells that what it wrote is not.
    leave(study, name, "running", ago=590, since=700)
    assert cell() == "done"
    leave(study, name, "failed", ago=590, since=700)
    assert cell() == "failed"


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_what_waits_to_be_started_again_is_queued(study, capsys, state):
    name, waiting = "train_tokenizer@fvq", Path("runs", study, "status", "waiting.json")
    leave(study, name, state, ago=300)
    broken_off = "lost" if state == "running" else state

    def cell():
        return tables(shown(capsys))["tokenizer"]["fvq", "train"]

    queue(study, name, ago=400)
    assert cell() == broken_off
    write_waiting(waiting, ["train_tokenizer@vq"])
    assert cell() == broken_off
    write_waiting(waiting, [name])
    assert cell() == "queued"
    leave(study, name, "failed", ago=250)
    assert cell() == "failed"
    leave(study, name, state, ago=300)
    # What the head saw before the break, or a head that has ended since, tells nothing of it.
    before = (NOW - timedelta(seconds=310)).isoformat()
    write_json(waiting, json.loads(waiting.read_text()) | {"seen_at": before})
    assert cell() == broken_off
    write_waiting(waiting, [name])
    Path("runs", study, "status", "queue.json").unlink()
    assert cell() == broken_off
    waiting.write_text("{")
    queue(study, name, ago=400)
    assert cell() == broken_off


def test_a_head_that_is_gone_queues_nothing(study, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    queue(study, "map_codes", process=gone.pid)
    out = shown(capsys)
    assert tables(out)["stage"]["map_codes", ""] == "–"
    assert "which is gone" in " ".join(out.split())
    queue(study, "map_codes", process=gone.pid, host="elsewhere")
    assert tables(shown(capsys))["stage"]["map_codes", ""] == "queued"


def test_a_head_elsewhere_that_is_silent_is_told(study, capsys):
    def headline():
        return " ".join(shown(capsys).split("\n\n")[0].split())

    waiting = Path("runs", study, "status", "waiting.json")
    queue(study, "map_codes", ago=3600, host="elsewhere", process=99)
    assert headline().endswith(f"{NOW - timedelta(hours=1):%Y-%m-%d %H:%M}")  # it may have no jobs to look after
    write_waiting(waiting, [])
    assert "not heard of" not in headline()
    silent = NOW - timedelta(minutes=7)
    write_json(waiting, {"seen_at": silent.isoformat(), "stages": []})
    assert f"not heard of since {silent:%Y-%m-%d %H:%M}: if it is gone, give its command again" in headline()
    queue(study, "map_codes", ago=10, host="elsewhere", process=99)  # another head's, which has not looked yet
    assert "not heard of" not in headline()


def test_in_a_pipe_lines_are_whole(study, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    log = f"/shared/projects/tokenizers/{'long/' * 20}runs/logs/rule_train_tokenizer@fvq/4711.log"
    leave(study, "train_tokenizer@fvq", "failed", log=log, message="no " * 60)
    out = run(capsys)[1]
    assert f"\n  log {log}\n" in out
    assert max(map(len, out.splitlines())) < 300


def test_a_terminal_without_dashes(study):
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "fvq.cli", "status"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and b"31 stages" in done.stdout


def test_a_report_of_another_study_is_not_this_one_s(study, capsys):
    finish("another", "render")
    assert tables(shown(capsys))["stage"]["render", ""] == "–"


def test_damaged_files_are_absent_ones(study, capsys):
    leave(study, "train_tokenizer@fvq", "failed", ago=100)
    for name in ("results/{}/train_tokenizer/fvq", "reports"):
        path = Path(name.format(study), "provenance.json")
        path.parent.mkdir(parents=True)
        path.write_text('{"started_at": "yester')
    Path("runs", study, "status", "queue.json").write_text("[")
    Path("runs", study, "status", "sample@fvq.json").write_text("")
    out = shown(capsys)
    assert tables(out)["tokenizer"]["fvq", "train"] == "failed"
    assert tables(out)["generator"]["fvq", "sample"] == tables(out)["stage"]["render", ""] == "–"


def test_a_large_study_at_80_columns(study, capsys):
    row = yaml.safe_load(Path("params.yaml").read_text())["rows"]["fvq"]
    names = [*(f"fvq_quarter_patch_middle_{number}" for number in range(36)), "fvq"]
    change(
        rows=dict.fromkeys(names, row),
        evaluated_elsewhere=names,
        evaluation_sets={"coco": {}},
        repeats={"rows": ["fvq"], "seeds": [1, 2]},
    )
    leave(study, f"evaluate_elsewhere@{names[3]}", "running", progress=HALF)
    finish(study, "repeat_tokenizer@fvq-2")
    finish(study, "prepare_evaluation_set@coco")
    out = shown(capsys)
    found = tables(out)
    assert [row for row, column in found["tokenizer"] if row and column == "train"] == names
    assert {column for _, column in found["tokenizer"]} == {"train", "freeze", "evaluate", "elsewhere", "tokens"}
    assert found["repeat"]["fvq-2", "train"] == "done" and found["repeat"]["fvq-1", "train"] == "–"
    assert found["stage"]["prepare_evaluation_set@coco", ""] == "done"
    assert "2 of 169 stages done" in out  # 37 × 4, 2 tables of tokens, 8 of generators, 4 of repeats, 1 set, 6 others


def test_parameters_elsewhere(study, capsys, monkeypatch, tmp_path):
    finish(study, "prepare_data")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    status, out, _ = run(capsys, "--params", "../params.yaml")
    assert status == 0 and "1 of 31 stages done" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("no such file",)),
        ("rows: [", ("not valid YAML",)),
        ("", ("mapping",)),
        ("study: smoke", ("rows", "missing")),
    ],
)
def test_bad_parameters_are_one_line(study, capsys, content, words):
    Path("params.yaml").unlink() if content is None else Path("params.yaml").write_text(content)
    status, out, err = run(capsys)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("fvq: error: params.yaml: ") and all(word in err for word in words)


def test_it_starts_without_torch(study):
    code = (
        "import sys, fvq.cli\ntry: fvq.cli.main(['status'])\nfinally: assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --watch


def test_watching_needs_a_terminal(study, capsys):
    status, out, err = run(capsys, "--watch")
    assert (status, out, err.count("\n")) == (1, "", 1) and "--watch" in err


@pytest.fixture
def watch(study, monkeypatch, capsys):
    """Watch on a terminal of so many lines; between its looks the given functions run, and at last Ctrl-C."""

    def watch(lines, *between):
        steps, looks = list(between), []

        class Clock:
            def sleep(self, seconds):
                looks.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).replace("\r", ""))
                if not steps:
                    raise KeyboardInterrupt
                steps.pop(0)()

        console = Console(force_terminal=True, width=80, height=lines, color_system=None, markup=False, highlight=False)
        monkeypatch.setattr(status, "Console", lambda **_: console)
        monkeypatch.setattr(status, "time", Clock())
        assert run(capsys, "--watch")[0] == 0
        return looks

    return watch


def test_watching_shows_what_changes(study, watch):
    whole = Path("params.yaml").read_text()

    def other_rows():
        Path("params.yaml").write_text(whole)
        change(rows={"fvq": {}, "another": {}})

    looks = watch(
        60,
        lambda: leave(study, "train_tokenizer@fvq", "running", progress=HALF),
        lambda: finish(study, "prepare_data"),
        lambda: Path("params.yaml").write_text("rows: ["),  # half written
        other_rows,
    )
    assert "0 of 31 stages done" in looks[0] and "running" not in looks[0]
    assert tables(looks[1])["tokenizer"]["fvq", "train"] == "41 % 3 h left"
    assert tables(looks[2])["stage"]["prepare_data", ""] == "done"
    assert tables(looks[3])["tokenizer"].keys() == tables(looks[2])["tokenizer"].keys()
    assert {row for row, _ in tables(looks[4])["tokenizer"]} == {"fvq", "another"}


def test_a_small_window_shows_what_matters(study, watch):
    leave(study, "train_tokenizer@fvq", "running", progress=HALF)
    leave(study, "sample@vq", "failed", message="no")
    look = watch(22)[0]
    assert len(look.splitlines()) <= 22
    assert look.index("sample@vq failed") < look.index("tokenizer ")
    assert "\nfvq " in look and "\n4 tokenizers without anything that runs or went wrong" in look
    assert "\nvq " in look and "\n1 generator without anything" in look
    assert "\n6 stages without anything" in look
    assert "mlp5" not in look and "render" not in look


def test_what_went_wrong_is_seen_beside_much_that_runs(study, watch):
    rows = [f"fvq_{number}" for number in range(30)]
    change(rows={row: {} for row in rows})
    for row in rows:
        leave(study, f"train_tokenizer@{row}", "running", progress=HALF, job="17", log=f"runs/{row}.log")
    leave(study, "sample@vq", "failed", message="no", log="runs/sample.log")
    look = watch(24)[0].splitlines()
    assert len(look) <= 24
    assert any("sample@vq failed" in line for line in look) and any("runs/sample.log" in line for line in look)
    assert sum("41 % 3 h left" in line for line in look) > 10
    assert re.fullmatch(r"\d+ lines more: make the window higher", look[-1].strip())


def test_ctrl_c_ends_the_watch_with_status_0(study):
    finish(study, "prepare_data")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background of a script ignore it
        os.execve(sys.executable, [sys.executable, "-m", "fvq.cli", "status", "--watch"], os.environ | {"LINES": "60"})
    said, end, asked = b"", time.monotonic() + 20, False
    while time.monotonic() < end:
        try:
            if select.select([terminal], [], [], 0.1)[0]:
                if not (more := os.read(terminal, 65536)):
                    break
                said += more
        except OSError:  # the other side has closed
            break
        if b"render" in said and not asked:
            asked = True
            os.kill(child, signal.SIGINT)
    os.close(terminal)
    if not asked or time.monotonic() > end:
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    watched, stays = said.split(b"\x1b[?1049l")  # the terminal's other screen is left
    assert b"1 of 31 stages done" in watched and stays.count(b"1 of 31 stages done") == 1
    assert b"interrupted" not in said
