"""Many samples: found again after a kill, shared by processes, the same whatever the batches; written as they come."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from test_generate_llamagen import random_model

from fvq.generate import LlamaGen, SamplingSettings, class_labels
from fvq.generate import parts as module
from fvq.generate.parts import sample_many, write_samples
from fvq.runtime.errors import UserError
from fvq.runtime.interruption import Interrupted

SETTINGS = SamplingSettings(cfg_scale=1.5, cfg_start=1, temperature=1.0, top_k=0, top_p=0.9)
COUNT, SEED = 75, 4  # two whole parts and a third of 11 images
SIZE = 2

WORK = """
    import os, signal, sys
    from pathlib import Path
    from test_generate_parts import draw, watch
    from fvq.generate import LlamaGen
    from fvq.runtime.interruption import Interrupted
    from fvq.runtime.processes import process_group

    folder, number, after = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rank = os.environ.get("RANK", "1")
    model = LlamaGen.load(folder / "generator.safetensors")
    calls = []
    watch(calls, lambda: rank == "1" and os.kill(os.getpid(), number), after)
    with process_group():
        try:
            draw(model, folder, 32, f"{rank}.npz")
        except Interrupted as stop:
            print(stop)
        draw(model, folder, 32, f"{rank}.npz")
    print(calls)
"""


def decode(tokens):
    """Images uint8 (n, 3, 2, 2) that tell tokens apart."""
    return tokens[:, :4].reshape(-1, 1, SIZE, SIZE).repeat(1, 3, 1, 1).to(torch.uint8)


def draw(model, folder, batch_size, name):
    labels = class_labels(COUNT, 5, "uniform", SEED)
    tokens = sample_many(model, labels, SETTINGS, seed=SEED, part_folder=folder / "parts", batch_size=batch_size)
    write_samples(folder / name, tokens, labels, decode, image_size=SIZE)
    return tokens


SAMPLE = module.Decoder.sample


def watch(calls, what=None, after=None):
    """Let the decoder note its images in ``calls``, and do something instead of that many calls' next."""

    def watched(self, labels, seed, numbers, on_progress):
        if len(calls) == after:
            what()
        calls.append(numbers.tolist())
        return SAMPLE(self, labels, seed, numbers, on_progress)

    module.Decoder.sample = watched


@pytest.fixture
def calls(monkeypatch):
    """The images of each of the decoder's calls."""
    monkeypatch.setattr(module.Decoder, "sample", SAMPLE)
    noted = []
    watch(noted)
    return noted


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tokens and the archive's bytes, from one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tokens = draw(random_model(), folder, 64, "samples.npz")
    return tokens, (folder / "samples.npz").read_bytes()


def start(folder, number, after, **together):
    """A process that draws batches of 32, sends itself a signal after so many, and where it lives goes on."""
    random_model().save(folder / "generator.safetensors")
    (folder / "work.py").write_text(textwrap.dedent(WORK))
    tests = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        [sys.executable, folder / "work.py", folder, str(int(number)), str(after)],
        env={**os.environ, **tests, **together},
        stdout=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def drawn_parts(folder):
    return sorted(path.name for path in (folder / "parts").glob("tokens-*.npy"))


def test_samples_are_those_of_the_model(undisturbed):
    tokens, _ = undisturbed
    labels = class_labels(COUNT, 5, "uniform", SEED)
    assert tokens.shape == (COUNT, 6) and tokens.dtype == torch.int64
    assert torch.equal(tokens, random_model().sample(labels, **SETTINGS.model_dump(), seed=SEED))


def test_the_archive(undisturbed, tmp_path):
    tokens, archive = undisturbed
    (tmp_path / "samples.npz").write_bytes(archive)
    with np.load(tmp_path / "samples.npz") as found:
        assert list(found) == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8 and found["arr_1"].dtype == np.int64
        assert np.array_equal(found["arr_0"], decode(tokens).permute(0, 2, 3, 1).numpy())
        assert np.array_equal(found["arr_1"], class_labels(COUNT, 5, "uniform", SEED).numpy())


def test_neither_the_batch_size_nor_the_parts_change_an_image(undisturbed, tmp_path, monkeypatch):
    model = random_model()
    for number, batch_size in enumerate((1, 7, 33, 1000, None)):
        assert torch.equal(draw(model, tmp_path / str(number), batch_size, "samples.npz"), undisturbed[0])
    monkeypatch.setattr(module, "_PART", 10)
    assert torch.equal(draw(model, tmp_path / "small", 20, "samples.npz"), undisturbed[0])
    assert (tmp_path / "small/samples.npz").read_bytes() == undisturbed[1]


def test_an_error_keeps_the_parts_and_another_batch_size_goes_on(undisturbed, tmp_path, calls):
    def fail():
        raise KeyboardInterrupt

    watch(calls, fail, after=1)
    with pytest.raises(KeyboardInterrupt):
        draw(random_model(), tmp_path, 32, "samples.npz")
    assert drawn_parts(tmp_path) == ["tokens-00000000.npy"] and not (tmp_path / "samples.npz").exists()
    watch(calls)
    assert torch.equal(draw(random_model(), tmp_path, 64, "samples.npz"), undisturbed[0])
    assert calls == [list(range(32)), list(range(32, 75))]
    assert (tmp_path / "samples.npz").read_bytes() == undisturbed[1]
    draw(random_model(), tmp_path, 5, "again.npz")
    assert len(calls) == 2


