"""A user's own images of galaxies, read from HDF5, PNG, JPEG or FITS as uint8 like the training images.

FITS images in g, r and z become RGB images as in the viewer that Galaxy10's were taken from (`simulate.stretch`). FITS
counts rows from the bottom, the other formats from the top. A picture is taken as a viewer shows it: upright, in sRGB,
on black where it is transparent. One without colours is refused, however it is stored.
"""

from __future__ import annotations

import glob
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from galaxyhpc.data import DataError
from galaxyhpc.data.simulate import stretch
from galaxyhpc.data.sources.hdf5 import SIZE_RANGE_PX, compute_slice_size
from galaxyhpc.data.sources.read_errors import (
    describe_missing_array,
    explain_array,
    explain_read_error,
    find_missing_parts,
)
from galaxyhpc.storage.files import sanitize

if TYPE_CHECKING:
    from PIL.Image import Image

UInt8Array = NDArray[np.uint8]
CountImages = Callable[[Path], int]
ReadImages = Callable[[Path], Iterator["GalaxyImage | ImageError"]]

EXPECTED_SQUARE = f"square images of {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px with the galaxy in the middle"
COLOUR_MODES = ("RGB", "RGBA", "P", "PA")  # of Pillow
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")  # of Pillow
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz")
PICTURE_TYPE = "a PNG, JPEG, TIFF or WebP image"
IMAGE_ENDINGS = (*PICTURE_ENDINGS, *FITS_ENDINGS)  # of files with one image
HDF5_TYPE = "an HDF5 file with images (N, S, S, 3)"
EXPECTED_COLOURS = "red, green and blue, 8 bits each"
EXPECTED_FITS = (
    "floats (3, S, S) in g, r, z (nanomaggies per 0.262 arcsec pixel), or bytes (3, S, S) or (S, S, 3) in R, G, B"
)


class ImageError(ValueError):
    """A file that holds no image of a galaxy, or an image in it that cannot be used; one line that names the file."""


class GalaxyImage(NamedTuple):
    """An image of a galaxy, as a network sees it."""

    pixels: UInt8Array  # (S, S, 3)
    flaw: str  # "blank", or the bands that show nothing, such as "no blue"


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files of these names and globs, each once; a name that is not there stands for itself."""
    names = (
        [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True)) or [pattern]
        for pattern in patterns
    )
    return list(dict.fromkeys(Path(name) for group in names for name in group))


def count_images(path: Path) -> int:
    """Return the number of images in a file, from its header alone.

    Raises
    ------
    ImageError
    """
    with _translate_read_errors(path, ", ".join(f"*{ending}" for ending in READERS)):
        path.stat()
        if not path.is_file():  # opening a pipe would wait
            raise OSError
    return _get_format(path)[0](path)


def read_images(path: Path) -> Iterator[GalaxyImage | ImageError]:
    """Yield the images of a file in order, or in its place the reason why one cannot be used."""
    try:
        for index, image in enumerate(_get_format(path)[1](path)):
            if isinstance(image, GalaxyImage) and _is_grey(image.pixels):
                yield _make_error(path, f"a grey image in images[{index}]", EXPECTED_COLOURS)
            else:
                yield image
    except ImageError as error:
        yield error


def _describe_flaw(bands: NDArray[Any], names: Sequence[str] = ("red", "green", "blue")) -> str:
    """Say what keeps the class of an image (S, S, 3) from meaning anything: no galaxy, or a band without one."""
    is_constant = bands.min(axis=(0, 1)) == bands.max(axis=(0, 1))
    if is_constant.all():
        return "blank"
    return " and ".join(f"no {name}" for name, empty in zip(names, is_constant, strict=True) if empty)


def _is_grey(image: UInt8Array) -> bool:
    """Whether an (S, S, 3) image shows something, and no colours."""
    return bool((image == image[..., :1]).all() and image.min() < image.max())


def _make_error(path: Path, got: str, expected: str) -> ImageError:
    return ImageError(f"{sanitize(str(path))}: got {sanitize(got)}; expected {expected}")


def _get_format(path: Path) -> tuple[CountImages, ReadImages]:
    for ending, functions in READERS.items():
        if path.name.lower().endswith(ending):
            return functions
    raise _make_error(path, f"the ending {path.suffix or '(none)'}", ", ".join(READERS))


@contextmanager
def _translate_read_errors(path: Path, file_type: str) -> Iterator[None]:
    """Turn the errors of a library about a foreign or damaged file into an ImageError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Exception as error:  # a damaged file may raise anything
        message = explain_read_error(path, error, file_type)
        raise ImageError(sanitize(f"{path}: {message}")) from error


def _check_shape(path: Path, height: int, width: int) -> None:
    if height != width or not SIZE_RANGE_PX[0] <= height <= SIZE_RANGE_PX[1]:
        raise _make_error(path, f"{width} x {height} px", f"{EXPECTED_SQUARE}: cut them out first")


