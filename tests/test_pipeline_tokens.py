"""The stage cache_tokens: what it writes and says of it, and how it goes on after a kill and with other processes."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump
from test_data_views import manifest, noise
from test_tokenizer_model import tokenizer
from test_tokenizer_training import write_table

from fvq.config import load_parameters
from fvq.data.image_table import to_model_range
from fvq.data.open import open_images
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.tokenizer import Tokenizer
from fvq.tokens import layout, open_token_table

ROOT = Path(__file__).parents[1]
RESULTS = Path("results/ci-photos")
IMAGES, WEIGHTS = RESULTS / "prepare_data/train.parquet", RESULTS / "freeze_codebook/fvq/tokenizer.safetensors"
OUTPUT = RESULTS / "cache_tokens/fvq"
SHARD_CODES = 24 * 2 * 16 // 3  # three shards

# A process of the stage.
WORK = f"""
from fvq.tokens import layout
layout.SHARD_CODES = {SHARD_CODES}
from pipeline.cache_tokens import main
from pipeline.run import run_stage
run_stage("cache_tokens", main, each="rows", parallel=True)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that makes a run of the stage, in a folder with a table of 24 images and a frozen tokenizer."""
    monkeypatch.syspath_prepend(ROOT)
    from pipeline.run import Run

    monkeypatch.chdir(tmp_path)
    WEIGHTS.parent.mkdir(parents=True)
    IMAGES.parent.mkdir(parents=True)
    write_table(IMAGES, 16, 24)
    tokenizer().freeze().save(WEIGHTS)

    def run(views="[adm]"):
        overrides = ["scale=ci", f"cache_tokens.views={views}"]
        compose_and_dump(tmp_path / "params.yaml", str(ROOT / "conf"), None, "config", "conf", overrides)
        return Run("cache_tokens", "fvq", load_parameters())

    return run


def make_manifest():
    photos = [Path(f"{number}.png") for number in range(5)]
    for number, photo in enumerate(photos):
        noise(30 + number, 40, number).save(photo)
    manifest(IMAGES, photos, 16, "plain")


def shards():
    return {path.name: path.read_bytes() for path in (OUTPUT / "tokens").iterdir()}


def test_in_a_job_of_snakemake_the_state_stays_until_there_is_a_receipt(study, monkeypatch, tmp_path):
    run = study()
    run.resume_folder.mkdir(parents=True)
    monkeypatch.setenv("FVQ_STATE_NOTE", str(tmp_path / "note"))
    run.drop_state()
    assert run.resume_folder.exists() and Path((tmp_path / "note").read_text()) == run.resume_folder
    monkeypatch.delenv("FVQ_STATE_NOTE")
    run.drop_state()
    assert not run.resume_folder.exists()


def test_what_it_writes(study, capsys):
    from pipeline.cache_tokens import main

    run = study()
    main(run)
    run.finish()
    run.drop_state()
    table, images = open_token_table(OUTPUT / "tokens", sha256_file(WEIGHTS), 64), open_images(IMAGES)
    info = table.info
    assert (info.grid, info.views, info.classes) == ((4, 4), ("center", "center_flip"), ("a", "b"))
    assert (info.images, info.seed, info.crop) == (24, run.seed, "as stored, 16 pixels a side")
    tokens, labels = table.read()
    expected = Tokenizer.load(WEIGHTS).encode(to_model_range(images.images()))
    assert torch.equal(tokens[:, 0], expected.flatten(1)) and torch.equal(labels, images.labels)
    assert len(tokens.unique()) > 5
    size = json.loads((OUTPUT / "size.json").read_text())
    assert (size["images"], size["rows"], size["tokens"]) == (24, 48, 48 * 16)
    assert size["bytes"] == sum(map(len, shards().values()))
    provenance = json.loads((OUTPUT / "provenance.json").read_text())
    assert set(provenance["inputs"]) == {str(IMAGES), str(WEIGHTS)}
    assert f"{OUTPUT}/tokens/tokens-00000-of-00001.parquet" in provenance["outputs"]
    assert not run.resume_folder.exists()
    assert capsys.readouterr().out.startswith("fvq: 24 images in 2 views, 48 rows, 768 tokens, ")


@pytest.mark.parametrize(
    ("views", "stored", "text"),
    [
        ("[ten_crop@1.1]", True, "as stored, enlarged from 16 to 17 for scale 1.1"),
        ("[adm]", False, "centre crop plain to 16"),
        ("[adm,ten_crop@1.1]", False, "centre crop plain to 16; centre crop adm to 17 for scale 1.1"),
    ],
)
def test_the_crop_is_told_as_it_was(study, views, stored, text):
    from pipeline.cache_tokens import main

    run = study(views)
    if not stored:
        make_manifest()
    main(run)
    assert open_token_table(OUTPUT / "tokens").info.crop == text


def test_a_scale_too_small_for_the_images_is_refused_before_any_work(study):
    from pipeline.cache_tokens import main

    with pytest.raises(UserError, match=r"^views at scale 1\.05: .* must be 1\.063 or larger$"):
        main(study("[adm,center@1.05]"))
    assert not OUTPUT.exists() and not Path("runs").exists()


@pytest.mark.parametrize("links", [True, False])
def test_killed_between_shards_it_goes_on(study, monkeypatch, links):
    from pipeline import cache_tokens

    monkeypatch.setattr(layout, "SHARD_CODES", SHARD_CODES)
    if not links:

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    calls, encode_views = [], cache_tokens.encode_views

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode_views(*arguments)

    monkeypatch.setattr(cache_tokens, "encode_views", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_tokens.main(study())
    assert not OUTPUT.exists()
    run = study()
    cache_tokens.main(run)
    assert len(calls) == 4  # of three shards, the second twice
    assert len({tuple(ids.tolist()) for *_, ids in calls}) == 3
    kept = sorted((run.resume_folder / "tokens").glob("*.parquet"))
    assert [path.name for path in kept] == sorted(shards())
    assert all(path.samefile(OUTPUT / "tokens" / path.name) == links for path in kept)
    run.finish()
    run.drop_state()
    assert len(shards()) == 3 and open_token_table(OUTPUT / "tokens").images == 24
    assert not run.resume_folder.exists()


def test_two_processes_write_what_one_does(study, monkeypatch, tmp_path):
    from pipeline.cache_tokens import main

    monkeypatch.setattr(layout, "SHARD_CODES", SHARD_CODES)
    run = study()
    main(run)
    run.finish()
    run.drop_state()
    expected = shards()
    shutil.rmtree(OUTPUT)
    (tmp_path / "work.py").write_text(WORK)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "work.py", "fvq"],
            env={**os.environ, **together, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert told[0].startswith("fvq: 24 images in 2 views") and told[1] == ""
    assert shards() == expected and len(expected) == 3
    assert (OUTPUT / "provenance.json").is_file()
