"""Sums over the parts of a survey's prediction, read one after the other: counts, histograms and a map of the sky."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy import units
from astropy_healpix import HEALPix, nside_to_pixel_area
from numpy.typing import NDArray
from pyarrow import dataset

from galaxyhpc.prediction.columns import FLAGS
from galaxyhpc.storage.files import sanitize

BATCH_ROWS = 65_536
NSIDE = 64  # HEALPix resolution: 49,152 cells of 0.84 square degrees
NUM_BINS = 50
CONFIDENT = 0.9  # probability
ATYPICAL = 0.05  # typicality; not below what 19 validation galaxies can tell
MAX_REASONS = 20  # that are counted by their text

Counts = NDArray[np.int64]


@dataclass(eq=False)
class SurveySummary:
    """Sums over galaxies; K is the number of classes."""

    class_names: tuple[str, ...]
    num_runs: int
    num_parts: int = 0
    num_galaxies: int = 0
    num_bytes: int = 0  # of the parts
    is_calibrated: bool = True
    generated: bool = False  # a run was trained on demo galaxies
    has_typicality: bool = False
    counts: Counts = field(init=False)  # (K,) predicted galaxies
    confident: Counts = field(init=False)  # (K,) with more than CONFIDENT
    expected: NDArray[np.float64] = field(init=False)  # (K,) sums of p
    variance: NDArray[np.float64] = field(init=False)  # (K,) sums of p (1 - p)
    sky: Counts = field(default_factory=lambda: np.zeros(12 * NSIDE**2, np.int64))  # RING order, equatorial
    histograms: dict[str, Counts] = field(init=False)  # (NUM_BINS,) each
    num_atypical: int = 0  # typicality of at most ATYPICAL
    flags: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # by their text, without names of files
    num_errors: int = 0
    damaged: dict[str, str] = field(default_factory=dict)  # reasons by the names of parts

    def __post_init__(self) -> None:
        num_classes = len(self.class_names)
        self.counts, self.confident = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        self.expected, self.variance = np.zeros(num_classes), np.zeros(num_classes)
        self.histograms = {name: np.zeros(NUM_BINS, np.int64) for name in get_ranges(num_classes, self.num_runs)}

    @property
    def num_classified(self) -> int:
        return int(self.counts.sum())

    @property
    def num_positions(self) -> int:
        return int(self.sky.sum())


def get_ranges(num_classes: int, num_runs: int) -> dict[str, tuple[float, float]]:
    """Return the columns that have histograms, with their ranges."""
    nats = (0.0, float(np.log(num_classes)))
    ranges = {"entropy": nats, "typicality": (0.0, 1.0)}
    return ranges | ({"disagreement": nats} if num_runs > 1 else {})


def summarize(parts: list[Path], class_names: tuple[str, ...], num_runs: int) -> SurveySummary:
    """Sum over parts; one that cannot be read is listed as damaged, and its galaxies do not count."""
    summary, healpix = SurveySummary(class_names, num_runs), HEALPix(NSIDE, order="ring")
    for part in parts:
        sums = SurveySummary(class_names, num_runs)
        try:
            for batch in _iterate_batches(part):
                _add_batch(sums, batch, healpix)
        except (pa.ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            summary.damaged[part.name] = sanitize(reason)
            continue
        sums.num_parts, sums.num_bytes = 1, part.stat().st_size
        _add(summary, sums)
    return summary


def _iterate_batches(part: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a part, without the columns that only say what they are of."""
    source = dataset.dataset(part, format="parquet")
    left_out = {"id", "source", "row", "name", "run_id", "embedding"}
    columns = {name: pc.field(name) for name in source.schema.names if name not in left_out}
    yield from source.to_batches(columns=columns, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1)


def _add(total: SurveySummary, sums: SurveySummary) -> None:
    """Add the sums of a part."""
    for name in ("num_parts", "num_galaxies", "num_bytes", "num_atypical", "num_errors"):
        setattr(total, name, getattr(total, name) + getattr(sums, name))
    for name in ("counts", "confident", "expected", "variance", "sky"):
        getattr(total, name)[...] += getattr(sums, name)
    for name, counts in sums.histograms.items():
        total.histograms[name] += counts
    total.is_calibrated &= sums.is_calibrated
    total.generated |= sums.generated
    total.has_typicality |= sums.has_typicality
    total.flags += sums.flags
    for text, count in sums.errors.items():
        if text in total.errors or len(total.errors) < MAX_REASONS:
            total.errors[text] += count


def _add_batch(sums: SurveySummary, batch: pa.RecordBatch, healpix: HEALPix) -> None:
    names = batch.schema.names
    raw = "raw_" if "raw_probability" in names else ""
    is_known = batch.column("class").is_valid()
    known = batch.filter(is_known)
    sums.num_galaxies += len(batch)
    sums.is_calibrated &= not raw
    sums.generated |= "GENERATED galaxies" in batch.column("trained_on").unique().to_pylist()
    _add_classes(sums, known, raw)
    _add_sky(sums, batch, healpix)
    for name, (low, high) in get_ranges(len(sums.class_names), sums.num_runs).items():
        values = known.column(name).drop_null().to_numpy()
        sums.histograms[name] += np.histogram(np.clip(values, low, high), NUM_BINS, (low, high))[0]
    typicality = known.column("typicality").drop_null().to_numpy()
    sums.has_typicality |= len(typicality) > 0
    sums.num_atypical += int((typicality <= ATYPICAL).sum())
    sums.flags.update({name: pc.sum(known.column(name)).as_py() or 0 for name in FLAGS})
    sums.flags["filled"] += pc.sum(pc.greater(known.column("num_filled"), 0)).as_py() or 0
    sums.num_errors += len(batch) - len(known)
    errors = Counter(map(_strip_file, batch.column("error").drop_null().to_pylist()))
    sums.errors.update(dict(errors.most_common(MAX_REASONS)))


def _add_classes(sums: SurveySummary, known: pa.RecordBatch, raw: str) -> None:
    labels = known.column("class").to_numpy()
    probability = known.column(f"{raw}probability").to_numpy()
    first = known.schema.names.index(f"{raw}probability") + 1
    by_class = [known.column(first + label).to_numpy().astype(np.float64) for label in range(len(sums.class_names))]
    sums.counts += np.bincount(labels, minlength=len(by_class))
    sums.confident += np.bincount(labels[probability > CONFIDENT], minlength=len(by_class))
    sums.expected += [values.sum() for values in by_class]
    sums.variance += [(values * (1 - values)).sum() for values in by_class]


def _add_sky(sums: SurveySummary, batch: pa.RecordBatch, healpix: HEALPix) -> None:
    ra, dec = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("ra", "dec"))
    has_position = np.isfinite(ra) & (np.abs(dec) <= 90)
    if has_position.any():
        cells = healpix.lonlat_to_healpix(ra[has_position] * units.deg, dec[has_position] * units.deg)
        sums.sky += np.bincount(cells, minlength=len(sums.sky))


def _strip_file(error: str) -> str:
    """Return the reason of an error without the name of the file before it: `FILE: got X; expected Y`."""
    _, separator, reason = error.partition(": got ")
    return f"got {reason}" if separator else error


def compute_sky_facts(sky: Counts) -> dict[str, float]:
    """Return the number of occupied cells, their area in square degrees and the mean density in them."""
    occupied = int((sky > 0).sum())
    area = occupied * nside_to_pixel_area(NSIDE).to_value(units.deg**2)
    return {"cells": occupied, "area": area, "density": sky.sum() / area if occupied else 0.0}
