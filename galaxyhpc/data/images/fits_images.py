"""FITS images of one or more bands as uint8 RGB: which bands are red, green and blue, and how their flux is stretched.

Planes are (N, S, S), or (S, S) for one band. The header's BANDS names them, a letter each, as in cutouts of the Legacy
Surveys. FITS counts rows from the bottom, RGB images from the top. Pixels without a value are taken as sky, flux 0.
Bytes (3, S, S) or (S, S, 3) without BANDS are RGB already.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig, FitsConfig
from galaxyhpc.data.images.galaxy_image import (
    GalaxyImage,
    UInt8Array,
    check_shape,
    crop_to_square,
    describe_flaw,
    make_error,
)
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.simulate import BAND_SCALES, stretch

FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz")
LEGACY_SCALES = dict(zip("zrg", BAND_SCALES.ravel().tolist(), strict=True))
SET_BANDS = "a header with BANDS, a letter per plane: `astropy.io.fits.setval(FILE, 'BANDS', value='grz')`"
NANOMAGGIES = ("nanomagg", "nmgy", "nmgg")  # parts of the unit's names, in lower case


@contextmanager
def _open_fits(path: Path, file: io.BytesIO | None = None) -> Iterator[Any]:
    """Open the first image of a FITS file, whose pixels are not read yet."""
    from astropy.io import fits

    with translate_read_errors(path, "a FITS file", file), fits.open(file or path, memmap=False) as hdus:
        hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.header["NAXIS"] > 0), None)
        if hdu is None:
            raise make_error(path, "no image", "one, of planes (N, S, S) or (S, S)")
        yield hdu


def is_fits_table(path: Path) -> bool:
    """Whether a FITS file, whatever its name, has a table and no image."""
    from astropy.io import fits

    with suppress(Exception), translate_read_errors(path, "a FITS file"), fits.open(path, memmap=False) as file:
        kinds = [hdu.is_image for hdu in file if hdu.header["NAXIS"] > 0]
        return bool(kinds) and not any(kinds)
    return False


def check_fits(path: Path, config: DataConfig) -> None:
    """Check the header of a FITS file.

    Raises
    ------
    ImageError
    """
    with _open_fits(path) as hdu:
        if _is_rgb(hdu.shape, hdu.header):
            height, width = hdu.shape[:2] if hdu.shape[2] == 3 else hdu.shape[1:]
        else:
            _find_planes(path, hdu.shape, hdu.header, config.fits)
            height, width = hdu.shape[-2:]
        check_shape(path, height, width, config.crop)


def read_fits(path: Path, config: DataConfig, file: io.BytesIO | None = None) -> GalaxyImage:
    """Read the first image of a FITS file, or of its bytes, which `path` is only the name of.

    Raises
    ------
    ImageError
    """
    with _open_fits(path, file) as hdu:
        header, shape = hdu.header, hdu.shape
        if _is_rgb(shape, header):
            data = hdu.data if shape[2] == 3 else hdu.data.transpose(1, 2, 0)
            pixels = crop_to_square(path, np.flip(data, 0).astype(np.uint8), config.crop)
            return GalaxyImage(pixels, describe_flaw(pixels))
        planes = _find_planes(path, shape, header, config.fits)
        flux = np.asarray(hdu.data).reshape(-1, *shape[-2:])[planes].astype(np.float32)
    flux = crop_to_square(path, np.flip(flux, 1).transpose(1, 2, 0), config.crop)
    is_missing = ~np.isfinite(flux)
    if is_missing.all():
        raise make_error(path, "no pixel with a finite value", "the flux of a galaxy")
    flux = np.where(is_missing, np.float32(0), flux)
    flaw = describe_flaw(flux, config.fits.bands)  # of the flux: each stretched band may depend on all three
    return GalaxyImage(stretch_flux(flux, config.fits), flaw, int(is_missing.any(axis=2).sum()))


def _is_rgb(shape: tuple[int, ...], header: Any) -> bool:
    is_bytes = header["BITPIX"] == 8 and header.get("BSCALE", 1) == 1 and header.get("BZERO", 0) == 0
    return bool(is_bytes and "BANDS" not in header and len(shape) == 3 and 3 in (shape[0], shape[2]))


def _find_planes(path: Path, shape: tuple[int, ...], header: Any, config: FitsConfig) -> list[int]:
    """Return the planes of the bands of red, green and blue."""
    asked = f"data.fits.bands ({config.bands})"
    if len(shape) not in (2, 3):
        raise make_error(path, f"an array {shape}", "planes (N, S, S), or (S, S) for one band")
    num_planes = 1 if len(shape) == 2 else shape[0]
    if num_planes == 1 and len(set(config.bands)) > 1:
        got = f"one band ({header.get('BANDS', 'without a name')})"
        raise make_error(path, got, f"those of {asked}; one letter three times, such as rrr, makes grey images")
    bands = header.get("BANDS", config.bands[0] if num_planes == 1 else "")
    if not bands:
        raise make_error(path, f"an array {shape} whose header has no BANDS", SET_BANDS)
    if not isinstance(bands, str) or len(bands) != num_planes:
        expected = "planes (N, S, S) with a letter for each of N bands"
        raise make_error(path, f"an array {shape} with BANDS = {bands!r}", expected)
    if absent := [band for band in config.bands if band not in bands]:
        raise make_error(path, f"bands {bands} without {absent[0]}", f"those of {asked}: set others of the file's")
    _check_units(path, header, config)
    return [bands.index(band) for band in config.bands]


def _check_units(path: Path, header: Any, config: FitsConfig) -> None:
    """Refuse flux that the scales of the Legacy Surveys are not made for, where the header tells."""
    if config.stretch != "legacy" or config.scale != 1.0:
        return
    remedy = "or data.fits.scale, nanomaggies per unit, or data.fits.stretch=asinh"
    unit = str(header.get("BUNIT", "")).strip()
    if unit and not any(name in unit.lower() for name in NANOMAGGIES):
        raise make_error(path, f"flux in {unit}", f"nanomaggies per 0.262 arcsec pixel, {remedy}")
    if header["BITPIX"] > 0 and "BSCALE" not in header and "ZBITPIX" not in header:
        raise make_error(path, f"whole numbers (BITPIX {header['BITPIX']})", f"floats in nanomaggies, {remedy}")


def stretch_flux(flux: NDArray[np.float32], config: FitsConfig) -> UInt8Array:
    """Return flux (S, S, 3), in the order red, green, blue, as (S, S, 3) uint8.

    legacy : the viewer's that Galaxy10's images were taken from, for nanomaggies in g, r and z (`simulate.stretch`)
    lupton : colour-preserving (Lupton et al. 2004), which maps 0.1 / scale to 25
    asinh : of each band by itself, asinh(Q x) / asinh(Q) of x = scale * flux in [0, 1]
    """
    from astropy import visualization

    scaled = flux * np.float32(config.scale)
    if config.stretch == "legacy":
        scales = np.array([LEGACY_SCALES[band] for band in config.bands], np.float32)[:, None, None]
        return np.rint(stretch(scaled.transpose(2, 0, 1), scales, config.softening)).astype(np.uint8)
    if config.stretch == "lupton":
        bands = (scaled[..., number] for number in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):  # of pixels without flux, which become black
            return np.asarray(visualization.make_lupton_rgb(*bands, minimum=0.0, stretch=1.0, Q=config.softening))
    curve = visualization.AsinhStretch(1.0 / config.softening)
    return np.asarray(np.rint(255 * curve(np.clip(scaled, 0, 1))), np.uint8)
