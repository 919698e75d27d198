"""Training batches from token tables: each image once an epoch, the same whoever asks, in little memory."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokens_table import INFO, encoder, small_pieces, truth

from fvq.generate.source import TokenSource
from fvq.runtime.errors import UserError
from fvq.tokens import open_token_table, reader, write_token_shards

IMAGES, TOKENS = 200, INFO.tokens_per_image
# Labels tell images apart.
MANY = replace(INFO, images=IMAGES, classes=tuple(map(str, range(IMAGES))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("batches")
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, MANY, shards=3, images_per_group=6)
        write_token_shards(path, encoder(MANY), MANY)
    return path


@pytest.fixture(params=["kept", "in windows", "a row group at a time"])
def table(request, folder, monkeypatch):
    """The same table, as if it were small, larger than a window, and much larger."""
    if request.param != "kept":
        monkeypatch.setattr(reader, "KEPT_CODES", 0)
        monkeypatch.setattr(reader, "WINDOW_CODES", TOKENS * (40 if request.param == "in windows" else 1))
    return open_token_table(folder)


def view_of(tokens, labels):
    """Which view of the image with this label each row of tokens is."""
    same = (truth(MANY)[0][labels] == tokens[:, None]).all(2)
    assert same.sum(1).eq(1).all()
    return same.int().argmax(1)


def test_an_epoch_visits_each_image_once(table):
    source: TokenSource = table
    assert source.images == IMAGES
    orders, views = [], []
    for epoch in range(4):
        batches = [table.batch(20 * epoch + step, 10, seed=3) for step in range(20)]
        tokens, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        assert tokens.dtype == labels.dtype == torch.int64 and tokens.shape == (IMAGES, TOKENS)
        assert labels.sort().values.tolist() == list(range(IMAGES))
        orders.append(labels.tolist())
        views.append(view_of(tokens, labels)[labels.argsort()])
    assert len(set(map(tuple, orders))) == 4
    for one in views:
        assert 60 < one.sum() < 140  # of 200 fair draws
    # An image's view changes between epochs as often as not.
    assert 60 < (views[0] != views[1]).sum() < 140
    seen = torch.stack(views).float().mean(0)
    assert ((seen > 0) & (seen < 1)).float().mean() > 0.75  # in four epochs 7/8 of the images come in both


def test_an_incomplete_batch_is_dropped(table):
    labels = torch.cat([table.batch(step, 30, seed=0)[1] for step in range(6)])
    assert len(set(labels.tolist())) == 180
    assert table.batch(6, 30, seed=0)[1].tolist() != labels[:30].tolist()
    with pytest.raises(UserError, match="batch_size: 201 samples are asked for at once, and there are 200"):
        table.batch(0, 201, seed=0)


def test_seeds_differ_and_repeat(table, folder):
    first = table.batch(0, 50, seed=0)
    assert first[1].tolist() != table.batch(0, 50, seed=1)[1].tolist()
    for one, other in zip(first, open_token_table(folder).batch(0, 50, seed=0), strict=True):
        assert torch.equal(one, other)


def test_steps_in_any_order_see_the_same(table, folder):
    """Batches of 70 images straddle windows, of which they are no multiple."""
    expected = [open_token_table(folder).batch(step, 70, seed=5) for step in range(8)]
    for step in (7, 0, 3, 3, 2, 6, 1, 5, 4):
        for found, one in zip(table.batch(step, 70, seed=5), expected[step], strict=True):
            assert torch.equal(found, one)


@settings(max_examples=20, deadline=None)
@given(
    step=st.integers(0, 50), batch_size=st.integers(1, IMAGES), processes=st.integers(1, 5), window=st.integers(1, 90)
)
def test_the_parts_of_a_batch_are_the_batch(folder, step, batch_size, processes, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "KEPT_CODES", 0)
        patch.setattr(reader, "WINDOW_CODES", TOKENS * window)
        table = open_token_table(folder)
        tokens, labels = table.batch(step, batch_size, seed=0)
        edges = [batch_size * process // processes for process in range(processes + 1)]
        parts = [table.batch(step, batch_size, 0, slice(*edges[at : at + 2])) for at in range(processes)]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        strided = table.batch(step, batch_size, 0, slice(processes - 1, None, processes))
        assert torch.equal(strided[1], labels[processes - 1 :: processes])


def test_two_windows_are_in_memory_at_most(folder, monkeypatch):
    monkeypatch.setattr(reader, "KEPT_CODES", 0)
    monkeypatch.setattr(reader, "WINDOW_CODES", 24 * TOKENS)
    alive, read = weakref.WeakSet(), []
    load, part = reader.TokenTable._load, reader.TokenTable._part

    def watched(self, *key):
        window = load(self, *key)
        assert window.codes.size <= 24 * TOKENS
        alive.add(window)
        return window

    monkeypatch.setattr(reader.TokenTable, "_load", watched)
    monkeypatch.setattr(reader.TokenTable, "_part", lambda self, group: read.append(group) or part(self, group))
    table = open_token_table(folder)
    groups = len(list(table.parts()))
    read.clear()
    for step in range(40):
        table.batch(step, 10, seed=0)
        for window in list(table._windows.values()):
            window.result()
        assert len(alive) <= 2
    # Two epochs and the window after them: nothing is read twice.
    assert 2 * groups < len(read) <= 2 * groups + 4


def test_a_small_table_is_read_once(folder, monkeypatch):
    read = []
    shard_read = reader.Shard.read
    monkeypatch.setattr(
        reader.Shard, "read", lambda self, group: read.append((self.path, group)) or shard_read(self, group)
    )
    table = open_token_table(folder)
    for step in range(60):
        table.batch(step, 10, seed=0)
    assert len(read) == len(set(read)) == len(list(table.parts()))


def test_a_kept_table_mixes_all_images(folder):
    """Neighbours in a batch are no neighbours in the files."""
    table = open_token_table(folder)
    group_of = {int(row): number for number, part in enumerate(table.parts()) for row in part.image_ids}
    groups = [group_of[label] for step in range(20) for label in table.batch(step, 10, seed=0)[1].tolist()]
    together = sum(one == other for one, other in itertools.pairwise(groups))
    assert together < 20  # 5 in 199 by chance, 165 in the files' order