def _read_hdf5(path: Path) -> Iterator[GalaxyImage | ImageError]:
    num_images, slice_size = _get_hdf5_layout(path)
    for start in range(0, num_images, slice_size):
        stop = min(start + slice_size, num_images)
        try:
            with _translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
                images: NDArray[Any] = file["images"][start:stop]
        except ImageError as error:  # a damaged chunk
            yield from [error] * (stop - start)
            continue
        for index, image in enumerate(images, start):
            yield _to_galaxy_image(path, image, index)


def _count_hdf5(path: Path) -> int:
    return _get_hdf5_layout(path)[0]


def _get_hdf5_layout(path: Path) -> tuple[int, int]:
    """Return the number of images in an HDF5 file and the number to read at once."""
    with _translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
        images = file.get("images")
        if not isinstance(images, h5py.Dataset):
            got = describe_missing_array(file, "images")
            raise ImageError(sanitize(f"{path}: images: got {got}; expected an array (N, S, S, 3)"))
        if missing := find_missing_parts(images):
            raise _make_error(path, f"images in {missing[0]}, which does not exist", "that file beside this one")
        if images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
            raise _make_error(path, f"images of shape {images.shape}", "(N, S, S, 3), one or more")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise _make_error(path, f"images of {images.dtype}", "uint8, or floats in [0, 1]")
        _check_shape(path, *images.shape[1:3])
        try:
            layout = len(images), compute_slice_size(path, images)
        except DataError as error:
            raise ImageError(str(error)) from error
        if explain_array(images):  # a filter is missing, which chunks that it did not shrink do without
            for corner in (0, -1):
                images[corner, corner, corner, corner]
        return layout


def _to_galaxy_image(path: Path, values: NDArray[Any], index: int) -> GalaxyImage | ImageError:
    """Convert (S, S, 3) uint8, or floats in [0, 1]; `index` is that in the file."""
    if values.dtype == np.uint8:
        return GalaxyImage(values, _describe_flaw(values))
    low, high = values.min(), values.max()  # NaN if any pixel is
    if not (low >= 0 and high <= 1):
        got = f"values from {low:g} to {high:g} in images[{index}]"
        return _make_error(path, got, "finite floats in [0, 1], or uint8")
    return GalaxyImage(np.rint(255 * values).astype(np.uint8), _describe_flaw(values))


@contextmanager
def _open_picture(path: Path) -> Iterator[Image]:
    """Open a PNG or JPEG file of usable size and colours, whose pixels are not decoded yet."""
    from PIL import Image

    with _translate_read_errors(path, "a PNG or JPEG image"), Image.open(path, formats=("PNG", "JPEG")) as image:
        _check_shape(path, image.height, image.width)
        if image.mode in GREY_MODES:
            raise _make_error(path, f"a grey image (mode {image.mode})", EXPECTED_COLOURS)
        if image.mode not in COLOUR_MODES:
            raise _make_error(path, f"an image of mode {image.mode}", EXPECTED_COLOURS)
        if any("16" in str(tile[3]) for tile in image.tile):  # Pillow would drop the lower 8 bits
            got = "colours of 16 bits, of which the file does not say which value is white"
            raise _make_error(path, got, f"{EXPECTED_COLOURS}: scale white to 255")
        _check_single(path, image)
        yield image


def read_image(file: Path | BinaryIO, name: str, crop: str) -> UInt8Array:
    """Return an image of a source as (S, S, 3) uint8; `crop` is that of `DataConfig`, `name` for messages.

    Grey images have three equal bands. Of 16 bits the upper 8 count.

    Raises
    ------
    ImageError
    """
    from PIL import Image

    path = Path(name)
    if isinstance(file, Path) and path.name.lower().endswith(FITS_ENDINGS):
        return next(_read_fits(file)).pixels
    with _translate_image_errors(file, path), Image.open(file, formats=PICTURE_FORMATS) as image:
        _check_single(path, image)
        return np.asarray(_crop_to_square(path, _to_rgb_picture(path, image), crop))


@contextmanager
def _translate_image_errors(file: Path | BinaryIO, path: Path) -> Iterator[None]:
    if isinstance(file, Path):
        with _translate_read_errors(path, PICTURE_TYPE):
            yield
        return
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # damaged bytes may raise anything
        got = "nothing" if not file.seek(0, os.SEEK_END) else f"{file.tell()} bytes that are none, or damaged"
        raise _make_error(path, got, PICTURE_TYPE) from error


def convert_pixels(values: NDArray[Any], name: str, crop: str) -> UInt8Array:
    """Return an array of pixels as (S, S, 3) uint8: of (S, S), (S, S, 1), (S, S, 3) or (3, S, S), in 0 to 255.

    Raises
    ------
    ImageError
    """
    from PIL import Image

    path, kind = Path(name), f"{values.dtype.name} {values.shape}"
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and values.shape[0] == 3 != values.shape[2]:
        values = values.transpose(1, 2, 0)
    is_image = values.ndim == 3 and values.shape[2] in (1, 3) and values.size and values.dtype.kind in "iu"
    if not is_image or values.min() < 0 or values.max() > 255:
        raise _make_error(path, f"an array {kind}", "whole numbers from 0 to 255 in (S, S), (S, S, 3) or (3, S, S)")
    image = Image.fromarray(np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8))
    return np.asarray(_crop_to_square(path, image, crop))


