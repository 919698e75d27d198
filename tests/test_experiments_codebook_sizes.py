"""Figure 7: one training a size, all else equal, and what is refused before the first."""

import pytest
from test_tokenizer_model import config
from test_tokenizer_training import SCHEDULE, settings, write_table

from fvq.experiments import codebook_sizes
from fvq.experiments.codebook_sizes import train_on_sizes
from fvq.tokenizer.training import train_tokenizer

COLUMNS = ("step", "codebook", "commitment", "usage", "usage_tokens")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "train.parquet", 16, 32)


def train(table, sizes, start=None):
    start = start or config("fvq")
    return train_on_sizes(start, table, settings(log_every=2), SCHEDULE, sizes=sizes, steps=5, seed=1)


def test_each_size_is_trained_as_it_would_be_alone(table):
    # A patch of 16 codes does not fit 36; the default does.
    coarse = config("fvq", bridge={**config("fvq").bridge.model_dump(), "patch": 16})
    histories = train(table, [36, 64], coarse)
    assert list(histories) == [36, 64]
    for size, history in histories.items():
        alone = config("fvq", codebook_size=size)
        _, expected = train_tokenizer(alone, table, settings(log_every=2), SCHEDULE, steps=5, seed=1)
        assert [{name: row[name] for name in COLUMNS} for row in history] == [
            {name: row[name] for name in COLUMNS} for row in expected
        ]
        assert [row["step"] for row in history] == [2, 4, 5]
        for row in history:
            assert row["loss"] == row["codebook"] + row["commitment"] > 0
    assert histories[36] != histories[64]


def test_refusals_come_before_any_training(table, monkeypatch):
    monkeypatch.setattr(codebook_sizes, "train_tokenizer", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="codebook_size 50 is not divisible by the bridge's patch of 4"):
        train(table, [64, 50])
    with pytest.raises(ValueError, match="sizes must differ from each other, not 64, 16, 64"):
        train(table, [64, 16, 64])
    with pytest.raises(ValueError, match="compared with the quantizer fvq, not linear"):
        train(table, [64], config("linear"))
