"""A user's own images of galaxies, read from HDF5, PNG, JPEG, TIFF, WebP or FITS as uint8 like the training images.

An image is taken as a viewer shows it: upright, in sRGB, on black where it is transparent; grey images have three equal
bands. 16 bits are refused: the file does not say which value is white. FITS images are those of `fits_images`.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.fits_images import FITS_ENDINGS, check_fits, read_fits
from galaxyhpc.data.images.galaxy_image import (
    GalaxyImage,
    ImageError,
    UInt8Array,
    check_shape,
    crop_to_square,
    describe_flaw,
    is_grey,
    make_error,
)
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.sources.hdf5 import compute_slice_size
from galaxyhpc.data.sources.read_errors import describe_missing_array, explain_array, find_missing_parts
from galaxyhpc.data.sources.tables import TABLE_ENDINGS
from galaxyhpc.storage.files import sanitize

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_ENDINGS",
    "GalaxyImage",
    "ImageError",
    "UInt8Array",
    "check_image",
    "convert_pixels",
    "count_images",
    "find_files",
    "read_image",
    "read_images",
    "refuse_grey",
]

COLOUR_MODES = ("RGB", "RGBA", "P", "PA")  # of Pillow
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "F")  # more than 8 bits, of which no value is known to be white
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")  # of Pillow
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
HDF5_ENDINGS = (".h5", ".hdf5")
FITS_SIGNATURE = b"SIMPLE  ="
PICTURE_TYPE = "a PNG, JPEG, TIFF or WebP image"
IMAGE_ENDINGS = (*PICTURE_ENDINGS, *FITS_ENDINGS)  # of files with one image
ALL_ENDINGS = tuple(dict.fromkeys((*HDF5_ENDINGS, *IMAGE_ENDINGS, *TABLE_ENDINGS)))
HDF5_TYPE = "an HDF5 file with images (N, S, S, 3)"
EXPECTED_COLOURS = "red, green and blue, 8 bits each"


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files of these names and globs, each once; a name that is not there stands for itself."""
    names = (
        [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True)) or [pattern]
        for pattern in patterns
    )
    return list(dict.fromkeys(Path(name) for group in names for name in group))


def list_files(path: Path, endings: tuple[str, ...]) -> list[str]:
    """Return the sorted names of the files below a directory, relative to it, that end so; hidden ones are left out."""
    names = []
    for parent, directories, files in os.walk(path):
        directories[:] = [name for name in directories if not name.startswith(".")]
        matching = [name for name in files if name.lower().endswith(endings) and not name.startswith(".")]
        names += [os.path.relpath(os.path.join(parent, name), path) for name in matching]
    return sorted(names)


def count_images(path: Path, config: DataConfig, allow_grey: bool = False) -> int:
    """Return the number of images in a file, from its header alone; `config` and `allow_grey` as for `read_images`.

    Raises
    ------
    ImageError
    """
    with translate_read_errors(path, ", ".join(f"*{ending}" for ending in ALL_ENDINGS)):
        path.stat()
        if not path.is_file():  # opening a pipe would wait
            raise OSError
    name = path.name.lower()
    if name.endswith(HDF5_ENDINGS):
        return get_hdf5_layout(path)[0]
    if not name.endswith(IMAGE_ENDINGS):
        raise make_error(path, f"the ending {path.suffix or '(none)'}", ", ".join(ALL_ENDINGS))
    check_image(path, config, allow_grey)
    return 1


def check_image(path: Path, config: DataConfig, allow_grey: bool = False) -> None:
    """Check the header of a file with one image; `config` and `allow_grey` as for `read_images`.

    Raises
    ------
    ImageError
    """
    if path.name.lower().endswith(FITS_ENDINGS):
        check_fits(path, config)
        return
    with _open_picture(path, path) as image:
        check_shape(path, image.height, image.width, config.crop)
        if image.mode in GREY_MODES and not allow_grey:
            raise make_error(path, f"a grey image (mode {image.mode})", EXPECTED_COLOURS)


def read_images(path: Path, config: DataConfig, allow_grey: bool = False) -> Iterator[GalaxyImage | ImageError]:
    """Yield the images of a file in order, or in its place the reason why one cannot be used.

    `config` is that of the run: its crop and bands of FITS. Without `allow_grey`, images without colours are refused,
    however they are stored: for a network that was trained on colours they mean nothing.
    """
    is_hdf5 = path.name.lower().endswith(HDF5_ENDINGS)
    try:
        images = _read_hdf5(path) if is_hdf5 else iter([read_image(path, str(path), config)])
        yield from images if allow_grey else refuse_grey(path, images)
    except ImageError as error:
        yield error


def refuse_grey(path: Path, images: Iterator[GalaxyImage | ImageError]) -> Iterator[GalaxyImage | ImageError]:
    """Yield the images of a file, or an error in the place of one without colours."""
    for index, image in enumerate(images):
        if isinstance(image, GalaxyImage) and is_grey(image.pixels):
            yield make_error(path, f"a grey image in images[{index}]", EXPECTED_COLOURS)
        else:
            yield image


