"""A user's own images of galaxies, read from HDF5, PNG, JPEG or FITS as uint8 like the training images.

FITS images in g, r and z become RGB images as in the viewer that Galaxy10's were taken from (`simulate.stretch`). FITS
counts rows from the bottom, the other formats from the top.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galaxyhpc.data import DataError
from galaxyhpc.data.galaxy10 import SIZE_RANGE_PX, compute_slice_size
from galaxyhpc.data.simulate import stretch
from galaxyhpc.storage.files import sanitize

UInt8Array = NDArray[np.uint8]

EXPECTED_SQUARE = f"square images of {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px with the galaxy in the middle"
COLOUR_MODES = ("RGB", "RGBA", "P")  # of Pillow
EXPECTED_FITS = (
    "floats (3, S, S) in g, r, z (nanomaggies per 0.262 arcsec pixel), or bytes (3, S, S) or (S, S, 3) in R, G, B"
)


class ImageError(ValueError):
    """A file that holds no image of a galaxy."""


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files of these names and globs, each once.

    Raises
    ------
    ImageError
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise ImageError(
                f"{sanitize(pattern)}: no such file; expected {', '.join(f'*{ending}' for ending in READERS)}"
            )
        paths |= dict.fromkeys(map(Path, names))
    for path in paths:
        if not path.is_file():
            raise _make_error(path, "a directory", f"files, such as {path}/*.png")
        _get_reader(path)
    return list(paths)


def count_images(path: Path) -> int:
    """Return the number of images in a file, without reading them.

    Raises
    ------
    ImageError
    """
    return _get_hdf5_layout(path)[0] if _get_reader(path) is _read_hdf5 else 1


def read_images(path: Path) -> Iterator[UInt8Array]:
    """Yield the images of a file in order, a few (n, S, S, 3) at a time.

    Raises
    ------
    ImageError
    """
    yield from _get_reader(path)(path)


def _make_error(path: Path, got: str, expected: str) -> ImageError:
    return ImageError(f"{sanitize(str(path))}: got {sanitize(got)}; expected {expected}")


def _get_reader(path: Path) -> Callable[[Path], Iterator[UInt8Array]]:
    for ending, reader in READERS.items():
        if path.name.lower().endswith(ending):
            return reader
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
        message = " ".join(str(error).split())[:200]
        raise _make_error(path, f"a file that cannot be read ({message})", f"a complete {file_type}") from error


def _check_shape(path: Path, height: int, width: int) -> None:
    if height != width or not SIZE_RANGE_PX[0] <= height <= SIZE_RANGE_PX[1]:
        raise _make_error(path, f"{width} x {height} px", f"{EXPECTED_SQUARE}: cut them out first")


def _read_hdf5(path: Path) -> Iterator[UInt8Array]:
    num_images, slice_size = _get_hdf5_layout(path)
    for start in range(0, num_images, slice_size):
        with _translate_read_errors(path, "HDF5 file"), h5py.File(path, "r", locking=False) as file:
            images: NDArray[Any] = file["images"][start : start + slice_size]
        yield images if images.dtype == np.uint8 else _to_uint8(path, images, start)


def _get_hdf5_layout(path: Path) -> tuple[int, int]:
    """Return the number of images in an HDF5 file and the number to read at once."""
    with _translate_read_errors(path, "HDF5 file"), h5py.File(path, "r", locking=False) as file:
        images = file.get("images")
        if not isinstance(images, h5py.Dataset):
            raise _make_error(path, f"no array `images` among {', '.join(file) or 'none'}", "images (N, S, S, 3)")
        if images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
            raise _make_error(path, f"images of shape {images.shape}", "(N, S, S, 3), one or more")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise _make_error(path, f"images of {images.dtype}", "uint8, or floats in [0, 1]")
        _check_shape(path, *images.shape[1:3])
        try:
            return len(images), compute_slice_size(path, images)
        except DataError as error:
            raise ImageError(str(error)) from error


def _to_uint8(path: Path, images: NDArray[np.floating], start: int) -> UInt8Array:
    """Convert (n, S, S, 3) floats in [0, 1]; `start` is the index of the first one in the file."""
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))  # NaN if any pixel is
    bad = np.flatnonzero(~((low >= 0) & (high <= 1)))
    if len(bad):
        got = f"values from {low[bad[0]]:g} to {high[bad[0]]:g} in images[{start + bad[0]}]"
        raise _make_error(path, got, "finite floats in [0, 1], or uint8")
    scaled: UInt8Array = np.rint(255 * images).astype(np.uint8)
    return scaled


def _read_png_or_jpeg(path: Path) -> Iterator[UInt8Array]:
    from PIL import Image

    with _translate_read_errors(path, "PNG or JPEG file"), Image.open(path) as image:
        _check_shape(path, image.height, image.width)  # before any pixel is decoded
        if image.mode not in COLOUR_MODES:
            raise _make_error(path, f"an image of mode {image.mode}", "colours, 8 bits each")
        pixels = np.asarray(image.convert("RGB"))
    yield pixels[None]


def _read_fits(path: Path) -> Iterator[UInt8Array]:
    from astropy.io import fits

    with _translate_read_errors(path, "FITS file"), fits.open(path, memmap=False) as file:
        hdu = next((hdu for hdu in file if hdu.is_image and hdu.header["NAXIS"] > 0), None)
        if hdu is None:
            raise _make_error(path, "no image", EXPECTED_FITS)
        data, bands = np.asarray(hdu.data), str(hdu.header.get("BANDS", "grz"))
    yield np.flip(_to_rgb(path, data, bands), 0)[None]


def _to_rgb(path: Path, data: NDArray[np.generic], bands: str) -> UInt8Array:
    """Convert the planes of a FITS image to (S, S, 3); cutouts of the Legacy Surveys name their bands in the header."""
    is_flux = data.dtype.kind == "f" and data.ndim == 3 and len(data) == len(bands) and set("grz") <= set(bands)
    is_rgb = data.dtype == np.uint8 and data.ndim == 3 and 3 in (data.shape[0], data.shape[2])
    if not is_flux and not is_rgb:
        raise _make_error(path, f"{data.dtype.name} {data.shape} in bands {bands}", EXPECTED_FITS)
    if is_rgb:
        image = data if data.shape[2] == 3 else data.transpose(1, 2, 0)
        _check_shape(path, *image.shape[:2])
        return image.astype(np.uint8)
    _check_shape(path, *data.shape[1:])
    planes = np.stack([data[bands.index(band)] for band in "zrg"]).astype(np.float32)
    if not np.isfinite(planes).all():
        raise _make_error(path, f"{int((~np.isfinite(planes)).sum())} pixels that are not finite", "finite pixels")
    return np.rint(stretch(planes)).astype(np.uint8)


READERS: dict[str, Callable[[Path], Iterator[UInt8Array]]] = {
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), _read_png_or_jpeg),
    **dict.fromkeys((".fits", ".fit", ".fits.gz", ".fits.fz"), _read_fits),
}
