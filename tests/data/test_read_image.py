"""Images of a source become (S, S, 3) uint8 whatever format and colours they are stored in."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import encode
from PIL import Image

from galaxyhpc.data.image_files import ImageError, convert_pixels, read_image

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
GREY = COLOUR[..., 0]
GREY16 = GREY.astype(np.uint16) * 257
TWO_IMAGES = encode(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])


def read(content: bytes, crop: str = "none") -> np.ndarray:
    return read_image(BytesIO(content), "row 7", crop)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WebP"])
def test_colours_are_read_bit_by_bit(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WebP" else {}
    assert np.array_equal(read(encode(COLOUR, image_format, **options)), COLOUR)


def test_a_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(encode(COLOUR, "JPEG"))
    expected = np.asarray(Image.open(tmp_path / "a.JPG"))
    assert np.array_equal(read_image(tmp_path / "a.JPG", "a.JPG", "none"), expected)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("grey", [GREY, GREY16], ids=["8 bits", "16 bits"])
def test_a_grey_image_has_three_equal_bands(image_format: str, grey: np.ndarray) -> None:
    assert np.array_equal(read(encode(grey, image_format)), np.repeat(GREY[..., None], 3, axis=2))


def test_colours_of_16_bits_keep_their_upper_8() -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in COLOUR)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    assert np.array_equal(read(content), COLOUR)


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
        (encode(GREY.astype(np.float32), "TIFF"), "got an image of mode F; expected grey or RGB, 8 or 16 bits"),
        (TWO_IMAGES, "got 2 images in one file"),
        (encode(GREY16.astype(np.int32) * 2, "TIFF"), "got values from 0 to 130556; expected 8 or 16 bits"),
    ],
    ids=["empty", "cut off", "floats", "several", "32 bits"],
)
def test_what_is_no_image_of_a_galaxy_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError) as error:
        read(content)
    assert str(error.value).startswith("row 7: ") and message in str(error.value)


def test_a_damaged_file_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html><title>Not found</title>")
    with pytest.raises(ImageError, match=r"a.png: got a web page \(Not found\); expected a PNG, JPEG, TIFF"):
        read_image(tmp_path / "a.png", str(tmp_path / "a.png"), "none")


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
