"""Near duplicates: images of one galaxy that were compressed, resized, mirrored or turned by quarters differently.

Galaxies look alike: a 64-bit perceptual hash (DCT; Zauner 2010) is the same for 346 pairs of EFIGI's 4,504 images.
Their detail is not alike: two images are the same if the square roots of their grey values at 32 px, minus a smooth
version, correlate by MIN_CORRELATION or more. Of 10 million pairs of EFIGI's one does (0.74, the same galaxy cut out
twice), and the next, of different galaxies, correlates by 0.71; the first of 240,000 pairs of Galaxy10's by 0.69.

Plain shapes without noise, such as discs, are alike in all the detail they have, and near none: less than a third of
their pixels differ from the pixels around. In EFIGI and Galaxy10 34 % or more do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy

THUMBNAIL_SIZE = 32  # px
MIN_CORRELATION = 0.73
SMOOTHING_PX = 1.0
MIN_CHANGE_DN = 0.6  # of a pixel's grey value from the mean of 3 x 3: more than smooth images have by rounding
MIN_CHANGED_FRACTION = 1 / 3  # of the pixels of an image with detail
NUM_FREQUENCIES = 16  # in each direction, of the spectra that candidates are found by
MIN_SPECTRUM_CORRELATION = 0.5  # of candidates
BLOCK_SIZE = 4096  # images that are compared with as many others at once, and candidates looked at at once
MAX_PAIRS_PER_IMAGE = 20  # on average; more: the images share a pattern, such as a frame


class SharedPatternError(ValueError):
    """So many images are alike that the likeness tells nothing."""


def make_thumbnails(images: np.ndarray) -> np.ndarray:
    """Return the mean of the bands of (n, S, S, 3) uint8 images, resized with anti-aliasing, as (n, T, T) uint8."""
    count, side = images.shape[:2]
    scale = side / THUMBNAIL_SIZE
    distances = (np.arange(side) + 0.5) / scale - (np.arange(THUMBNAIL_SIZE)[:, None] + 0.5)  # in pixels of a thumbnail
    weights = np.maximum(0, 1 - np.abs(distances) * min(scale, 1.0)).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    columns = images.reshape(count * side, 3 * side).astype(np.float32) @ np.repeat(weights / 3, 3, axis=1).T
    return np.asarray(np.rint(weights @ columns.reshape(count, side, THUMBNAIL_SIZE)), np.uint8)


def find_near_duplicates(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (M, 2) pairs of rows, the lower one first, of images that are nearly the same, and their correlations.

    `thumbnails` are grey images (N, THUMBNAIL_SIZE, THUMBNAIL_SIZE) in 0 to 255. The correlation, (M,) float32, is the
    largest of the eight turns and mirror images. Images without detail are near none. Memory is about 3 kB per image,
    besides a block of candidates.

    Raises
    ------
    SharedPatternError
    """
    rows = np.flatnonzero(np.concatenate([_have_detail(part) for part in _divide(thumbnails)]))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    details = np.concatenate([_compute_details(thumbnails[part]) for part in _divide(rows)])
    spectra = _standardize_spectra(np.concatenate([_compute_spectra(part) for part in _divide(details)]))
    pairs, correlations = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for candidates in _find_candidates(spectra):
        for part in _divide(candidates):
            correlation = _correlate(details[part[:, 0]], details[part[:, 1]])
            is_near = correlation >= MIN_CORRELATION
            pairs.append(part[is_near])
            correlations.append(correlation[is_near])
        if sum(map(len, pairs)) > MAX_PAIRS_PER_IMAGE * len(thumbnails):
            raise SharedPatternError
    near_pairs = rows[np.concatenate(pairs)]
    order = np.lexsort((near_pairs[:, 1], near_pairs[:, 0]))
    return near_pairs[order], np.concatenate(correlations)[order]


def _divide(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + BLOCK_SIZE] for start in range(0, len(values), BLOCK_SIZE))


def _have_detail(thumbnails: np.ndarray) -> np.ndarray:
    """Return whether images show more than a plain shape without noise, (n,)."""
    values = thumbnails.astype(np.float32)
    changes = np.abs(values - scipy.ndimage.uniform_filter(values, (0, 3, 3)))
    return np.asarray((changes > MIN_CHANGE_DN).mean(axis=(1, 2)) >= MIN_CHANGED_FRACTION)


def _compute_details(thumbnails: np.ndarray) -> np.ndarray:
    """Return the detail of images, (n, T, T) float16 of length 1."""
    roots = np.sqrt(thumbnails.astype(np.float32))
    details = roots - scipy.ndimage.gaussian_filter(roots, (0, SMOOTHING_PX, SMOOTHING_PX))
    details -= details.mean(axis=(1, 2), keepdims=True)
    lengths = np.sqrt((details**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(details / np.maximum(lengths, 1e-3), np.float16)


def _compute_spectra(details: np.ndarray) -> np.ndarray:
    """Return (n, F) square roots of amplitudes of the cosine transform, the same for all turns and mirror images."""
    amplitudes = np.abs(scipy.fft.dctn(details.astype(np.float32), axes=(1, 2), norm="ortho"))
    amplitudes = amplitudes[:, :NUM_FREQUENCIES, :NUM_FREQUENCIES]
    first, second = np.triu_indices(NUM_FREQUENCIES)
    return np.asarray(np.sqrt(amplitudes[:, first, second] + amplitudes[:, second, first]))


def _standardize_spectra(spectra: np.ndarray) -> np.ndarray:
    spectra = (spectra - spectra.mean(axis=0)) / np.maximum(spectra.std(axis=0), 1e-6)
    return np.asarray(spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-6))


def _find_candidates(spectra: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (n, 2) pairs of rows, the lower one first, with like spectra; a block of pairs is in memory at a time."""
    for start in range(0, len(spectra), BLOCK_SIZE):
        for other in range(start, len(spectra), BLOCK_SIZE):
            products = spectra[start : start + BLOCK_SIZE] @ spectra[other : other + BLOCK_SIZE].T
            first, second = np.nonzero(products >= MIN_SPECTRUM_CORRELATION)
            pairs = np.stack([first + start, second + other], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def _correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the largest correlation of details (n, T, T) over the turns and mirror images of the second ones."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    views = [np.rot90(view, turns, (1, 2)) for view in (second, second[:, ::-1]) for turns in range(4)]
    return np.asarray(np.max([np.einsum("nij,nij->n", first, view) for view in views], axis=0))
