"""``fvq evaluate`` by several processes writes what one writes."""

import numpy as np
import torch
from projects import run_script
from test_cli import SIZE, random_images

from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig

# As torchrun starts them, but as forks: torch is imported once.
PROCESSES = """
    import os, socket, sys
    from pathlib import Path

    import fvq.cli.evaluate
    from fvq.cli import main
    from fvq.evaluate import segments

    segments._SHORTEST = 2
    os.chdir(sys.argv[1])
    command = ["evaluate", "samples.npz", "--reference", "reference.npz", "--extractor", "tiny.safetensors"]

    def start(name, *options, processes=2):
        with socket.create_server(("localhost", 0)) as free:
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        children = []
        for rank in range(processes):
            children.append(os.fork())
            if children[-1] == 0:
                if processes > 1:
                    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(processes))
                os.dup2(os.open(f"{name}-{rank}.out", os.O_CREAT | os.O_WRONLY), 1)
                os.dup2(os.open(f"{name}-{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
                try:
                    main([*command, *options])
                except SystemExit as end:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(end.code or 0)
        return {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}

    assert start("one", "--out", "one.json", "--cache", "a", processes=1) == {0}
    assert start("two", "--out", "two.json", "--cache", "b") == {0}
    assert start("again", "--out", "again.json", "--cache", "b") == {0}
    assert start("bare", "--no-cache") == {1}
"""


def test_two_processes_give_what_one_gives(tmp_path):
    torch.manual_seed(0)
    ImageClassifier(ImageClassifierConfig(name="tiny", image_size=SIZE, classes=3, width=8)).save(
        tmp_path / "tiny.safetensors"
    )
    np.savez(tmp_path / "samples.npz", arr_0=random_images(9, seed=1))
    np.savez(tmp_path / "reference.npz", arr_0=random_images(12, seed=2) // 2)
    run_script("", PROCESSES, tmp_path)
    one = (tmp_path / "one.json").read_bytes()
    assert (tmp_path / "two.json").read_bytes() == one == (tmp_path / "again.json").read_bytes()
    assert "fd_tiny" in (tmp_path / "two-0.out").read_text()
    for silent in ("two-1.out", "two-1.err", "two-0.err"):
        assert (tmp_path / silent).read_text() == ""
    line = (tmp_path / "bare-0.err").read_text()
    assert line.startswith("fvq: error: --no-cache: 2 processes") and line.count("\n") == 1
