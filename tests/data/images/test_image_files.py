"""A picture is read as a viewer shows it, and refused where its file does not say how it looks."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image, ImageCms

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images import image_files
from galaxyhpc.data.simulate import render_image

SIDE = 40


def galaxy() -> NDArray[np.uint8]:
    return render_image(5, [1, 5], SIDE)


def read(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of the only image of a file."""
    assert image_files.count_images(path, DataConfig()) == 1
    (image,) = image_files.read_images(path, DataConfig())
    if isinstance(image, image_files.ImageError):
        raise image
    return image.pixels


def write_deep_png(path: Path, pixels: NDArray[np.uint16]) -> None:
    """Write a PNG of 16 bits per band, (S, S, 3 or 4), which Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2 if pixels.shape[2] == 3 else 6, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


@pytest.mark.parametrize("factor", [16, 257])  # of 12 bits, and of 16
@pytest.mark.parametrize("num_bands", [3, 4])
def test_a_picture_of_16_bits_is_refused_since_its_white_is_unknown(
    tmp_path: Path, factor: int, num_bands: int
) -> None:
    opaque = np.full((SIDE, SIDE, 1), 65535, np.uint16)
    pixels = np.concatenate([galaxy().astype(np.uint16) * factor, opaque], axis=2)[..., :num_bands]
    write_deep_png(tmp_path / "a.png", pixels)
    with pytest.raises(
        image_files.ImageError, match=r"more than 8 bits per colour .*; expected .* 8 bits each: scale white"
    ):
        image_files.count_images(tmp_path / "a.png", DataConfig())


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    shown = galaxy()
    shown[:10] = 0
    hidden = galaxy()
    hidden[:10] = np.random.default_rng(0).integers(0, 255, (10, SIDE, 3))
    alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.concatenate([hidden, alpha], axis=2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read(tmp_path / "rgba.png"), shown)
    keyed = galaxy()
    keyed[:10] = (1, 2, 3)
    Image.fromarray(keyed).save(tmp_path / "key.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(
        read(tmp_path / "key.png"), np.where((keyed == (1, 2, 3)).all(2)[..., None], 0, keyed)
    )
    alpha[:] = 128
    Image.fromarray(np.concatenate([galaxy(), alpha], axis=2)).save(tmp_path / "half.png")
    np.testing.assert_allclose(read(tmp_path / "half.png"), galaxy() * (128 / 255), atol=1)


def test_a_picture_without_colours_is_refused_however_it_is_stored(tmp_path: Path) -> None:
    grey = Image.fromarray(galaxy()).convert("L")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        grey.convert(mode).save(tmp_path / "a.png")
        with pytest.raises(image_files.ImageError, match="a grey image"):
            read(tmp_path / "a.png")
        (image,) = image_files.read_images(tmp_path / "a.png", DataConfig(), allow_grey=True)
        assert isinstance(image, image_files.GalaxyImage) and (image.pixels == image.pixels[..., :1]).all()
    grey.save(tmp_path / "a.jpg")
    with pytest.raises(image_files.ImageError, match=r"a grey image \(mode L\)"):
        read(tmp_path / "a.jpg")


def test_a_palette_of_colours_is_read(tmp_path: Path) -> None:
    picture = Image.fromarray(galaxy()).quantize(200)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


def test_a_picture_is_upright_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 100, "subsampling": 0})):
        Image.fromarray(galaxy()).save(tmp_path / name, exif=exif, **options)
        difference = read(tmp_path / name).astype(int) - np.rot90(galaxy(), -1)
        assert np.abs(difference).max() <= (0 if name == "a.png" else 6)


def make_profile(swap: bool) -> bytes:
    """Return an ICC profile: sRGB, or one of another name whose red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if not swap:
        return profile
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be")).replace(b"sRGB built", b"Swap built")


def test_colours_of_another_profile_become_those_of_srgb(tmp_path: Path) -> None:
    for swap, expected in ((False, galaxy()), (True, galaxy()[..., ::-1])):
        profile = make_profile(swap)
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        assert ("sRGB" in description) != swap
        Image.fromarray(galaxy()).save(tmp_path / "a.png", icc_profile=profile)
        difference = np.abs(read(tmp_path / "a.png").astype(int) - expected)
        assert difference.max() <= (3 if swap else 0)


def test_a_file_of_several_pictures_or_of_other_colours_is_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(galaxy())
    picture.save(tmp_path / "a.png", save_all=True, append_images=[picture.rotate(90)])
    picture.convert("CMYK").save(tmp_path / "b.jpg")
    for name, message in (("a.png", "2 images in one file; expected one"), ("b.jpg", "mode CMYK; expected red, green")):
        with pytest.raises(image_files.ImageError, match=message):
            image_files.count_images(tmp_path / name, DataConfig())


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_an_image_is_read_by_its_content_and_not_by_its_name(tmp_path: Path, image_format: str) -> None:
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    Image.fromarray(galaxy()).save(tmp_path / "a", image_format, **lossless)
    (tmp_path / "a").rename(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), expected)
    assert image_format == "JPEG" or (expected == galaxy()).all()


def test_an_image_of_another_format_is_refused(tmp_path: Path) -> None:
    Image.fromarray(galaxy()).save(tmp_path / "a", "GIF")
    (tmp_path / "a").rename(tmp_path / "a.png")
    with pytest.raises(image_files.ImageError, match="a GIF image; expected a PNG, JPEG, TIFF or WebP image"):
        image_files.count_images(tmp_path / "a.png", DataConfig())


def find_flaws(path: Path) -> list[str]:
    return [
        image.flaw
        for image in image_files.read_images(path, DataConfig())
        if isinstance(image, image_files.GalaxyImage)
    ]


def test_images_that_show_no_galaxy_are_described(tmp_path: Path) -> None:
    no_green = galaxy()
    no_green[..., 1] = 9
    images = np.stack([galaxy(), no_green, np.full_like(no_green, 255)])
    with h5py.File(tmp_path / "bytes.h5", "w") as file:
        file["images"] = images
    with h5py.File(tmp_path / "floats.h5", "w") as file:
        file["images"] = images / 255
    assert find_flaws(tmp_path / "bytes.h5") == find_flaws(tmp_path / "floats.h5") == ["", "no green", "blank"]
    Image.new("RGBA", (SIDE, SIDE), (9, 8, 7, 0)).save(tmp_path / "a.png")  # transparent
    assert find_flaws(tmp_path / "a.png") == ["blank"]
    flux = np.random.default_rng(0).normal(0.02, 0.1, (3, SIDE, SIDE)).astype(np.float32)
    flux[2] = 0
    fits.writeto(tmp_path / "a.fits", flux, fits.Header({"BANDS": "grz"}))  # its stretched bands are all structured
    assert find_flaws(tmp_path / "a.fits") == ["no z"]
