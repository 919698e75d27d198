"""The training loop: what it records, and that interrupted is not lost, to the bit."""

import json
import math
import re
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from fvq.runtime import progress
from fvq.runtime.batches import batch_indices
from fvq.runtime.checkpoint import CheckpointFolder, recipe_digest
from fvq.runtime.errors import UserError
from fvq.runtime.training import run_steps

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


class Interrupted(Exception):
    pass


class Counter:
    """Steps since the last row of the history, as a usage window counts codes."""

    def __init__(self):
        self.count = 0

    def summarize(self):
        count, self.count = self.count, 0
        return {"counted": count}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def train(folder=None, *, stop_before=None, total_steps=20, checkpoint_every=3, seed=1, nan_at=None):
    """A small network with dropout; (weights, history, steps done in this call)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    counter, done = Counter(), []

    def step(index):
        if index == stop_before:
            raise Interrupted
        done.append(index)
        counter.count += 1
        loss = model(X[batch_indices(len(X), 8, index, seed)]).square().mean() + torch.rand(())
        if index == nan_at:
            loss = loss * math.nan
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "index": index}

    history = run_steps(
        step,
        total_steps=total_steps,
        state={"model": model, "optimizer": optimizer, "counter": counter},
        seed=seed,
        log_every=4,
        checkpoint_folder=folder,
        checkpoint_every=checkpoint_every,
        summarize=counter.summarize,
    )
    return model.state_dict(), history, done


def assert_same(result, expected):
    assert result[1] == expected[1]
    assert result[0].keys() == expected[0].keys()
    assert all(torch.equal(result[0][name], expected[0][name]) for name in expected[0])


def test_the_history_holds_means_since_the_row_before():
    _, history, done = train(total_steps=10)
    assert done == list(range(10))
    assert [row["step"] for row in history] == [4, 8, 10]
    assert [row["index"] for row in history] == [1.5, 5.5, 8.5]
    assert [row["counted"] for row in history] == [4, 4, 2]
    assert all(set(row) == {"step", "loss", "index", "counted"} for row in history)


@pytest.mark.parametrize("images_per_step", [None, 8])
def test_progress_calls_steps_steps_and_images_images(monkeypatch, capsys, images_per_step):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)

    def step(index):
        time.sleep(0.002)
        return {"loss": 1.0}

    run_steps(step, total_steps=40, state={}, seed=0, log_every=10, images_per_step=images_per_step)
    line = capsys.readouterr().err.splitlines()[30]
    rate = re.fullmatch(r"training: 31/40 steps, ([\d,.]+) (\w+)/s, \d+ s left", line)
    assert rate, line
    assert rate[2] == ("steps" if images_per_step is None else "images")
    per_second = float(rate[1].replace(",", ""))
    assert per_second < 500 * (images_per_step or 1)  # a step takes 2 ms at least


def test_a_run_follows_from_its_seed():
    expected = train()
    torch.rand(7)
    assert_same(train(), expected)
    assert train(seed=2)[1] != expected[1]


def test_checkpoints_do_not_change_a_run(tmp_path):
    assert_same(train(tmp_path), train())


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 10, 19])
def test_interrupted_equals_uninterrupted(tmp_path, stop):
    expected = train()
    with pytest.raises(Interrupted):
        train(tmp_path, stop_before=stop)
    torch.rand(5)
    resumed = train(tmp_path)
    assert resumed[2] == list(range(stop // 3 * 3, 20))
    assert_same(resumed, expected)


def test_interrupted_many_times(tmp_path):
    for stop in (4, 5, 9, 9, 17):
        with pytest.raises(Interrupted):
            train(tmp_path, stop_before=stop)
    assert_same(train(tmp_path), train())


KILLED = """
    import hashlib, json, os, random, signal, sys, time
    from pathlib import Path

    import torch
    from torch import nn

    from fvq.runtime.training import run_steps

    def run(folder, out):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def step(index):
            time.sleep(0.002)
            loss = model(torch.randn(8, 6)).square().mean()
            # By hand: the first optimiser of a process imports for seconds.
            for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters())):
                parameter.data -= 0.1 * gradient
            return {"loss": loss}

        history = run_steps(
            step, total_steps=120, state={"model": model}, seed=0, log_every=7,
            checkpoint_folder=folder, checkpoint_every=2,
        )
        weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        out.write_text(json.dumps([hashlib.sha256(weights).hexdigest(), history]))

    def start(name):
        child = os.fork()
        if child == 0:
            try:
                run(base / name, base / f"{name}.json")
            except BaseException:
                os._exit(1)
            os._exit(0)
        return child

    def saved():
        return {path.name for path in (base / "killed").glob("step-*.pt")}

    base, kills = Path(sys.argv[1]), 0
    for _ in range(5):
        before, child = saved(), start("killed")
        # Each life gets as far as a state of its own; on a busy machine one may reach the end, and is not waited for.
        while not saved() - before and not (base / "killed.json").exists():
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    statuses = [os.waitpid(start(name), 0)[1] for name in ("killed", "whole")]
    print(json.dumps({"kills": kills, "statuses": statuses}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_equals_uninterrupted(tmp_path):
    """Five kills at random moments, inside writes too; then the run is left to end."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["statuses"] == [0, 0]
    assert 1 <= report["kills"] <= 5
    killed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "whole"))
    assert len(whole[1]) == 18
    assert killed == whole


@pytest.mark.parametrize("nan_at", [0, 9, 19])
def test_a_loss_that_is_no_number_stops_the_run(nan_at):
    with pytest.raises(UserError, match=r"^training: loss is nan at step \d+; a smaller learning rate may help$"):
        train(nan_at=nan_at)


def damage(path, how):
    digest = path.with_suffix(".sha256")
    match how:
        case "cut off":
            path.write_bytes(path.read_bytes()[:-100])
        case "a flipped bit":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "empty":
            path.write_bytes(b"")
        case "no digest":
            digest.unlink()
        case "a damaged digest":
            digest.write_bytes(b"\xff\x00")


@pytest.mark.parametrize("how", ["cut off", "a flipped bit", "empty", "no digest", "a damaged digest"])
def test_a_damaged_newest_state_falls_back(tmp_path, capsys, how):
    with pytest.raises(Interrupted):
        train(tmp_path, stop_before=10)
    damage(tmp_path / "step-00000009.pt", how)
    resumed = train(tmp_path)
    assert resumed[2][0] == 6
    assert_same(resumed, train())
    error = capsys.readouterr().err
    assert f"{tmp_path / 'step-00000009.pt'} is damaged; going back to the state before it" in error


def test_all_states_damaged_starts_anew(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(tmp_path, stop_before=10)
    for path in tmp_path.glob("*.pt"):
        damage(path, "cut off")
    resumed = train(tmp_path)
    assert resumed[2][0] == 0
    assert_same(resumed, train())
    assert "step-00000006.pt is damaged; starting anew" in capsys.readouterr().err


def test_states_come_back_as_they_were(tmp_path):
    state = {"tensor": torch.randn(3, dtype=torch.float64), "nested": {"list": [1, 0.1 + 0.2, None]}, "name": "x"}
    folder = CheckpointFolder(tmp_path / "a" / "b")
    assert folder.latest() is None
    folder.save(12, state)
    step, found = folder.latest()
    assert step == 12
    assert torch.equal(found.pop("tensor"), state.pop("tensor"))
    assert found == state


def test_the_newest_two_states_stay(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (5, 10, 99_999_999, 100_000_000):
        folder.save(step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-100000000.pt",
        "step-100000000.sha256",
        "step-99999999.pt",
        "step-99999999.sha256",
    ]
    assert folder.latest() == (100_000_000, {"step": 100_000_000})
    folder.clear()
    assert not tmp_path.exists()
    folder.clear()


def test_damaged_later_states_and_what_killed_processes_left_make_room(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (5, 10, 15):
        folder.save(step, {"step": step})
    (tmp_path / "step-00000015.pt").write_bytes(b"damaged")
    (tmp_path / ".step-00000015.pt.0123abcd.tmp.pt").write_bytes(b"half a state")
    assert folder.latest() == (10, {"step": 10})
    folder.save(12, {"step": 12})
    assert {path.name for path in tmp_path.iterdir()} == {
        *("step-00000010.pt", "step-00000010.sha256", "step-00000012.pt", "step-00000012.sha256")
    }


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        CheckpointFolder(tmp_path).locked(),
        pytest.raises(UserError, match=r": another process trains here at this moment; wait for it or stop it$"),
    ):
        train(tmp_path)
    assert_same(train(tmp_path), train())


def test_a_finished_run_is_not_done_again(tmp_path):
    """Where its result could not be written, the next one needs to write only."""
    expected = train(tmp_path)
    again = train(tmp_path)
    assert again[2] == []
    assert_same(again, expected)


def test_a_recipe_is_known_by_all_of_it():
    recipe = {"seed": 0, "row": {"size": 4, "name": "vq"}, "grid": [1, 2]}
    digest = recipe_digest(recipe)
    assert len(digest) == 16
    assert digest == recipe_digest(dict(reversed(recipe.items())))
    others = [{**recipe, "seed": 1}, {**recipe, "row": {"size": 4, "name": "fvq"}}, {**recipe, "grid": [2, 1]}, {}]
    assert len({digest, *map(recipe_digest, others)}) == 5
