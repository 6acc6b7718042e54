"""FITS cutouts become RGB images of the bands and the stretch that the settings name; what is missing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.visualization import make_lupton_rgb
from pydantic import ValidationError

from galaxyhpc.config.schema import DataConfig, FitsConfig
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.images.fits_images import check_fits, read_fits
from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.data.split_file import read_split_header

REAL_FITS = Path(__file__).parents[4] / "shared/data/fits"
FLUX = np.random.default_rng(0).gamma(0.5, 0.1, (5, 20, 20)).astype(np.float32)


def write(path: Path, flux: np.ndarray, bands: str | None = "grz", **header: Any) -> Path:
    fits.writeto(path, flux, fits.Header(header | ({} if bands is None else {"BANDS": bands})), overwrite=True)
    return path


def config(crop: str = "none", **settings: Any) -> DataConfig:
    return DataConfig(crop=crop, fits=FitsConfig(**settings))


@pytest.mark.parametrize(
    ("bands", "asked", "planes"),
    [("grz", "zrg", (2, 1, 0)), ("griz", "zrg", (3, 1, 0)), ("ugriz", "irg", (3, 2, 1)), ("gr", "rgg", (1, 0, 0))],
)
def test_the_asked_bands_are_red_green_and_blue(
    tmp_path: Path, bands: str, asked: str, planes: tuple[int, ...]
) -> None:
    path = write(tmp_path / "a.fits", FLUX[: len(bands)], bands)
    settings = config(bands=asked, stretch="lupton", scale=2.0, Q=5.0)
    check_fits(path, settings)
    expected = make_lupton_rgb(*(FLUX[plane, ::-1] for plane in planes), minimum=0, stretch=0.5, Q=5.0)
    np.testing.assert_allclose(read_fits(path, settings).pixels.astype(int), expected, atol=1)


def test_asinh_stretches_each_band_by_itself(tmp_path: Path) -> None:
    pixels = read_fits(write(tmp_path / "a.fits", FLUX[:3]), config(stretch="asinh", scale=4.0, Q=20.0)).pixels
    x = np.clip(4 * FLUX[[2, 1, 0], ::-1], 0, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(pixels, 255 * np.arcsinh(20 * x) / np.arcsinh(20), atol=0.51)


def test_scale_and_q_change_the_legacy_stretch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", FLUX[:3])
    micro = write(tmp_path / "b.fits", FLUX[:3] * 1000, BUNIT="picomaggies")
    legacy = read_fits(path, config()).pixels
    np.testing.assert_allclose(read_fits(micro, config(scale=1e-3)).pixels.astype(int), legacy, atol=1)
    assert np.abs(read_fits(path, config(Q=5.0)).pixels.astype(int) - legacy).max() > 20


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20)])
def test_one_band_is_grey_if_asked(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.fits", FLUX[0].reshape(shape), None)
    pixels = read_fits(path, config(bands="rrr")).pixels
    assert (pixels == pixels[..., :1]).all() and np.ptp(pixels) > 50
    with pytest.raises(ImageError, match=r"got one band \(without a name\); .* such as rrr, makes grey images"):
        check_fits(path, config())


def test_pixels_without_a_value_are_sky_and_counted(tmp_path: Path) -> None:
    holes, sky = FLUX[:3].copy(), FLUX[:3].copy()
    holes[:, 3, 4], holes[1, 7, 7] = np.nan, np.inf
    sky[:, 3, 4], sky[1, 7, 7] = 0, 0
    image = read_fits(write(tmp_path / "a.fits", holes), config())
    assert image.num_filled == 2
    assert np.array_equal(image.pixels, read_fits(write(tmp_path / "b.fits", sky), config()).pixels)
    holes[2] = np.nan
    assert read_fits(write(tmp_path / "a.fits", holes), config()).flaw == "no z"


def test_what_is_not_square_is_cropped_as_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", np.pad(FLUX[:3], ((0, 0), (3, 3), (0, 0))))
    expected = read_fits(write(tmp_path / "b.fits", FLUX[:3]), config()).pixels
    check_fits(path, config("center"))
    assert np.array_equal(read_fits(path, config("center")).pixels, expected)
    with pytest.raises(ImageError, match=r"20 x 26 px; expected square .*: cut them out first; data.crop=center"):
        check_fits(path, config())


@pytest.mark.parametrize(
    ("flux", "bands", "header", "message"),
    [
        (FLUX[:3], None, {}, r"an array \(3, 20, 20\) whose header has no BANDS; expected .*astropy.io.fits.setval"),
        (FLUX[:4], "gri", {}, r"an array \(4, 20, 20\) with BANDS = 'gri'; expected planes .* each of N bands"),
        (FLUX[:3], "gri", {}, r"bands gri without z; expected those of data.fits.bands \(zrg\)"),
        (FLUX[None, :3], "grz", {}, r"an array \(1, 3, 20, 20\); expected planes \(N, S, S\), or \(S, S\)"),
        (FLUX[:3], "grz", {"BUNIT": "Jy"}, "flux in Jy; expected nanomaggies per 0.262 arcsec pixel, or data.fits.sc"),
        (FLUX[:3].astype(np.int16), "grz", {}, r"whole numbers \(BITPIX 16\); expected floats in nanomaggies"),
        (FLUX[:3, :8, :8], "grz", {}, "8 x 8 px; expected square images of 16 to 2048 px"),
    ],
)
def test_what_does_not_fit_the_settings_is_named(
    tmp_path: Path, flux: np.ndarray, bands: str | None, header: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "a.fits", flux, bands, **header)
    for check in (check_fits, read_fits):
        with pytest.raises(ImageError, match=f"a.fits: got {message}"):
            check(path, config())


def test_an_image_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no pixel with a finite value; expected the flux of a galaxy"):
        read_fits(write(tmp_path / "a.fits", FLUX[:3] * np.nan), config())


def test_the_legacy_stretch_is_refused_for_bands_that_it_has_no_scales_of() -> None:
    with pytest.raises(ValidationError, match="stretch legacy is for bands g, r and z; got i: choose lupton or asinh"):
        FitsConfig(bands="irg")
    with pytest.raises(ValidationError):
        FitsConfig(bands="rg", stretch="asinh")


def write_cutouts(directory: Path, count: int = 30) -> Path:
    """Write a catalogue of FITS cutouts of three classes, one of which has two pixels without a value."""
    directory.mkdir()
    rng = np.random.default_rng(1)
    lines = ["file,label"]
    for row in range(count):
        flux = rng.gamma(0.5, 0.1, (3, 20, 20)).astype(np.float32)
        if row == 4:
            flux[0, :2, 9] = np.nan
        write(directory / f"{row}.fits", flux)
        lines.append(f"{row}.fits,{'ESI'[row % 3]}")
    (directory / "catalogue.csv").write_text("\n".join(lines))
    return directory / "catalogue.csv"


def test_a_catalogue_of_cutouts_is_converted_as_the_settings_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_cutouts(tmp_path / "source")
    base = DataConfig(source=str(source), classes=("E", "I", "S"), cache=str(tmp_path / "cache"), image_size=20)
    legacy, _ = open_dataset(base, tmp_path / "legacy")
    assert (
        f"2 pixels without a value in 1 of 30 images were taken as sky, most of them in {source.parent}/4.fits: 2"
        in (capfd.readouterr().err)
    )
    assert read_split_header(tmp_path / "legacy/split.csv")["filled"].startswith("1 images had pixels without")
    expected = read_fits(source.parent / "7.fits", base).pixels
    assert np.array_equal(legacy.images[7], expected.transpose(2, 0, 1))
    grey, _ = open_dataset(base.model_copy(update={"fits": FitsConfig(bands="rrr")}), tmp_path / "grey")
    assert "30 of 30 images are grey: three equal bands" in capfd.readouterr().err
    assert "grey" in read_split_header(tmp_path / "grey/split.csv")
    assert grey.fingerprint != legacy.fingerprint


@pytest.mark.skipif(not REAL_FITS.exists(), reason=f"{REAL_FITS} is absent")
def test_real_cutouts_show_their_galaxies() -> None:
    for name in ("testcase9", "testcase3"):
        for settings in (config(), config(stretch="lupton"), config(stretch="asinh"), config(bands="rrr")):
            image = read_fits(REAL_FITS / f"{name}_grz.fits", settings)
            side = len(image.pixels)
            centre = image.pixels[side // 3 : -side // 3, side // 3 : -side // 3]
            assert image.flaw == "" and centre.mean() > image.pixels.mean() + 3, (name, settings.fits)
