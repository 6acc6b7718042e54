"""A user's own galaxies, in any file format, are classified as in the evaluation; bad files are named."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from helpers.data_files import write_images_with_missing_filter
from helpers.sources import encode, make_sample, write_catalogue, write_folder, write_parquet
from numpy.typing import NDArray
from PIL import Image

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig, DemoConfig, EvaluateConfig, FitsConfig, ModelConfig, RunConfig
from galaxyhpc.data.images import image_files
from galaxyhpc.data.images.fits_images import read_fits
from galaxyhpc.data.simulate import render_image
from galaxyhpc.evaluation import results, trained_model
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.evaluate import evaluate
from galaxyhpc.models.build_model import build_model
from galaxyhpc.predict.__main__ import main
from galaxyhpc.predict.csv_table import get_columns
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

SIDE = 40  # px of the images below; the network's are 33


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An evaluated run; its weights are untrained: it matters only that probabilities differ."""
    folder = tmp_path_factory.mktemp("runs")
    config = RunConfig(
        data=DataConfig(cache=str(folder / "cache"), image_size=33, demo=DemoConfig(galaxies=150, size=32)),
        model=ModelConfig(group="C4", scale=0.1),
        evaluate=EvaluateConfig(conditions=("clean",)),
    )
    run = RunDir(folder / "sweep" / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    torch.manual_seed(0)
    network = build_model(config.model, 33).train()
    for layer in network.modules():
        if isinstance(layer, FieldBatchNorm):
            layer.momentum = 1.0  # statistics are those of the galaxies that follow
    network(torch.from_numpy(galaxy_images().transpose(0, 3, 1, 2)[:, :, :33, :33] / np.float32(255)))
    torch.save({"model": network.state_dict()}, run.best_file)
    evaluate(run, StopSignal())
    return run


@cache
def galaxy_images() -> NDArray[np.uint8]:
    """A galaxy of every class, (10, SIDE, SIDE, 3)."""
    return np.stack([render_image(label, [1, label], SIDE) for label in range(10)])


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_probabilities(path: Path) -> NDArray[np.float64]:
    """The (n, 10) probabilities of a table."""
    rows = read_table(path)
    names = [name for name in rows[0] if "p_" in name]
    return np.array([[float(row[name]) for name in names] for row in rows])


def write_hdf5(path: Path, values: NDArray[np.generic], name: str = "images") -> Path:
    with h5py.File(path, "w") as file:
        file[name] = values
    return path


def write_flux(path: Path, flux: NDArray[np.generic], bands: str) -> Path:
    """Write planes in these bands, laid out as a cutout of the Legacy Surveys."""
    fits.writeto(path, flux, fits.Header({"BANDS": bands}))
    return path


@pytest.fixture
def run_without_weights(run: RunDir, tmp_path: Path) -> str:
    path = tmp_path / "untrained" / run.run_id
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(run.config_file.read_bytes())
    return str(path)


def test_galaxies_of_the_evaluation_get_the_probabilities_of_the_evaluation(run: RunDir, tmp_path: Path) -> None:
    measured = results.load(run)
    assert measured is not None and measured.temperature is not None
    (source,) = (run.sweep_dir.parent / "cache").glob("demo-*.h5")
    assert main([str(run.path), str(source), "--output", str(tmp_path / "out.csv")]) == 0
    rows, expected = read_table(tmp_path / "out.csv"), softmax(measured.logits["clean", 0.0], measured.temperature)
    assert len(rows) == 150
    np.testing.assert_allclose(read_probabilities(tmp_path / "out.csv")[measured.rows], expected, atol=1e-5)
    for row in rows:
        best = int(row["class"])
        assert (
            row["name"] == GALAXY10_CLASSES[best]
            and row["probability"] == row[f"p_{GALAXY10_CLASSES[best].replace(' ', '_')}"]
        )
    assert [int(row["index"]) for row in rows] == list(range(150))


def test_the_same_galaxies_get_the_same_probabilities_from_every_file_format(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = galaxy_images()
    write_hdf5(tmp_path / "bytes.h5", images)
    write_hdf5(tmp_path / "floats.hdf5", images / 255)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        planes = np.flip(image, 0).transpose(2, 0, 1)  # FITS counts rows from the bottom
        fits.writeto(tmp_path / f"{number}.fits", planes if number % 2 else np.flip(image, 0))
    monkeypatch.chdir(tmp_path)
    assert main([str(run.path), "bytes.h5", "floats.hdf5", "*.png", "*.fits"]) == 0
    rows = read_table(tmp_path / "predictions.csv")
    names = [f"{number}{end}" for end in (".png", ".fits") for number in range(10)]
    assert [row["source"] for row in rows] == ["bytes.h5"] * 10 + ["floats.hdf5"] * 10 + names
    probabilities = read_probabilities(tmp_path / "predictions.csv").reshape(4, 10, 10)
    assert np.ptp(probabilities[0], axis=0).max() > 1e-3  # different galaxies, different probabilities
    for other in probabilities[1:]:
        np.testing.assert_array_equal(other, probabilities[0])


SAMPLE = make_sample(9)
SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda path: write_folder(path / "folder", SAMPLE),
    "csv": lambda path: write_catalogue(path, SAMPLE),
    "fits table": lambda path: write_catalogue(path, SAMPLE, "table.fits"),
    "ecsv": lambda path: write_catalogue(path, SAMPLE, "table.ecsv"),
    "parquet of files": lambda path: write_catalogue(path, SAMPLE, "table.parquet"),
    "parquet": lambda path: write_parquet(path / "inside.parquet", SAMPLE, "struct"),
    "shards": lambda path: write_shards(path / "shards"),
}


def write_shards(directory: Path) -> Path:
    """Write shards whose images have no names, only ids."""
    for number in range(2):
        rows = slice(5 * number, 5 * number + 5)
        write_parquet(directory / f"part-{number}.parquet", SAMPLE, "bytes", rows, id=np.array(SAMPLE.names))
    return directory


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_galaxies_get_the_same_row_from_every_kind_of_source(kind: str, run: RunDir, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["ra"], file["dec"] = SAMPLE.images, SAMPLE.ra, SAMPLE.dec
    assert main([str(run.path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "expected.csv")]) == 0
    assert main([str(run.path), str(SOURCES[kind](tmp_path)), "--output", str(tmp_path / "out.csv")]) == 0
    rows, expected = read_table(tmp_path / "out.csv"), read_table(tmp_path / "expected.csv")
    names = ["class", *(name for name in rows[0] if name.startswith("p_"))]
    names += [] if kind == "folder" else ["ra", "dec"]
    assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in expected]
    assert [row["id"].rpartition("/")[2] for row in rows] == SAMPLE.names
    assert {row["id"] for row in expected} == {""} and float(expected[3]["dec"]) == SAMPLE.dec[3]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_bad_row_is_named_and_can_be_left_out(
    kind: str, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "csv":
        source = write_catalogue(tmp_path, SAMPLE, objid=range(100, 109))
        (tmp_path / "g004.png").unlink()
        message = f"{tmp_path}/g004.png: got no such file; .* \\(catalogue.csv, row 4\\)"
    else:
        contents = [encode(image) for image in SAMPLE.images]
        contents[4] = contents[4][:90]
        source = write_parquet(tmp_path / "a.parquet", SAMPLE, "bytes", image=contents, id=np.arange(100, 109))
        message = f"{source}: row 4: got 90 bytes that are none, or damaged"
    command = [str(run.path), str(source), "--output", str(tmp_path / "out.csv")]
    assert main(command) == 2 and re.match(message, capsys.readouterr().err)
    assert main([*command, "--skip-bad"]) == 1
    rows = read_table(tmp_path / "out.csv")
    assert [(row["source"], row["index"], row["id"]) for row in rows] == [
        (str(source), str(row), str(100 + row)) for row in range(9)
    ]
    assert [bool(row["error"]) for row in rows] == [row == 4 for row in range(9)]


def test_a_survey_of_the_same_galaxies_gets_the_same_calibrated_probabilities(run: RunDir, tmp_path: Path) -> None:
    source, output = write_hdf5(tmp_path / "a.h5", galaxy_images()), tmp_path / "out"
    assert main([str(run.path), str(source), "--output", str(tmp_path / "out.csv")]) == 0
    survey = [str(run.path), "--input", str(source), "--output", str(output), "--executor", "debug", "--embeddings"]
    assert main(survey) == 0
    table = pq.read_table(output / "parts" / "000000.parquet")
    names = [name for name in table.column_names if name.startswith("p_")]
    probabilities = np.stack([table[name].to_numpy() for name in names], axis=1)
    np.testing.assert_allclose(probabilities, read_probabilities(tmp_path / "out.csv"), rtol=0, atol=1e-6)
    assert table["typicality"].null_count == 0 and table["embedding"].null_count == 0


def test_a_run_of_generated_galaxies_says_so_in_every_row(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hdf5(tmp_path / "a.h5", galaxy_images())
    assert main([str(run.path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "out.csv")]) == 0
    assert {(row["run_id"], row["trained_on"]) for row in read_table(tmp_path / "out.csv")} == {
        (run.run_id, "GENERATED galaxies")
    }
    output = capsys.readouterr().out
    assert "10 galaxies; files: 1" in output and "GENERATED" in output and "RAW" not in output


def test_without_a_temperature_the_probabilities_are_called_raw(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uncalibrated = RunDir(tmp_path / run.sweep_dir.name / run.run_id)
    uncalibrated.path.mkdir(parents=True)
    for file in (run.config_file, run.best_file):
        (uncalibrated.path / file.name).write_bytes(file.read_bytes())
    write_hdf5(tmp_path / "a.h5", galaxy_images())
    assert main([str(uncalibrated.path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "out.csv")]) == 0
    row = read_table(tmp_path / "out.csv")[0]
    assert "raw_probability" in row and "raw_p_Merging" in row and "probability" not in row
    assert f"galaxyhpc evaluate {uncalibrated.path}" in capsys.readouterr().out


def test_fluxes_in_g_r_z_become_the_rgb_image_of_the_surveys_viewer(tmp_path: Path) -> None:
    """Against their formula, plane by plane: dr2_rgb of github.com/legacysurvey/imagine, map/views.py."""
    flux = np.random.default_rng(0).normal(0.02, 0.1, (3, SIDE, SIDE)).astype(np.float32)  # g, r, z
    write_flux(tmp_path / "a.fits", flux, "grz")
    write_flux(tmp_path / "b.fits.gz", np.stack([flux[0], flux[1], flux[2] * 0 + 9, flux[2]]), "griz")
    total = sum(np.maximum(0, scale * plane + 0.03) for scale, plane in zip((6.0, 3.4, 2.2), flux, strict=True)) / 3
    scaled = [scale * plane + 0.03 for scale, plane in zip((2.2, 3.4, 6.0), flux[::-1], strict=True)]
    expected = [np.clip(plane * np.arcsinh(20 * total) / np.sqrt(20) / (total + 1e-9), 0, 1) for plane in scaled]
    for name in ("a.fits", "b.fits.gz"):
        (image,) = image_files.read_images(tmp_path / name, DataConfig())
        assert isinstance(image, image_files.GalaxyImage)
        assert image.pixels.shape == (SIDE, SIDE, 3) and image.pixels.dtype == np.uint8
        np.testing.assert_allclose(image.pixels, 255 * np.stack(expected, 2)[::-1], atol=0.51)


def write_run(run: RunDir, directory: Path, **settings: object) -> RunDir:
    """Write the run again as one with other settings of `data`."""
    config = run.load_config()
    config = config.model_copy(update={"data": config.data.model_copy(update=settings)})
    other = RunDir(directory / config.run_id)
    other.path.mkdir(parents=True)
    write_text(other.config_file, config.model_dump_json())
    (other.path / run.best_file.name).write_bytes(run.best_file.read_bytes())
    return other


def predict(run: RunDir, path: Path) -> dict[str, str]:
    """Return the row of the only image of a file."""
    assert main([str(run.path), str(path), "--output", str(run.path / "out.csv"), "--overwrite"]) == 0
    (row,) = read_table(run.path / "out.csv")
    return row


def test_bands_stretch_and_crop_are_those_of_the_run(run: RunDir, tmp_path: Path) -> None:
    flux = np.random.default_rng(0).gamma(0.5, 0.1, (3, SIDE, SIDE + 6)).astype(np.float32)
    flux[0, 5, 9:12] = np.nan
    wide = write_flux(tmp_path / "a.fits", flux, "gri")
    settings = {"crop": "center", "fits": FitsConfig(bands="irg", stretch="asinh", scale=4.0)}
    other = write_run(run, tmp_path / "other", **settings)
    pixels = read_fits(wide, other.load_config().data).pixels
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row, expected = predict(other, wide), predict(other, tmp_path / "a.png")
    assert row["raw_p_Merging"] == expected["raw_p_Merging"]
    assert (row["note"], expected["note"]) == ("3 pixels without a value", "")
    assert main([str(run.path), str(wide), "--output", str(tmp_path / "out.csv")]) == 2


def test_grey_images_are_taken_where_the_run_was_trained_on_such(run: RunDir, tmp_path: Path) -> None:
    Image.fromarray(galaxy_images()[0]).convert("L").save(tmp_path / "a.png")
    grey = write_run(run, tmp_path / "grey", source="catalogue.csv")
    write_text(grey.sweep_dir / "split.csv", "# grey: all images\nrow,label\n")
    assert predict(grey, tmp_path / "a.png")["class"] != ""
    colours = write_run(run, tmp_path / "colours", source="catalogue.csv")
    write_text(colours.sweep_dir / "split.csv", "# source: catalogue.csv\nrow,label\n")
    assert main([str(colours.path), str(tmp_path / "a.png")]) == 2


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([galaxy_images()] * 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(4, 16, 16, 1), compression="gzip")
    monkeypatch.setattr("galaxyhpc.data.sources.hdf5.SLICE_BYTES", 10 * images[0].nbytes)
    opened: list[Path] = []
    open_file = h5py.File
    monkeypatch.setattr(
        h5py, "File", lambda path, *arguments, **options: opened.append(path) or open_file(path, *arguments, **options)
    )
    parts = [image.pixels for image in image_files.read_images(tmp_path / "a.h5", DataConfig())]
    np.testing.assert_array_equal(parts, images)
    assert len(opened) == 5  # for its layout, and for 8, 8, 8 and 6 images
    assert image_files.count_images(tmp_path / "a.h5", DataConfig()) == 30


def corrupt_images(value: float) -> NDArray[np.float64]:
    values = galaxy_images() / 255
    values[7, 3, 3, 1] = value
    return values


def _hdf5(values: NDArray[np.generic], name: str = "images") -> Callable[[Path], object]:
    return lambda path: write_hdf5(path, values, name)


def _png(values: NDArray[np.uint8]) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(values).save(path)


def _fits(values: NDArray[np.generic] | None, **header: str) -> Callable[[Path], object]:
    return lambda path: fits.PrimaryHDU(values, fits.Header(header)).writeto(path)


def _truncate(write: Callable[[Path], object], length: int) -> Callable[[Path], object]:
    def written(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:length])

    return written


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("absent.png")


def _text(path: Path) -> None:
    path.write_text("a galaxy")


LIGHT = np.zeros((3, SIDE, SIDE), np.float32)
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no array images": ("a.h5", _hdf5(galaxy_images(), "pictures"), "images: got no such array among pictures"),
    "NaN": ("a.h5", _hdf5(corrupt_images(np.nan)), r"nan in images\[7\]"),
    "floats beyond 1": ("a.h5", _hdf5(corrupt_images(200.0)), r"200 in images\[7\]; .*in \[0, 1\]"),
    "16 bits": ("a.h5", _hdf5(galaxy_images().astype(np.uint16)), "images of uint16"),
    "planes first": ("a.h5", _hdf5(galaxy_images().transpose(0, 3, 1, 2)), r"\(10, 3, 40, 40\)"),
    "no images": ("a.h5", _hdf5(galaxy_images()[:0]), r"shape \(0, 40, 40, 3\)"),
    "no square": ("a.h5", _hdf5(galaxy_images()[:, :30]), "40 x 30 px"),
    "no HDF5": ("a.h5", _text, r"text \(a galaxy\); expected an HDF5 file"),
    "no PNG": ("a.png", _text, r"text \(a galaxy\); expected a PNG, JPEG, TIFF or WebP image"),
    "a PNG cut off": (
        "a.png",
        _truncate(_png(galaxy_images()[0]), 900),
        "a file cut off or damaged .*a PNG, JPEG, TIFF or WebP image",
    ),
    "a grey PNG": ("a.png", _png(galaxy_images()[0, ..., 0]), r"a grey image \(mode L\); expected red, green and blue"),
    "a grey PNG in three bands": ("a.png", _png(galaxy_images()[0, ..., [0, 0, 0]].transpose(1, 2, 0)), "a grey image"),
    "a missing filter": ("a.h5", write_images_with_missing_filter, r"filter 32001 \(Blosc\).*hdf5plugin"),
    "a wide PNG": ("a.png", _png(galaxy_images()[0, :30]), "40 x 30 px; expected square"),
    "a tiny PNG": ("a.png", _png(galaxy_images()[0, :8, :8]), "8 x 8 px"),
    "no FITS": ("a.fits", _text, "a FITS file"),
    "FITS cut off": ("a.fits", _truncate(_fits(LIGHT, BANDS="grz"), 9000), "a file cut off or damaged .* a FITS file"),
    "FITS of two bands": ("a.fits", _fits(LIGHT[:2], BANDS="gr"), r"bands gr without z; .* data.fits.bands \(zrg\)"),
    "FITS of nothing": ("a.fits", _fits(LIGHT * np.nan, BANDS="grz"), "no pixel with a finite value"),
    "FITS without an image": ("a.fits", _fits(None), "no image"),
    "text": ("a.txt", _text, r"the ending .txt; expected \.h5, "),
    "an empty directory": ("a.h5", Path.mkdir, r"no images; expected \*\.png"),
    "a pipe": ("a.png", os.mkfifo, "a pipe or device; expected"),
    "a broken link": ("a.png", _link_to_nothing, "a link to absent.png, which does not exist; expected"),
    "nothing": ("a.h5", str, "no such file; expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_galaxy_is_named_in_one_line_and_nothing_is_written(
    name: str, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, make, message = BAD[name]
    write_hdf5(tmp_path / "good.h5", galaxy_images())
    make(tmp_path / file)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([str(run.path), "good.h5", file]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{file}: ") and "expected" in error and re.search(message, error)
    assert "are bad; --skip-bad classifies the others" in hint
    assert sorted(tmp_path.iterdir()) == before


def write_bad_files(folder: Path) -> None:
    """Write two good files and five bad ones; those of two are only seen when their pixels are decoded."""
    write_hdf5(folder / "b.h5", corrupt_images(np.nan))
    _truncate(_png(galaxy_images()[0]), 900)(folder / "c.png")
    _png(galaxy_images()[0, ..., 0])(folder / "d.png")
    (folder / "e.png").write_text("<html><title>Log in</title></html>")
    _png(galaxy_images()[3])(folder / "f.png")
    _png(galaxy_images()[0, :30])(folder / "g.png")


def test_all_bad_headers_are_told_at_once_before_the_network_is_loaded(
    run_without_weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    assert main([run_without_weights, "b.h5", "*.png", "absent.jpg"]) == 2
    *errors, hint = capsys.readouterr().err.splitlines()
    assert [error.partition(": ")[0] for error in errors] == ["d.png", "e.png", "g.png", "absent.jpg"]
    assert "a web page (Log in)" in errors[1] and hint.startswith("4 of 7 are bad")


def test_a_missing_filter_is_told_before_the_network_is_loaded_though_the_first_chunk_is_not_filtered(
    run_without_weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    pipeline.set_chunk((5, SIDE, SIDE, 3))
    pipeline.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((10, SIDE, SIDE, 3))
        images = h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, pipeline)
        for start, left_out in ((0, 1), (5, 0)):  # bit 0: the first filter
            images.write_direct_chunk((start, 0, 0, 0), galaxy_images()[start : start + 5].tobytes(), left_out)
    assert main([run_without_weights, str(tmp_path / "a.h5")]) == 2
    assert "filter 32001 (Blosc)" in capsys.readouterr().err


def test_of_three_thousand_bad_files_only_some_are_named(
    run_without_weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run_without_weights, *(f"{n}.png" for n in range(3000))]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 21 and errors[-1] == "... and 2980 more"


def test_all_images_that_cannot_be_decoded_are_told_at_once(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    assert main([str(run.path), "b.h5", "c.png", "f.png"]) == 2
    first, second, hint = capsys.readouterr().err.splitlines()
    assert "nan in images[7]" in first and second.startswith("c.png: got a file cut off or damaged")
    assert hint.startswith("2 of 12 are bad") and not (tmp_path / "predictions.csv").exists()


def test_bad_images_can_be_left_out_and_are_listed_with_the_reason(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    assert main([str(run.path), "b.h5", "*.png", "--skip-bad"]) == 1  # done, and something was left out
    rows = read_table(tmp_path / "predictions.csv")
    assert [(row["source"], row["index"]) for row in rows] == [
        *(("b.h5", str(index)) for index in range(10)),
        *((name, "0") for name in ("c.png", "d.png", "e.png", "f.png", "g.png")),
    ]
    bad = {row["source"]: row for row in rows if row["error"]}
    assert sorted(bad) == ["b.h5", "c.png", "d.png", "e.png", "g.png"] and bad["b.h5"]["index"] == "7"
    assert all(row["class"] == row["probability"] == row["p_Merging"] == "" for row in bad.values())
    assert rows[13]["p_Merging"] == rows[3]["p_Merging"] != ""  # f.png is the image b.h5[3]
    assert "10 galaxies" in (output := capsys.readouterr().out) and "images left out: 5;" in output


def test_nothing_is_written_where_all_images_are_bad(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    for names in (["d.png", "e.png"], ["c.png"]):
        assert main([str(run.path), *names, "--skip-bad"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == len(names)
    assert not (tmp_path / "predictions.csv").exists()


def test_a_damaged_chunk_costs_its_own_galaxies(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = galaxy_images()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(5, *images.shape[1:]), compression="gzip")
        chunk = file["images"].id.get_chunk_info(1)
    with (tmp_path / "a.h5").open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * chunk.size)
    monkeypatch.setattr("galaxyhpc.data.sources.hdf5.SLICE_BYTES", 5 * images[0].nbytes)
    assert main([str(run.path), str(tmp_path / "a.h5"), "--skip-bad", "--output", str(tmp_path / "out.csv")]) == 1
    rows = read_table(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in rows] == [False] * 5 + [True] * 5
    assert rows[5]["error"].startswith("got a damaged file")


def test_images_without_a_galaxy_are_marked(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = galaxy_images().copy()
    images[1], images[2, ..., 2], images[3, ..., :2] = 37, 0, (5, 7)
    write_hdf5(tmp_path / "a.h5", images)
    assert main([str(run.path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "out.csv")]) == 0
    notes = [row["note"] for row in read_table(tmp_path / "out.csv")]
    assert notes == ["", "blank", "no blue", "no red and no green", *[""] * 6]
    assert "images blank or with an empty band: 3; their classes mean nothing" in capsys.readouterr().out


def test_a_run_that_is_not_trained_is_refused(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained = RunDir(tmp_path / "sweep" / run.run_id)
    write_text(untrained.config_file, run.config_file.read_text())
    write_hdf5(tmp_path / "a.h5", galaxy_images())
    for path, message in ((untrained.path, "training is not finished"), (tmp_path / "sweep", "expected one run")):
        assert main([str(path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "out.csv")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_table_of_the_user_is_replaced_only_on_demand(run: RunDir, tmp_path: Path) -> None:
    source, table = write_hdf5(tmp_path / "a.h5", galaxy_images()), tmp_path / "mycatalogue.csv"
    table.write_text("dear")
    command = [str(run.path), str(source), "--output", str(table)]
    assert main(command) == 2 and table.read_text() == "dear"
    assert main([*command, "--overwrite"]) == 0 and len(read_table(table)) == len(galaxy_images())


def test_no_image_is_written_over(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_hdf5(tmp_path / "a.h5", galaxy_images())
    before = source.read_bytes()
    assert main([str(run.path), str(source), "--output", str(source)]) == 2
    assert "a name that ends in .csv" in capsys.readouterr().err and source.read_bytes() == before


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("Sa, Sab", "in between", 'a "b" &%'), ["p_Sa,_Sab", "p_in_between", 'p_a_"b"_&%']),
        (("a b", "a_b", "c d"), ["p_a b", "p_a_b", "p_c d"]),  # with _ for spaces, two would have one column
    ],
)
def test_each_class_has_a_column_of_its_name(run: RunDir, names: tuple[str, ...], columns: list[str]) -> None:
    classifier = trained_model.load(run.path, torch.device("cpu"))
    data = classifier.config.data.model_copy(update={"classes": names})
    classifier = replace(classifier, config=classifier.config.model_copy(update={"data": data}))
    assert get_columns(classifier)[8:-4] == columns
