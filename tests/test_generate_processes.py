"""A generator trained by two processes, or divided among them, is the one that one process trains."""

import json

import pytest
import torch
from projects import run_script
from safetensors.torch import load_file
from test_generate_interruption import TRAIN

RUNS = """
    import shutil

    def at_step_in_one(number, step):
        at_step(step, lambda: tell(number) if os.environ.get("RANK") == "1" else None)

    def watch_draws():
        call = GeneratorStep.__call__
        def wrapped(self, *arguments):
            with open(work / f"draws-{os.environ['RANK']}", "a") as file:
                file.write(f"{torch.get_rng_state().sum()}\\n")
            return call(self, *arguments)
        GeneratorStep.__call__ = wrapped

    def watch_weights():
        # What a process holds between steps, and what the blocks compiled to.
        call, compile_ = GeneratorStep.__call__, torch.compile
        graphs = []
        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward
        torch.compile = lambda function: compile_(function, backend=backend)
        def wrapped(self, *arguments):
            result = call(self, *arguments)
            held = [p.to_local() for p in self.model.parameters() if isinstance(p, DTensor)]
            moments = [m.to_local() for of_one in self.optimizer.state.values() for m in of_one.values() if m.dim()]
            (work / f"held-{os.environ['RANK']}.json").write_text(json.dumps({
                "weights": sum(p.numel() for p in held), "moments": sum(m.numel() for m in moments),
                "graphs": len(graphs), "dtypes": sorted({str(p.dtype) for p in held + moments}),
            }))
            return result
        GeneratorStep.__call__ = wrapped

    def stop(name, **changes):
        status = start(name, lambda: at_step_in_one(signal.SIGTERM, 5), **changes)
        assert status == {75}, status

    two, full = dict(processes=2, dropout=0.0), dict(processes=2, dropout=0.0, sharding="full")
    assert start("one", dropout=0.0) == {0}
    assert start("two", **two) == {0}
    assert start("dropped", watch_draws, processes=2) == {0}
    assert start("full", **full) == {0}
    assert start("rounded", precision="bfloat16", **two) == {0}
    assert start("full-rounded", watch_weights, precision="bfloat16", compile=True, **full) == {0}
    stop("full-stopped", **full)
    stop("two-stopped", **two)
    for before, after, changes in (
        ("full", "full", full), ("full", "one", dict(dropout=0.0, sharding="full")),
        ("two", "full", full), ("two", "one", dict(dropout=0.0)),
    ):
        name = f"{before}-{after}"
        shutil.copytree(work / f"{before}-stopped", work / name)
        assert start(name, **changes) == {0}, name
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    (path / "told").write_text(run_script(TRAIN, RUNS, path))
    return path


@pytest.fixture(scope="module")
def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json") if "held" not in path.name}


def assert_as_one(folder, results, name):
    for row, expected in zip(results[name]["history"], results["one"]["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-3), name
    weights, wanted = (load_file(folder / f"{which}.safetensors") for which in (name, "one"))
    torch.testing.assert_close(weights, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["two", "full"])
def test_two_processes_train_as_one(folder, results, name):
    assert [row["step"] for row in results["one"]["history"]] == [3, 6, 9, 12]
    assert results["one"]["history"][-1]["loss"] < 1.9 < results["one"]["history"][0]["loss"]
    assert_as_one(folder, results, name)


def test_under_bfloat16_too(folder, results):
    for name in ("rounded", "full-rounded"):
        assert results[name]["weights"] != results["two"]["weights"]
        for row, expected in zip(results[name]["history"], results["one"]["history"], strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
            assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-2)


def test_a_process_holds_its_share_in_float32(folder):
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    everything = sum(tensor.numel() for tensor in load_file(folder / "full.safetensors").values())
    assert sum(part["weights"] for part in held) == everything
    assert sum(part["moments"] for part in held) == 2 * everything
    for part in held:
        assert 0.4 * everything < part["weights"] < 0.6 * everything
        assert part["dtypes"] == ["torch.float32"]
        assert part["graphs"] == 1


def test_each_process_drops_other_units(folder):
    draws = [(folder / f"draws-{rank}").read_text().split() for rank in (0, 1)]
    assert len(set(draws[0] + draws[1])) == 2 * 12


@pytest.mark.parametrize("name", ["full-full", "full-one", "two-full", "two-one"])
def test_a_stopped_run_goes_on_with_other_processes_and_sharding(folder, results, name):
    if name == "full-full":
        assert results[name] == results["full"]
    assert_as_one(folder, results, name)
    told = (folder / "told").read_text()
    assert told.count("received; saved after step 6 of 12, the same command goes on from there") == 2