def test_a_killed_process_leaves_what_it_had_drawn(undisturbed, tmp_path):
    killed = start(tmp_path, signal.SIGKILL, 2)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert drawn_parts(tmp_path) == ["tokens-00000000.npy", "tokens-00000032.npy"]
    draw(LlamaGen.load(tmp_path / "generator.safetensors"), tmp_path, 3, "samples.npz")
    assert (tmp_path / "samples.npz").read_bytes() == undisturbed[1]


def test_two_processes_stop_together_at_a_signal_to_one_and_go_on_to_the_images_of_one(undisturbed, tmp_path):
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [start(tmp_path, signal.SIGUSR1, 0, RANK=str(rank), **address) for rank in (0, 1)]
    told = [process.communicate(timeout=100)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    drawn = "64 of 75 images are drawn, the same command goes on from there"
    first, third = list(range(32)), list(range(64, 75))
    assert told[0] == [f"sampling: a signal to another process received; {drawn}", str([first, third])]
    assert told[1] == [f"sampling: SIGUSR1 received; {drawn}", str([list(range(32, 64))])]
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.npz").read_bytes() == undisturbed[1]


def test_processes_share_the_parts_evenly(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(module, "_PART", 4)
    monkeypatch.setattr(module, "number_of_processes", lambda: 3)
    labels = torch.zeros(38, dtype=torch.int64)
    for process in (2, 1, 0):
        monkeypatch.setattr(module, "process_number", lambda process=process: process)
        run = {"seed": 0, "part_folder": tmp_path, "batch_size": 100}
        if process:
            with pytest.raises(UserError, match=r"tokens-0000000\d.npy: was drawn and is not there; do all processes"):
                sample_many(random_model(), labels, SETTINGS, **run)
        else:
            sample_many(random_model(), labels, SETTINGS, **run)
    assert [len(images) for images in calls] == [12, 12, 14]
    assert sorted(itertools.chain(*calls)) == list(range(38))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_batch_finish(undisturbed, tmp_path, calls, number):
    watch(calls, lambda: os.kill(os.getpid(), number), after=1)
    with pytest.raises(Interrupted, match=rf"^sampling: {number.name} received; 64 of 75 images are drawn, the same"):
        draw(random_model(), tmp_path, 32, "samples.npz")
    assert len(drawn_parts(tmp_path)) == 2
    watch(calls)
    assert torch.equal(draw(random_model(), tmp_path, 32, "samples.npz"), undisturbed[0])


def test_a_signal_while_decoding_leaves_no_archive(tmp_path):
    def interrupted(tokens):
        os.kill(os.getpid(), signal.SIGTERM)
        return decode(tokens)

    tokens, labels = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(Interrupted, match=r"^decoding: SIGTERM received; the same command"):
        write_samples(tmp_path / "samples.npz", tokens, labels, interrupted, image_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_few_hundred_images_are_decoded_at_a_time(tmp_path):
    sizes = []

    def watched(tokens):
        sizes.append(len(tokens))
        return decode(tokens)

    tokens = torch.arange(600 * 6).reshape(600, 6) % 251
    write_samples(tmp_path / "samples.npz", tokens, torch.arange(600), watched, image_size=SIZE)
    assert sizes == [256, 256, 88]
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], decode(tokens).permute(0, 2, 3, 1).numpy())


def test_a_damaged_part_is_named_before_anything_is_drawn(tmp_path, calls):
    model = random_model()
    draw(model, tmp_path, 64, "samples.npz")
    calls.clear()
    first, second, _ = sorted((tmp_path / "parts").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{second.name}: not readable .*; remove it and run again") as damaged:
        draw(model, tmp_path, 64, "again.npz")
    assert "\n" not in str(damaged.value)
    np.save(second, np.zeros((32, 7), np.int32))
    with pytest.raises(UserError, match=rf"{second.name}: holds int32 \(32, 7\), not int32 \(32, 6\)"):
        draw(model, tmp_path, 64, "again.npz")
    second.write_bytes(b"")
    with pytest.raises(UserError, match=f"{second.name}: not readable"):
        draw(model, tmp_path, 64, "again.npz")
    assert calls == [] and not first.exists()


def test_no_images(tmp_path):
    none = torch.empty(0, dtype=torch.int64)
    assert sample_many(random_model(), none, SETTINGS, seed=0, part_folder=tmp_path).shape == (0, 6)


def test_bad_labels_batches_and_guidance(tmp_path):
    run = {"settings": SETTINGS, "seed": 0, "part_folder": tmp_path}
    with pytest.raises(UserError, match=r"labels: 5 is no class of this generator \(0 to 4\)"):
        sample_many(random_model(), torch.tensor([0, 5]), **run)
    with pytest.raises(UserError, match="batch_size: must be at least 1, not 0"):
        sample_many(random_model(), torch.tensor([0]), **run, batch_size=0)
    with pytest.raises(UserError, match="cfg_scale: this generator was trained with class_dropout 0"):
        sample_many(random_model(class_dropout=0.0), torch.tensor([0]), **run)
    assert not list(tmp_path.iterdir())
