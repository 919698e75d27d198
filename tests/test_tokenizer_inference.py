"""A tokenizer over many images in several views."""

import pytest
import torch
from test_tokenizer_model import tokenizer
from test_tokenizer_training import write_table

from fvq.data.image_table import to_model_range
from fvq.data.views import expand_views
from fvq.runtime.errors import UserError
from fvq.tokenizer import inference
from fvq.tokenizer.inference import encode_views

VIEWS = ("adm", "ten_crop@1.25")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "train.parquet", 16, 12)


def test_all_views_of_some_images_come_before_the_next_images(monkeypatch, table):
    monkeypatch.setattr(inference, "_BATCH", 4)
    model, names = tokenizer().freeze(), expand_views(VIEWS)
    image_ids = torch.tensor([11, 0, 5, 7, 2, 2])
    batches = list(encode_views(model, table, VIEWS, image_ids))
    assert [batch.view for batch in batches] == [*names, *names]
    for number, batch in enumerate(batches):
        ids_b = image_ids[:4] if number < len(names) else image_ids[4:]
        assert torch.equal(batch.image_ids, ids_b) and batch.image_ids.dtype == torch.int64
        assert torch.equal(batch.labels, table.labels[ids_b])
        view = table.views(ids_b, [batch.view])[:, 0]
        assert torch.equal(batch.codes, model.encode(to_model_range(view)).flatten(1))
    assert len({tuple(batch.codes[0].tolist()) for batch in batches}) > 5


def test_few_images_are_asked_for_at_once_and_only_when_needed(monkeypatch, table):
    monkeypatch.setattr(inference, "_BATCH", 5)
    asked, views = [], type(table).views
    monkeypatch.setattr(
        type(table), "views", lambda self, ids, names: asked.append(len(ids)) or views(self, ids, names)
    )
    batches = encode_views(tokenizer(), table, VIEWS, range(12))
    for _ in range(12):
        next(batches)
    assert asked == [5]
    assert sum(1 for _ in batches) == 24
    assert asked == [5, 5, 2]


def test_no_images_give_no_batches(table):
    assert list(encode_views(tokenizer(), table, VIEWS, [])) == []


def test_unknown_views_are_refused(table):
    with pytest.raises(UserError, match="view 'middle' is unknown"):
        next(encode_views(tokenizer(), table, ("middle",), [0]))
