"""A user's own galaxies, in any file format, are classified as in the evaluation; bad files are named."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image

from galaxyhpc.config.schema import DataConfig, DemoConfig, EvaluateConfig, ModelConfig, RunConfig
from galaxyhpc.data import image_files
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.data.simulate import render_image
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.evaluate import evaluate
from galaxyhpc.models.build_model import build_model
from galaxyhpc.predict import main
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
        assert row["name"] == CLASSES[best] and row["probability"] == row[f"p_{CLASSES[best].replace(' ', '_')}"]
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


def test_a_run_of_generated_galaxies_says_so_in_every_row(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hdf5(tmp_path / "a.h5", galaxy_images())
    assert main([str(run.path), str(tmp_path / "a.h5"), "--output", str(tmp_path / "out.csv")]) == 0
    assert {(row["run_id"], row["trained_on"]) for row in read_table(tmp_path / "out.csv")} == {
        (run.run_id, "GENERATED galaxies")
    }
    output = capsys.readouterr().out
    assert "10 galaxies; files read: 1" in output and "GENERATED" in output and "RAW" not in output


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
    fits.writeto(tmp_path / "a.fits", flux)
    fits.writeto(tmp_path / "b.fits.gz", np.stack([flux[0], flux[1], flux[2] * 0 + 9, flux[2]]))
    with fits.open(tmp_path / "b.fits.gz", mode="update") as file:
        file[0].header["BANDS"] = "griz"
    total = sum(np.maximum(0, scale * plane + 0.03) for scale, plane in zip((6.0, 3.4, 2.2), flux, strict=True)) / 3
    scaled = [scale * plane + 0.03 for scale, plane in zip((2.2, 3.4, 6.0), flux[::-1], strict=True)]
    expected = [np.clip(plane * np.arcsinh(20 * total) / np.sqrt(20) / (total + 1e-9), 0, 1) for plane in scaled]
    for name in ("a.fits", "b.fits.gz"):
        (images,) = image_files.read_images(tmp_path / name)
        assert images.shape == (1, SIDE, SIDE, 3) and images.dtype == np.uint8
        np.testing.assert_allclose(images[0], 255 * np.stack(expected, 2)[::-1], atol=0.51)


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([galaxy_images()] * 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(4, 16, 16, 1), compression="gzip")
    monkeypatch.setattr("galaxyhpc.data.galaxy10.SLICE_BYTES", 10 * images[0].nbytes)
    parts = list(image_files.read_images(tmp_path / "a.h5"))
    assert [len(part) for part in parts] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate(parts), images)
    assert image_files.count_images(tmp_path / "a.h5") == 30


def corrupt_images(value: float) -> NDArray[np.float64]:
    values = galaxy_images() / 255
    values[7, 3, 3, 1] = value
    return values


def _hdf5(values: NDArray[np.generic], name: str = "images") -> Callable[[Path], object]:
    return lambda path: write_hdf5(path, values, name)


def _png(values: NDArray[np.uint8]) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(values).save(path)


def _fits(values: NDArray[np.generic] | None) -> Callable[[Path], object]:
    return lambda path: fits.PrimaryHDU(values).writeto(path)


def _truncate(write: Callable[[Path], object], length: int) -> Callable[[Path], object]:
    def written(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:length])

    return written


def _text(path: Path) -> None:
    path.write_text("a galaxy")


LIGHT = np.zeros((3, SIDE, SIDE), np.float32)
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no array images": ("a.h5", _hdf5(galaxy_images(), "pictures"), "no array `images` among pictures"),
    "NaN": ("a.h5", _hdf5(corrupt_images(np.nan)), r"nan in images\[7\]"),
    "floats beyond 1": ("a.h5", _hdf5(corrupt_images(200.0)), r"200 in images\[7\]; .*in \[0, 1\]"),
    "16 bits": ("a.h5", _hdf5(galaxy_images().astype(np.uint16)), "images of uint16"),
    "planes first": ("a.h5", _hdf5(galaxy_images().transpose(0, 3, 1, 2)), r"\(10, 3, 40, 40\)"),
    "no images": ("a.h5", _hdf5(galaxy_images()[:0]), r"shape \(0, 40, 40, 3\)"),
    "no square": ("a.h5", _hdf5(galaxy_images()[:, :30]), "40 x 30 px"),
    "no HDF5": ("a.h5", _text, "a complete HDF5 file"),
    "no PNG": ("a.png", _text, "a complete PNG or JPEG file"),
    "a PNG cut off": ("a.png", _truncate(_png(galaxy_images()[0]), 900), "a complete PNG or JPEG file"),
    "a grey PNG": ("a.png", _png(galaxy_images()[0, ..., 0]), "mode L; expected colours"),
    "a wide PNG": ("a.png", _png(galaxy_images()[0, :30]), "40 x 30 px; expected square"),
    "a tiny PNG": ("a.png", _png(galaxy_images()[0, :8, :8]), "8 x 8 px"),
    "no FITS": ("a.fits", _text, "a complete FITS file"),
    "FITS cut off": ("a.fits", _truncate(_fits(LIGHT), 9000), "a complete FITS file"),
    "FITS of two bands": ("a.fits", _fits(LIGHT[:2]), r"float32 \(2, 40, 40\) in bands grz"),
    "FITS with holes": ("a.fits", _fits(LIGHT * np.nan), "4800 pixels that are not finite"),
    "FITS without an image": ("a.fits", _fits(None), "no image"),
    "text": ("a.txt", _text, r"the ending .txt; expected \.h5, "),
    "a directory": ("a.h5", Path.mkdir, r"a directory; expected files"),
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
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and error.startswith(f"{file}: ") and "expected" in error and re.search(message, error)
    )
    assert sorted(tmp_path.iterdir()) == before


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