def read_image(file: Path | io.BytesIO, name: str, config: DataConfig) -> GalaxyImage:
    """Return the image of a file with one, cropped and with bands as in `config`; `name` is for messages.

    Raises
    ------
    ImageError
    """
    path = Path(name)
    if isinstance(file, Path) and path.name.lower().endswith(FITS_ENDINGS):
        return read_fits(file, config)
    if not isinstance(file, Path) and _is_fits(file):
        return read_fits(path, config, file)
    with _open_picture(file, path) as image:
        pixels = crop_to_square(path, np.asarray(_to_shown_colours(image)), config.crop)
        return GalaxyImage(pixels, describe_flaw(pixels))


def _is_fits(file: io.BytesIO) -> bool:
    head = file.read(len(FITS_SIGNATURE))
    file.seek(0)
    return head == FITS_SIGNATURE


@contextmanager
def _open_picture(file: Path | io.BytesIO, path: Path) -> Iterator[Image]:
    """Open a PNG, JPEG, TIFF or WebP image of usable colours, whose pixels are not decoded yet."""
    from PIL import Image

    with translate_read_errors(path, PICTURE_TYPE, file), Image.open(file, formats=PICTURE_FORMATS) as image:
        if (num_frames := getattr(image, "n_frames", 1)) > 1:
            raise make_error(path, f"{num_frames} images in one file", "one")
        if image.mode in DEEP_MODES or any("16" in str(tile[3]) for tile in image.tile):
            got = f"more than 8 bits per colour (mode {image.mode}), of which the file does not say which is white"
            raise make_error(path, got, "grey, or red, green and blue, of 8 bits each: scale white to 255")
        if image.mode not in (*COLOUR_MODES, *GREY_MODES):
            raise make_error(path, f"an image of mode {image.mode}", EXPECTED_COLOURS)
        yield image


def _to_shown_colours(image: Image) -> Image:
    """Return a picture as a viewer shows it: turned as its camera says, on black, and in sRGB."""
    from PIL import Image, ImageCms, ImageOps

    profile = image.info.get("icc_profile") if image.mode in COLOUR_MODES else None
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert("RGB")
    if profile is None:
        return image
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(own):  # converting would change pixels by rounding
        return image
    converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"))
    assert converted is not None  # it is None only in place
    return converted


def convert_pixels(values: NDArray[Any], name: str, crop: str) -> UInt8Array:
    """Return an array of pixels as (S, S, 3) uint8: of (S, S), (S, S, 1), (S, S, 3) or (3, S, S), in 0 to 255.

    Raises
    ------
    ImageError
    """
    path, kind = Path(name), f"{values.dtype.name} {values.shape}"
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and values.shape[0] == 3 != values.shape[2]:
        values = values.transpose(1, 2, 0)
    is_image = values.ndim == 3 and values.shape[2] in (1, 3) and values.size and values.dtype.kind in "iu"
    if not is_image or values.min() < 0 or values.max() > 255:
        raise make_error(path, f"an array {kind}", "whole numbers from 0 to 255 in (S, S), (S, S, 3) or (3, S, S)")
    return crop_to_square(path, np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8), crop)


def _read_hdf5(path: Path) -> Iterator[GalaxyImage | ImageError]:
    num_images, slice_size = get_hdf5_layout(path)
    for start in range(0, num_images, slice_size):
        stop = min(start + slice_size, num_images)
        try:
            with translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
                images: NDArray[Any] = file["images"][start:stop]
        except ImageError as error:  # a damaged chunk
            yield from [error] * (stop - start)
            continue
        for index, image in enumerate(images, start):
            yield to_galaxy_image(path, image, index)


def get_hdf5_layout(path: Path) -> tuple[int, int]:
    """Return the number of images in an HDF5 file and the number to read at once.

    Raises
    ------
    ImageError
    """
    with translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
        images = get_hdf5_images(path, file)
        return len(images), compute_slice_size(path, images)


def get_hdf5_images(path: Path, file: h5py.File) -> h5py.Dataset:
    """Return the images of an open HDF5 file, which can be read.

    Raises
    ------
    ImageError
    """
    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        got = describe_missing_array(file, "images")
        raise ImageError(sanitize(f"{path}: images: got {got}; expected an array (N, S, S, 3)"))
    if missing := find_missing_parts(images):
        raise make_error(path, f"images in {missing[0]}, which does not exist", "that file beside this one")
    if images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise make_error(path, f"images of shape {images.shape}", "(N, S, S, 3), one or more")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise make_error(path, f"images of {images.dtype}", "uint8, or floats in [0, 1]")
    check_shape(path, *images.shape[1:3])
    try:
        compute_slice_size(path, images)
    except DataError as error:
        raise ImageError(str(error)) from error
    if explain_array(images):  # a filter is missing, which chunks that it did not shrink do without
        for corner in (0, -1):
            images[corner, corner, corner, corner]
    return images


def to_galaxy_image(path: Path, values: NDArray[Any], index: int) -> GalaxyImage | ImageError:
    """Convert (S, S, 3) uint8, or floats in [0, 1]; `index` is that in the file."""
    if values.dtype == np.uint8:
        return GalaxyImage(values, describe_flaw(values))
    low, high = values.min(), values.max()  # NaN if any pixel is
    if not (low >= 0 and high <= 1):
        got = f"values from {low:g} to {high:g} in images[{index}]"
        return make_error(path, got, "finite floats in [0, 1], or uint8")
    return GalaxyImage(np.rint(255 * values).astype(np.uint8), describe_flaw(values))
