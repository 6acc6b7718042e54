"""An image of a galaxy as a network sees it, and what every reader of images checks: shape, colours and flaws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from galaxyhpc.data.sources.hdf5 import SIZE_RANGE_PX
from galaxyhpc.storage.files import sanitize

UInt8Array = NDArray[np.uint8]

SAMPLE_STEP = 8  # px between those that are looked at first
EXPECTED_SQUARE = f"square images of {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px with the galaxy in the middle"


class ImageError(ValueError):
    """A file that holds no image of a galaxy, or an image in it that cannot be used; one line that names the file."""


class GalaxyImage(NamedTuple):
    """An image of a galaxy, as a network sees it."""

    pixels: UInt8Array  # (S, S, 3)
    flaw: str  # "blank", or the bands that show nothing, such as "no blue"
    num_filled: int = 0  # pixels without a value in some band, which were taken as sky


def make_error(path: Path, got: str, expected: str) -> ImageError:
    """Return an error about a file, `FILE: got X; expected Y`."""
    return ImageError(f"{sanitize(str(path))}: got {sanitize(got)}; expected {expected}")


def describe_flaw(bands: NDArray[Any], names: Sequence[str] = ("red", "green", "blue")) -> str:
    """Say what keeps the class of an image (S, S, 3) from meaning anything: no galaxy, or a band without one."""
    sample = bands[::SAMPLE_STEP, ::SAMPLE_STEP]  # enough for most images, and the rest takes longer than a JPEG
    if (sample.min(axis=(0, 1)) < sample.max(axis=(0, 1))).all():
        return ""
    is_constant = bands.min(axis=(0, 1)) == bands.max(axis=(0, 1))
    if is_constant.all():
        return "blank"
    empty = [name for name, is_empty in zip(names, is_constant, strict=True) if is_empty]
    return " and ".join(f"no {name}" for name in dict.fromkeys(empty))


def is_grey(image: UInt8Array) -> bool:
    """Whether an (S, S, 3) image shows something, and no colours."""
    sample = image[::SAMPLE_STEP, ::SAMPLE_STEP]  # tells most colour images
    if (sample != sample[..., :1]).any():
        return False
    return bool((image == image[..., :1]).all() and image.min() < image.max())


def check_shape(path: Path, height: int, width: int, crop: str = "none") -> None:
    """Refuse images that are not square, unless they are to be cropped, or of other sizes.

    Raises
    ------
    ImageError
    """
    low, high = SIZE_RANGE_PX
    is_square = height == width or crop == "center"
    if not is_square or not low <= min(height, width) <= high:
        remedy = "" if is_square else ": cut them out first; data.crop=center cuts out the middle"
        raise make_error(path, f"{width} x {height} px", f"{EXPECTED_SQUARE}{remedy}")


def crop_to_square(path: Path, image: NDArray[Any], crop: str) -> NDArray[Any]:
    """Return the central square of an image (H, W, ...), as large as possible; `crop` is that of `DataConfig`.

    Raises
    ------
    ImageError
        If the image is not square and is not to be cropped.
    """
    height, width = image.shape[:2]
    check_shape(path, height, width, crop)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
