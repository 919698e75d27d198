"""Crops of the built-in photographs: what is held out stays held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.data.settings import PhotoCrops
from fvq.data.sources.photos import (
    HELD_OUT,
    PHOTOS,
    cell_edges,
    draw_training_boxes,
    draw_validation_boxes,
    load_photo,
    open_photos,
)
from fvq.runtime.errors import UserError

SETTINGS = PhotoCrops(
    source="photos",
    image_size=16,
    train_crops=123,
    validation_crops=45,
    crop_side_min=10,
    crop_side_max=30,
    short_side_max=200,
)


def painted(photo_size, boxes):
    """How many boxes cover each pixel of the photograph."""
    width, height = photo_size
    cover = np.zeros((height, width), dtype=int)
    for left, top, side in boxes:
        assert left >= 0 and top >= 0 and left + side <= width and top + side <= height
        cover[top : top + side, left : left + side] += 1
    return cover


def test_a_fifth_of_the_cells_is_held_out_one_in_each_row_and_column():
    assert HELD_OUT.sum(axis=0).tolist() == HELD_OUT.sum(axis=1).tolist() == [1] * 5


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.integers(5, 120), height=st.integers(5, 120), seed=st.integers(0, 2**32))
def test_no_pixel_of_a_validation_crop_lies_in_a_training_crop(data, width, height, seed):
    largest = min(width, height) // 5
    sides = np.array(data.draw(st.lists(st.integers(1, largest), min_size=1, max_size=60)))
    train = draw_training_boxes((width, height), sides, np.random.default_rng(seed))
    validation = draw_validation_boxes((width, height), sides, np.random.default_rng(seed + 1))
    assert train[:, 2].tolist() == validation[:, 2].tolist() == sides.tolist()
    assert not (painted((width, height), train) * painted((width, height), validation)).any()

    x_edges, y_edges = cell_edges(width), cell_edges(height)
    for left, top, side in validation:
        row, column = np.searchsorted(y_edges, top, "right") - 1, np.searchsorted(x_edges, left, "right") - 1
        assert HELD_OUT[row, column]
        assert top + side <= y_edges[row + 1] and left + side <= x_edges[column + 1]


def test_every_allowed_pixel_is_reached_by_training_crops_and_every_held_out_one_by_validation_crops():
    size, sides = (50, 40), np.full(6000, 8)
    train = painted(size, draw_training_boxes(size, sides, np.random.default_rng(0))) > 0
    validation = painted(size, draw_validation_boxes(size, sides, np.random.default_rng(0))) > 0
    held_out = np.repeat(np.repeat(HELD_OUT, 8, axis=0), 10, axis=1)
    np.testing.assert_array_equal(validation, held_out)
    np.testing.assert_array_equal(train, ~held_out)


def test_crops_of_the_real_photographs_share_no_pixel():
    source = open_photos(SETTINGS, seed=3)
    boxes = {"train": {}, "validation": {}}
    for split, records, count in (("train", source.train, 123), ("validation", source.validation, 45)):
        rows = list(records)
        assert len(rows) == count
        counts = np.bincount([row.label for row in rows], minlength=10)
        assert counts.tolist() == [count // 10 + (label < count % 10) for label in range(10)]
        for row in rows:
            name, _, box = row.source.partition("@")
            assert name == source.classes[row.label]
            left, top, side = (int(number) for number in box.split(","))
            assert 10 <= side <= 30
            boxes[split].setdefault(name, []).append((left, top, side))
            assert row.image.size == (16, 16)
    for name in PHOTOS:
        size = load_photo(name, SETTINGS.short_side_max).size
        assert not (painted(size, boxes["train"][name]) * painted(size, boxes["validation"][name])).any()


def test_a_crop_is_what_its_source_says():
    exact = SETTINGS.model_copy(update={"crop_side_min": 16, "crop_side_max": 16, "train_crops": 10})
    for row in open_photos(exact, seed=0).train:
        name, _, box = row.source.partition("@")
        left, top, side = (int(number) for number in box.split(","))
        photo = np.asarray(load_photo(name, exact.short_side_max))
        np.testing.assert_array_equal(np.asarray(row.image), photo[top : top + side, left : left + side])


def test_photographs_are_rgb_and_scaled_down_only():
    sizes = {name: load_photo(name, 350).size for name in PHOTOS}
    assert sizes["chelsea"] == (451, 300)
    assert sizes["retina"] == (350, 350)
    assert all(min(size) <= 350 for size in sizes.values())
    assert load_photo("coffee", 350).mode == "RGB"


def test_crops_follow_from_the_seed():
    def first_sources(seed):
        return [row.source for row in open_photos(SETTINGS, seed).train][:20]

    assert first_sources(5) == first_sources(5)
    assert first_sources(5) != first_sources(6)


def test_crop_side_that_no_cell_holds_is_refused_with_its_key_and_photograph():
    limit = 300 // 5  # of chelsea, the smallest photograph
    fits = SETTINGS.model_copy(update={"short_side_max": 512, "crop_side_max": limit})
    assert len(open_photos(fits, seed=0).classes) == 10
    with pytest.raises(UserError, match=r"^prepare_data\.crop_side_max: 61 .*chelsea.* 60$"):
        open_photos(fits.model_copy(update={"crop_side_max": limit + 1}), seed=0)
