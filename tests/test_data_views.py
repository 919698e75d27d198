"""Named views: each against torch's own reflection padding."""

import pytest
import torch
import torch.nn.functional as F

from fvq.data.views import VIEWS, apply_view
from fvq.runtime.errors import UserError

IMAGES = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_there_are_ten_views_and_the_first_is_the_image():
    assert len(set(VIEWS)) == len(VIEWS) == 10
    assert torch.equal(apply_view(IMAGES, VIEWS[0]), IMAGES)


@pytest.mark.parametrize("flip", ["", "_flip"])
@pytest.mark.parametrize("corner", ["tl", "tr", "bl", "br"])
def test_shifted_views_are_corners_of_the_padded_image(corner, flip):
    padded = F.pad(IMAGES.float(), (3, 3, 4, 4), mode="reflect").to(torch.uint8)
    rows = slice(None, 32) if corner[0] == "t" else slice(-32, None)
    columns = slice(None, 24) if corner[1] == "l" else slice(-24, None)
    expected = padded[:, :, rows, columns]
    view = apply_view(IMAGES, f"shift_{corner}{flip}")
    assert view.dtype == torch.uint8
    assert torch.equal(view, expected.flip(-1) if flip else expected)


def test_views_of_a_picture_without_symmetry_all_differ():
    views = [apply_view(IMAGES, name) for name in VIEWS]
    assert not any(torch.equal(one, other) for at, one in enumerate(views) for other in views[:at])


@pytest.mark.parametrize("name", ["", "centre", "_flip", "shift_", "shift_tl_flip_flip"])
def test_unknown_view_lists_the_known_ones(name):
    with pytest.raises(UserError, match=r"center, center_flip, shift_tl, .*shift_br_flip"):
        apply_view(IMAGES, name)