def _to_rgb_picture(path: Path, image: Image) -> Image:
    """Return a picture of 8 bits in RGB as a viewer shows it."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        values = np.asarray(image)
        if values.max() > 65535 or values.min() < 0:
            raise _make_error(path, f"values from {values.min()} to {values.max()}", "8 or 16 bits")
        from PIL import Image

        grey = Image.fromarray((values >> 8).astype(np.uint8))
        grey.info |= {key: value for key, value in image.info.items() if key == "exif"}
        image = grey
    if image.mode not in (*COLOUR_MODES, "1", "L", "LA", "La"):
        raise _make_error(path, f"an image of mode {image.mode}", "grey or RGB, 8 or 16 bits")
    return _to_shown_colours(image)


def _crop_to_square(path: Path, image: Image, crop: str) -> Image:
    width, height = image.size
    side = min(width, height)
    if width != height and crop == "center":
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif width != height:
        raise _make_error(path, f"{width} x {height} px", f"{EXPECTED_SQUARE}; data.crop=center cuts out the middle")
    _check_shape(path, *image.size)
    return image


def _check_single(path: Path, image: Image) -> None:
    if (num_frames := getattr(image, "n_frames", 1)) > 1:
        raise _make_error(path, f"{num_frames} images in one file", "one")


def _count_picture(path: Path) -> int:
    with _open_picture(path):
        return 1


def _read_picture(path: Path) -> Iterator[GalaxyImage]:
    with _open_picture(path) as image:
        pixels = np.asarray(_to_shown_colours(image))
    yield GalaxyImage(pixels, _describe_flaw(pixels))


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


@contextmanager
def _open_fits(path: Path) -> Iterator[Any]:
    """Open the first image of a FITS file, whose pixels are not read yet."""
    from astropy.io import fits

    with _translate_read_errors(path, "a FITS file"), fits.open(path, memmap=False) as file:
        hdu = next((hdu for hdu in file if hdu.is_image and hdu.header["NAXIS"] > 0), None)
        if hdu is None:
            raise _make_error(path, "no image", EXPECTED_FITS)
        yield hdu


def _count_fits(path: Path) -> int:
    with _open_fits(path) as hdu:
        if len(hdu.shape) != 3:
            raise _make_error(path, f"an array {hdu.shape}", EXPECTED_FITS)
        _check_shape(path, *(hdu.shape[:2] if hdu.shape[2] == 3 else hdu.shape[1:]))
        return 1


def _read_fits(path: Path) -> Iterator[GalaxyImage]:
    with _open_fits(path) as hdu:
        data, bands = np.asarray(hdu.data), str(hdu.header.get("BANDS", "grz"))
    image = _to_rgb(path, data, bands)
    yield GalaxyImage(np.flip(image.pixels, 0), image.flaw)


def _to_rgb(path: Path, data: NDArray[np.generic], bands: str) -> GalaxyImage:
    """Convert the planes of a FITS image; cutouts of the Legacy Surveys name their bands in the header."""
    is_flux = data.dtype.kind == "f" and data.ndim == 3 and len(data) == len(bands) and set("grz") <= set(bands)
    is_rgb = data.dtype == np.uint8 and data.ndim == 3 and 3 in (data.shape[0], data.shape[2])
    if not is_flux and not is_rgb:
        raise _make_error(path, f"{data.dtype.name} {data.shape} in bands {bands}", EXPECTED_FITS)
    if is_rgb:
        image = (data if data.shape[2] == 3 else data.transpose(1, 2, 0)).astype(np.uint8)
        _check_shape(path, *image.shape[:2])
        return GalaxyImage(image, _describe_flaw(image))
    _check_shape(path, *data.shape[1:])
    planes = np.stack([data[bands.index(band)] for band in "zrg"]).astype(np.float32)
    if not np.isfinite(planes).all():
        raise _make_error(path, f"{int((~np.isfinite(planes)).sum())} pixels that are not finite", "finite pixels")
    flaw = _describe_flaw(planes.transpose(1, 2, 0), "zrg")  # of the flux: each stretched band depends on all three
    return GalaxyImage(np.rint(stretch(planes)).astype(np.uint8), flaw)


READERS: dict[str, tuple[CountImages, ReadImages]] = {
    **dict.fromkeys((".h5", ".hdf5"), (_count_hdf5, _read_hdf5)),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), (_count_picture, _read_picture)),
    **dict.fromkeys(FITS_ENDINGS, (_count_fits, _read_fits)),
}
