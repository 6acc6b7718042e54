"""What every source of galaxies gives: its columns, checked, and a way to read its images in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from galaxyhpc.data import DataError

MIN_GALAXIES_PER_CLASS = 3  # one for each split
MAX_AT_ONE_POSITION = 100  # galaxies; a file of unknown positions holds zeros, whose pairs would fill the memory
MAX_BLANK_FRACTION = 0.1  # of the images read as a trial


@dataclass(frozen=True, eq=False)
class Columns:
    """What is known of N galaxies beside their pixels; None where the source does not say."""

    labels: np.ndarray  # (N,) int64, index into classes
    ra: np.ndarray  # (N,) float64, degrees in [0, 360]; NaN where unknown
    dec: np.ndarray  # (N,) float64, degrees in [-90, 90]; NaN where unknown
    ids: np.ndarray | None = None  # (N,) str, such as the name of the image file
    given_splits: np.ndarray | None = None  # (N,) str, each one of SPLITS
    groups: np.ndarray | None = None  # (N,) int64; galaxies of one group stay in one split
    redshift: np.ndarray | None = None  # (N,) float64, NaN where not measured

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return the columns that the source has, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Source:
    """A source of N galaxies, checked as far as that is possible without reading its images."""

    path: Path
    kind: str  # such as "catalogue of image files"
    classes: tuple[str, ...]  # by label
    columns: Columns
    read_images: Callable[[], Iterator[np.ndarray]]  # (S, S, 3) uint8 each; S may differ from image to image
    check_images: Callable[[], None]  # raises DataError if some image is missing, or a few read as a trial are damaged
    size: int | None = None  # px, side of the images where it is known before they are read
    field_arcsec: float = np.nan  # side of an image on the sky; NaN where unknown
    is_generated: bool = False
    num_left_out: int = 0  # galaxies of classes that data.classes does not name
    filled_pixels: dict[str, int] = field(default_factory=dict)  # pixels that had no value, by image read so far


def make_error(path: Path, key: str, got: object, expected: str) -> DataError:
    """Return an error about a part of a source, such as an array or a column."""
    return DataError(f"{path}: {key}: got {got}; expected {expected}")


def check_class_counts(
    path: Path, key: str, labels: np.ndarray, classes: tuple[str, ...], locate: Callable[[int], str]
) -> None:
    """Refuse labels of which a class has less than one galaxy for each split; `locate` says where a galaxy stands.

    Raises
    ------
    DataError
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts[least := int(counts.argmin())] < MIN_GALAXIES_PER_CLASS:
        places = ", ".join(locate(int(index)) for index in np.flatnonzero(labels == least))
        noun = "galaxy" if counts[least] == 1 else "galaxies"
        got = f"{counts[least]} {noun} of class {least} ({classes[least]}){places and f' in {places}'}"
        similar = get_close_matches(classes[least], [name for name in classes if name != classes[least]], n=1)
        hint = f"; is it {similar[0]}?" if similar and counts[least] else ""
        expected = f"{MIN_GALAXIES_PER_CLASS} or more of every class, one for each split, or data.classes without it"
        raise make_error(path, key, got, f"{expected}{hint}")


def check_positions_differ(path: Path, ra: np.ndarray, dec: np.ndarray) -> None:
    """Refuse positions of which many are the same, as where a source holds zeros for unknown ones.

    Raises
    ------
    DataError
    """
    known = np.isfinite(ra)
    positions, counts = np.unique(np.stack([ra[known], dec[known]], axis=1), axis=0, return_counts=True)
    if counts.max(initial=0) > min(MAX_AT_ONE_POSITION, max(1, len(ra) // 10)):
        ra_deg, dec_deg = positions[counts.argmax()]
        got = f"{counts.max()} of {len(ra)} galaxies at ra {ra_deg:g}, dec {dec_deg:g}"
        expected = "the position of each, in degrees; where none is known, any that are farther apart than "
        raise make_error(path, "ra and dec", got, f"{expected}data.link_arcsec, or all galaxies stay in one split")
