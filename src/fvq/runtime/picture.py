"""Pictures of many images."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_TILE = 128  # pixels: smaller images are enlarged, by a whole factor, to this side or nearly
_GAP = 4
_TEXT = 14
_COLUMNS = 8
_ERROR_FACTOR = 4
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def draw_grid(rows: Sequence[Tensor], *, left: Sequence[str] = (), top: Sequence[str] = ()) -> Image.Image:
    """Rows of images, each uint8 (n, 3, H, W), with text to the left of the rows and over the columns."""
    columns = max(len(row) for row in rows)
    factor = max(1, _TILE // max(rows[0].shape[2:]))
    height, width = (side * factor for side in rows[0].shape[2:])
    font = ImageFont.load_default(_TEXT)
    margin_left = round(max((font.getlength(text) for text in left), default=0)) + (2 * _GAP if left else 0)
    margin_top = _TEXT + 2 * _GAP if top else 0
    picture = Image.new(
        "RGB",
        (margin_left + columns * (width + _GAP) + _GAP, margin_top + len(rows) * (height + _GAP) + _GAP),
        _WHITE,
    )
    pen = ImageDraw.Draw(picture)
    for column, text in enumerate(top):
        # A long name is set smaller, so that it stays over its column.
        fitting = ImageFont.load_default(_TEXT * min(1, width / max(1, font.getlength(text))))
        x = margin_left + _GAP + column * (width + _GAP) + width / 2
        pen.text((x, margin_top / 2), text, _BLACK, fitting, anchor="mm")
    for number, row in enumerate(rows):
        y = margin_top + _GAP + number * (height + _GAP)
        if left:
            pen.text((margin_left - _GAP, y + height / 2), left[number], _BLACK, font, anchor="rm")
        enlarged = row.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1)
        for column, pixels_hwc in enumerate(enlarged):
            tile = Image.fromarray(pixels_hwc.contiguous().numpy())
            picture.paste(tile, (margin_left + _GAP + column * (width + _GAP), y))
    return picture


def draw_reconstructions(original_bchw: Tensor, reconstruction_bchw: Tensor) -> Image.Image:
    """Images uint8 (B, 3, H, W), eight in a row, with their reconstructions and the errors, four times as large, below.

    An error is the absolute difference of a value, clipped at 255.
    """
    error_bchw = (original_bchw.int() - reconstruction_bchw.int()).abs().mul(_ERROR_FACTOR).clamp(max=255).byte()
    parts = (images.split(_COLUMNS) for images in (original_bchw, reconstruction_bchw, error_bchw))
    rows = [row for rows in zip(*parts, strict=True) for row in rows]
    names = ["original", "reconstruction", f"error x{_ERROR_FACTOR}"]
    return draw_grid(rows, left=names * (len(rows) // len(names)))
