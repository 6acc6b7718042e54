"""Images of a source become (S, S, 3) uint8 whatever format and colours they are stored in."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import encode
from PIL import Image

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images.image_files import ImageError, convert_pixels, read_image

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
GREY = COLOUR[..., 0]
GREY16 = GREY.astype(np.uint16) * 257
TWO_IMAGES = encode(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])


def write_deep_tiff() -> bytes:
    """Return a TIFF with colours of 16 bits, which Pillow reads and cannot write: its upper 8 bits."""
    file, pixels = BytesIO(), (COLOUR.astype("<u2") * 257).tobytes()
    tags = ((256, 20), (257, 20), (258, 16), (259, 1), (262, 2), (273, 8), (277, 3), (278, 20), (279, len(pixels)))
    file.write(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)))
    for number, value in tags:
        file.write(struct.pack("<HHII", number, 4, 1, value))
    return file.getvalue() + struct.pack("<I", 0)


def read(content: bytes, crop: str = "none") -> np.ndarray:
    return read_image(BytesIO(content), "row 7", DataConfig(crop=crop)).pixels


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WebP"])
def test_colours_are_read_bit_by_bit(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WebP" else {}
    assert np.array_equal(read(encode(COLOUR, image_format, **options)), COLOUR)


def test_a_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(encode(COLOUR, "JPEG"))
    expected = np.asarray(Image.open(tmp_path / "a.JPG"))
    assert np.array_equal(read_image(tmp_path / "a.JPG", "a.JPG", DataConfig()).pixels, expected)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG"])
def test_a_grey_image_has_three_equal_bands(image_format: str) -> None:
    content = encode(GREY, image_format)
    expected = np.asarray(Image.open(BytesIO(content)))
    assert np.array_equal(read(content), np.repeat(expected[..., None], 3, axis=2))


def test_transparent_pixels_are_black() -> None:
    alpha = np.where(np.arange(20) < 10, 255, 0).astype(np.uint8)
    image = np.concatenate([COLOUR, np.broadcast_to(alpha, (20, 20))[..., None]], axis=2)
    pixels = read(encode(image))
    assert np.array_equal(pixels[:, :10], COLOUR[:, :10]) and not pixels[:, 10:].any()


def test_an_image_that_is_not_square_is_refused_or_cropped_as_asked() -> None:
    wide = np.concatenate([np.zeros((20, 5, 3), np.uint8), COLOUR, np.zeros((20, 5, 3), np.uint8)], axis=1)
    with pytest.raises(ImageError, match=r"row 7: got 30 x 20 px; expected square images .*; data.crop=center cuts"):
        read(encode(wide))
    assert np.array_equal(read(encode(wide), "center"), COLOUR)
    assert np.array_equal(read(encode(wide.transpose(1, 0, 2)), "center"), COLOUR.transpose(1, 0, 2))
    assert np.array_equal(convert_pixels(wide, "row 7", "center"), COLOUR)


@pytest.mark.parametrize("side", [15, 2049])
def test_images_that_are_too_small_or_large_are_refused(side: int) -> None:
    with pytest.raises(ImageError, match=f"got {side} x {side} px; expected square images of 16 to 2048 px"):
        read(encode(np.zeros((side, side), np.uint8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing; expected a PNG, JPEG, TIFF or WebP image"),
        (encode(COLOUR)[:300], "got 300 bytes that are none, or damaged"),
        (encode(GREY.astype(np.float32), "TIFF"), "got more than 8 bits per colour (mode F)"),
        (encode(GREY16, "PNG"), "of which the file does not say which is white; expected grey, or red, green and blue"),
        (write_deep_tiff(), "got more than 8 bits per colour (mode RGB)"),
        (encode(COLOUR, "WebP", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]), "got 2 images in one"),
        (TWO_IMAGES, "got 2 images in one file"),
        (encode(GREY16.astype(np.int32) * 2, "TIFF"), "got more than 8 bits per colour (mode I)"),
    ],
    ids=["empty", "cut off", "floats", "16 bits", "colours of 16 bits", "animated", "several", "32 bits"],
)
def test_what_is_no_image_of_a_galaxy_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError) as error:
        read(content)
    assert str(error.value).startswith("row 7: ") and message in str(error.value)


def test_a_damaged_file_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html><title>Not found</title>")
    with pytest.raises(ImageError, match=r"a.png: got a web page \(Not found\); expected a PNG, JPEG, TIFF"):
        read_image(tmp_path / "a.png", str(tmp_path / "a.png"), DataConfig())


@pytest.mark.parametrize(
    "values", [COLOUR, COLOUR.astype(np.int64), COLOUR.transpose(2, 0, 1)], ids=["uint8", "int64", "bands first"]
)
def test_arrays_of_pixels_are_images(values: np.ndarray) -> None:
    assert np.array_equal(convert_pixels(values, "row 7", "none"), COLOUR)


def test_arrays_that_are_no_pixels_are_refused() -> None:
    for values in (COLOUR / 255.0, COLOUR.astype(int) - 1, COLOUR.astype(int) * 2, COLOUR[..., :2], COLOUR.ravel()):
        with pytest.raises(ImageError, match=r"row 7: got an array .*; expected whole numbers from 0 to 255"):
            convert_pixels(values, "row 7", "none")
    assert np.array_equal(convert_pixels(GREY, "row 7", "none"), np.repeat(GREY[..., None], 3, axis=2))
