"""A tokenizer trained by two processes is the one that one process trains on the same batches."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from projects import run_script
from test_tokenizer_interruption import TRAIN

ONE = """
    write_images(work / "images")
    train(work / "images" / "manifest.parquet", work / "one", work / "one.json", "fvq")
"""
# The conditions of the paper's claim "all codes learn": the exchanged gradients are those of the trained parts alone.
TWO = """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    exchanged = []
    initialize = DistributedDataParallel.__init__

    def watched(self, module, **options):
        initialize(self, module, **options)
        def hook(state, bucket):
            exchanged.append(bucket.buffer().numel())
            return allreduce_hook(None, bucket)
        self.register_comm_hook(None, hook)

    DistributedDataParallel.__init__ = watched
    name, quantizer, wait = sys.argv[2], sys.argv[3], len(sys.argv) > 4
    if wait:
        call = TokenizerStep.__call__
        def slow(self, index, *arguments):
            import time
            (work / f"started-{os.environ['RANK']}").write_text("")
            time.sleep(0.2)
            return call(self, index, *arguments)
        TokenizerStep.__call__ = slow
    train(work / "images" / "manifest.parquet", work / name, work / f"{name}.json", quantizer)
    if os.environ["RANK"] == "0":
        (work / f"{name}.exchanged").write_text(json.dumps(sum(exchanged) // STEPS))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    run_script(TRAIN, ONE, path)
    (path / "two.py").write_text(textwrap.dedent(TRAIN) + textwrap.dedent(TWO))
    return path


def start_two(folder, *arguments):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--signals-to-handle=SIGTERM,SIGUSR1", str(folder / "two.py"), str(folder), *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, *, status=0):
    _, told = process.communicate(timeout=240)
    assert process.returncode == status, told
    return told


@pytest.fixture(scope="module")
def two(folder):
    finish(start_two(folder, "two", "fvq"))
    return json.loads((folder / "two.json").read_text())


def test_two_processes_give_the_loss_curve_of_one(folder, two):
    one = json.loads((folder / "one.json").read_text())
    assert [row["step"] for row in two["history"]] == [5, 10, 14]
    for row, expected in zip(two["history"], one["history"], strict=True):
        assert row["usage_tokens"] == expected["usage_tokens"]
        for name in ("loss", "reconstruction", "codebook", "commitment", "adversarial", "discriminator"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        assert row["usage"] == pytest.approx(expected["usage"], abs=0.05)
        assert row["learning_rate"] == expected["learning_rate"]
    assert two["grids"] == one["grids"]


def test_frozen_parts_exchange_no_gradients(folder, two):
    """SimVQ's codebook does not learn: 64 codes of 8 channels less."""
    finish(start_two(folder, "simvq", "simvq"))
    exchanged = {name: json.loads((folder / f"{name}.exchanged").read_text()) for name in ("two", "simvq")}
    from fvq.tokenizer import Tokenizer
    from fvq.tokenizer.discriminator import PatchDiscriminator

    adversary = sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) * 11 // 14  # from step 3 on
    for name in exchanged:
        trained = Tokenizer.load(folder / f"{name}.safetensors")
        learning = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
        assert exchanged[name] == pytest.approx(learning + adversary, abs=2), name
        everything = sum(parameter.numel() for parameter in trained.parameters())
        assert everything - learning == (64 * 8 if name == "simvq" else 0)


def test_a_signal_to_one_of_them_stops_both_and_the_same_command_goes_on(folder, two):
    process = start_two(folder, "stopped", "fvq", "wait")
    deadline = time.monotonic() + 120
    while not all((folder / f"started-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    told = finish(process, status=1)  # torchrun's own, whatever its processes end with; pipeline.launch tells more
    assert "SIGUSR1 received; saved after step" in told
    assert told.count("the same command goes on from there") == 1
    finish(start_two(folder, "stopped", "fvq"))
    assert json.loads((folder / "stopped.json").read_text()) == two
