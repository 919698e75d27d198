"""Images for the page: as many and as large as it has room for, each line of them one PNG inside it."""

import base64
import io
from typing import NamedTuple

from PIL import Image

from fvq.study.archives import Images
from fvq.study.drawings.figures import strip
from fvq.study.results import spread

# Pictures of each line and the height of each: what is given up first stands first.
_CHOICES = ((10, 128), (6, 128), (4, 128), (6, 64), (4, 64), (3, 64), (2, 64), (2, 32))


class Grid(NamedTuple):
    """How many images a line shows, and how high they are at most, in pixels."""

    images: int
    height: int


def fitting_grid(lines: int, images: Images, budget: int) -> Grid:
    """The largest grid of so many ``lines`` like ``images`` (n, H, W, 3) that stays below ``budget`` bytes of pixels.

    The smallest that there is where none does. Files grow by a third inside a page and shrink by the compression.
    """
    _, height, width, channels = images.shape
    for choice in (Grid(min(number, len(images)), side) for number, side in _CHOICES):
        thinned = max(1, height // choice.height)
        if lines * choice.images * (height // thinned) * (width // thinned) * channels <= budget:
            return choice
    return choice


def strip_uri(images: Images, grid: Grid) -> str:
    """Evenly picked images in one line as the data address of a PNG."""
    file = io.BytesIO()
    picked = images[spread(len(images), grid.images)]
    Image.fromarray(strip(picked, height=grid.height)).save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
