"""The handwritten digits and the split by class."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fvq.data.settings import Digits
from fvq.data.sources.digits import open_digits
from fvq.data.split import split_by_class

SETTINGS = Digits(source="digits", image_size=32, validation_fraction=0.2)


def test_digits_are_split_by_class_without_overlap():
    source = open_digits(SETTINGS, seed=0)
    assert source.classes == tuple("0123456789")
    train, validation = list(source.train), list(source.validation)
    rows = [int(row.source.removeprefix("digits/")) for row in train + validation]
    assert sorted(rows) == list(range(1797))
    target = load_digits().target
    assert [row.label for row in train + validation] == target[rows].tolist()
    whole = np.bincount(target)
    share = np.bincount([row.label for row in validation]) / whole
    assert (np.abs(share - 0.2) <= 0.5 / whole).all()


def test_digits_are_enlarged_grey_images_in_rgb():
    row = next(iter(open_digits(SETTINGS, seed=0).train))
    pixels = np.asarray(row.image)
    assert pixels.shape == (32, 32, 3)
    assert (pixels == pixels[..., :1]).all()
    original = load_digits().images[int(row.source.removeprefix("digits/"))] * 255 / 16
    shrunk = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert np.corrcoef(shrunk.ravel(), original.ravel())[0, 1] > 0.98


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**62),
)
def test_split_by_class_keeps_every_row_once_and_every_class_in_both_parts(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    train, validation = split_by_class(labels, fraction, np.random.default_rng(seed))
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        in_train, in_validation = (labels[train] == label).sum(), (labels[validation] == label).sum()
        assert in_train >= 1
        assert in_validation >= (count >= 2)
        assert in_validation in (0, 1, count - 1) or abs(in_validation - count * fraction) <= 0.5
    again, _ = split_by_class(labels, fraction, np.random.default_rng(seed))
    assert again.tolist() == train.tolist()
