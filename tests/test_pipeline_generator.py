"""The stage train_generator: what it writes, and which token tables it refuses."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump

from fvq.config import load_parameters
from fvq.generate import LlamaGen
from fvq.runtime.errors import UserError
from fvq.tokens import TokenBatch, TokenTableInfo, write_token_shards

IMAGES, VIEWS = 40, ("center", "center_flip")
RESULTS = Path("results/ci-photos")


def write_table(
    *,
    tokenizer: bytes = b"weights",
    grid: tuple[int, int] = (8, 8),
    codebook_size: int = 256,
    views: tuple[str, ...] = VIEWS,
) -> None:
    tokens = grid[0] * grid[1]
    info = TokenTableInfo(
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        codebook_size=codebook_size,
        grid=grid,
        views=views,
        classes=("one", "two"),
        crop="none",
        images=IMAGES,
        seed=0,
    )

    def encode(image_ids):
        for number, view in enumerate(views):
            codes = (image_ids[:, None] + torch.arange(tokens) + number) % codebook_size
            yield TokenBatch(image_ids=image_ids, labels=image_ids % 2, view=view, codes=codes)

    write_token_shards(RESULTS / "cache_tokens/fvq/tokens", encode, info)


@pytest.fixture
def run(tmp_path, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(root)
    from pipeline.run import Run

    overrides = ["scale=ci", "recipes.small.steps=4", "train_generator.log_every=2"]
    compose_and_dump(tmp_path / "params.yaml", str(root / "conf"), None, "config", "conf", overrides)
    monkeypatch.chdir(tmp_path)
    (RESULTS / "freeze_codebook/fvq").mkdir(parents=True)
    (RESULTS / "freeze_codebook/fvq/tokenizer.safetensors").write_bytes(b"weights")
    return Run("train_generator", "fvq", load_parameters())


def test_what_it_writes(run, capsys):
    from pipeline.train_generator import main

    write_table()
    (RESULTS / "cache_tokens/fvq/tokens/.snakemake_timestamp").write_bytes(b"")
    main(run)
    run.finish()
    run.drop_state()
    folder = RESULTS / "train_generator/fvq"
    model = LlamaGen.load(folder / "generator.safetensors")
    assert (model.config.vocabulary_size, model.config.classes, model.config.grid) == (256, 2, (8, 8))
    assert model.config.tokenizer_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (folder / "history.csv").read_text().splitlines()[0] == (
        "step,epoch,learning_rate,loss,perplexity,accuracy,gradient_norm"
    )
    charts = {path.stem: path.read_text().split() for path in (folder / "live").rglob("*.tsv")}
    assert charts.keys() == {"learning_rate", "loss", "perplexity", "accuracy", "gradient_norm"}
    assert charts["loss"][::2] == ["step", "2", "4"]
    provenance = json.loads((folder / "provenance.json").read_text())
    inputs = provenance["inputs"]
    assert "results/ci-photos/freeze_codebook/fvq/tokenizer.safetensors" in inputs
    assert sum(name.startswith("results/ci-photos/cache_tokens/fvq/tokens/") for name in inputs) == 1
    assert not run.resume_folder.exists()
    assert "nats per token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tokenizer": b"others"}, "was made by another tokenizer"),
        ({"codebook_size": 300}, "made with 300 codes, and 256 were expected"),
        ({"grid": (4, 16)}, r"holds grids of \(4, 16\) tokens, and the row fvq makes \(8, 8\)"),
        ({"views": ("center",)}, "holds the views center, and cache_tokens.views are center, center_flip"),
        (None, "no such folder"),
    ],
)
def test_a_table_that_does_not_fit(run, table, message):
    from pipeline.train_generator import main

    if table is not None:
        write_table(**table)
    with pytest.raises(UserError, match=f"^results/ci-photos/cache_tokens/fvq/tokens.*{message}") as caught:
        main(run)
    assert "\n" not in str(caught.value)
    assert not (RESULTS / "train_generator").exists()
