"""From encoded bytes to RGB pixels: the rule for each kind of image, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from fvq.data.decoding import decode_rgb, read_rgb_image
from fvq.runtime.errors import UserError


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image_bytes, turn_by_exif=True):
    image = decode_rgb(image_bytes, turn_by_exif=turn_by_exif)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_pixel_modes_become_rgb(mode):
    black = Image.new("RGB", (6, 5), (0, 0, 0)).convert(mode)
    converted = pixels(encoded(black, "tiff"))
    assert converted.shape == (5, 6, 3) and converted.max() <= 1


def test_grey_is_replicated_and_transparency_dropped():
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey))), np.stack([grey] * 3, 2))
    colour = np.asarray(noise(6, 5))
    clear = np.dstack([colour, np.zeros((5, 6), np.uint8)])
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(clear))), colour)


def test_cmyk_jpeg_is_converted_as_pillow_does():
    data = encoded(noise(16, 16).convert("CMYK"), "jpeg")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(pixels(data), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_and_16_bit_grey():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert pixels(encoded(palette, transparency=b"\x00\x80"))[2, 2].tolist() == [200, 100, 50]
    deep = np.array([[0, 0x1234], [0x8000, 0xFFFF]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(deep)))[..., 0], deep >> 8)
    with pytest.raises(ValueError, match=r"mode F have no fixed range"):
        pixels(encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "tiff"))


def test_exif_rotation_is_applied_on_request():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise: the left half comes to the top
    turned = encoded(image, exif=exif)
    assert pixels(turned).shape == (40, 20, 3)
    assert pixels(turned)[:20].min() == 255 and pixels(turned)[20:].max() == 0
    np.testing.assert_array_equal(pixels(turned, turn_by_exif=False), np.asarray(image))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_what_cannot_be_decoded_whole_is_refused_in_one_line(tmp_path, kind):
    whole = encoded(noise(64, 64), kind)
    for share in (0.0, 0.01, 0.3, 0.9):
        cut = whole[: int(share * len(whole))]
        with pytest.raises(ValueError) as caught:
            pixels(cut)
        reason = str(caught.value)
        assert reason and "\n" not in reason and " at 0x" not in reason
        (tmp_path / "cut").write_bytes(cut)
        with pytest.raises(UserError) as caught:
            read_rgb_image(tmp_path / "cut")
        assert str(caught.value) == f"{tmp_path / 'cut'}: not a readable image ({reason})"


def test_a_file_is_read_turned_and_a_missing_one_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = noise(7, 5)
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_rgb_image(tmp_path / "turned.png")), np.asarray(image)[::-1, ::-1])
    with pytest.raises(UserError, match=r"gone\.png: not a readable image \(.*No such file"):
        read_rgb_image(tmp_path / "gone.png")
