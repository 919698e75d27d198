"""``fvq evaluate`` and ``fvq statistics`` on Inception's architecture: the name FID, and the images it stands on."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from random_inception import write_weights
from test_cli import random_images

from fvq.evaluate.networks import inception, pretrained
from fvq.evaluate.record import check_record


@pytest.fixture
def measured(fvq):
    """Runs a command that must succeed: the figures in its file, and what it printed."""

    def run(*arguments):
        status, out, err = fvq(*arguments, "--out", "m.json", "--force")
        assert status == 0 and err == "", err
        values = json.loads(Path("m.json").read_text())
        check_record(values, "m.json")
        return values, out

    return run


@pytest.fixture
def refused(fvq):
    """Runs a command that must fail, and returns its one line."""

    def run(*arguments):
        status, out, err = fvq(*arguments)
        assert status == 1 and out == "" and err.count("\n") == 1, (status, out, err)
        return err

    return run


def test_figures_of_inception(fvq, measured, refused, monkeypatch, tmp_path):
    monkeypatch.setenv("FVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    weights = write_weights(tmp_path / "random.pth")
    np.savez(tmp_path / "many.npz", arr_0=np.zeros((50_000, 1, 1, 3), np.uint8))
    np.savez(tmp_path / "fewer.npz", arr_0=np.zeros((49_999, 1, 1, 3), np.uint8))
    evaluate = ["evaluate", "fewer.npz", "--reference"]
    assert "6726825d" in refused(*evaluate, "many.npz", "--weights", weights)
    assert (
        "--weights: weights-inception-2015-12-05-6726825d.pth (95,628,359 bytes, SHA-256 6726825d0af5"
        in (line := refused(*evaluate, "many.npz"))
    ) and "fvq doctor --fetch inception-2015" in line

    monkeypatch.setattr(pretrained, "_check_hash", lambda path, files: None)
    monkeypatch.setattr(inception, "Inception2015", functools.cache(inception.Inception2015))  # building one takes long
    line = refused(*evaluate, "many.npz", "--weights", weights)
    assert "fewer.npz: 49,999 images, and a published figure of the protocol adm stands on 50,000" in line
    assert "--allow-count" in line and "many.npz has 50,000: are SAMPLES and --reference swapped?" in line
    line = refused("evaluate", "fewer.npz", "--reference", "fewer.npz", "--weights", weights, "--pairs")
    assert "stands on 50,000 or 5,000; --allow-count" in line

    images = random_images(8, 0)
    np.savez(tmp_path / "samples.npz", arr_0=images[:4])
    np.savez(tmp_path / "reference.npz", arr_0=images[4:])
    command = ["evaluate", "samples.npz", "--weights", weights, "--allow-count", "--reference"]
    values, out = measured(*command, "reference.npz")
    assert {"fid", "sfid", "inception_score", "precision", "recall"} < values.keys()
    assert re.search(r"^ fid +[0-9.,]+ +4 against 4 *$", out, re.MULTILINE)
    pytorch, _ = measured(*command, "reference.npz", "--protocol", "pytorch-fid")
    assert "half-pixel" in pytorch["protocol_resize"] and pytorch["fid"] != values["fid"]
    assert not {"sfid", "inception_score", "precision"} & pytorch.keys()
    fidelity, out = measured(*command, "reference.npz", "--protocol", "torch-fidelity")
    assert fidelity["fid"] == values["fid"] and "precision" not in fidelity
    assert "no precision and recall: the network vgg16 is not there" in out

    assert fvq("statistics", "reference.npz", "--weights", weights, "--out", "stats.npz")[0] == 0
    stored, _ = measured(*command, "stats.npz")
    assert (stored["fid"], stored["sfid"]) == (values["fid"], values["sfid"])
    line = refused(*command, "stats.npz", "--protocol", "pytorch-fid")
    assert "stats.npz: its statistics are of another protocol: resize" in line
