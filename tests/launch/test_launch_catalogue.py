"""Galaxies of a user's own, from a catalogue to a report."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import sources
from helpers.runs import install_fake_slurm
from helpers.sources import Sample
from helpers.warm_processes import run_python

from galaxyhpc.config.sweep import load_sweep
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.galaxies import fill_in_classes
from galaxyhpc.data.split_file import read_split_header, read_split_table
from galaxyhpc.evaluation import results
from galaxyhpc.explore.__main__ import main as explore
from galaxyhpc.launch.__main__ import main as launch
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs

EFIGI = os.environ.get("EFIGI", "")
SWEEPS = Path(__file__).parents[2] / "sweeps"
SWEEP = """
base:
  data: {source: catalogue/mine.csv, image_size: 33, columns: {label: shape}}
  model: {width: parameters, scale: 0.1}
  train: {epochs: 12, batch_size: 16, learning_rate: 0.01}
  evaluate: {conditions: [clean, rotation]}
blocks:
  - grid: {model.group: [C4]}
"""


def make_shapes(n: int = 240, side: int = 40) -> Sample:
    """Return discs, bars and blank noise: classes that a network learns in a few epochs."""
    rng, offset = np.random.default_rng(0), np.arange(side) - (side - 1) / 2
    labels = np.arange(n) % 3
    disc, bar = np.hypot(offset, offset[:, None]) < 8, (np.abs(offset) < 3) & (np.abs(offset[:, None]) < 15)
    shapes = np.stack([disc, bar, np.zeros_like(disc)])[labels]
    images = rng.integers(0, 60, (n, side, side, 3)) + 150 * shapes[..., None]
    return Sample(images.astype(np.uint8), labels, rng.uniform(0, 360, n), rng.uniform(-30, 80, n))


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_catalogue_is_trained_on_evaluated_and_reported(tmp_path: Path) -> None:
    sample = make_shapes()
    parts = np.where(np.arange(240) < 180, "train", "test")
    columns = {"split": parts, "ra": [""] * 240, "dec": [""] * 240}
    source = sources.write_catalogue(tmp_path / "catalogue", sample, "mine.csv", **columns)
    table = pd.read_csv(source).rename(columns={"label": "shape"})
    table.loc[200, "shape"] = sources.CLASSES[(sample.labels[200] + 1) % 3]  # wrong, and so misclassified
    table.to_csv(source, index=False)
    (tmp_path / "mine.yaml").write_text(SWEEP)
    result = run_python("-m", "galaxyhpc.launch", "mine.yaml", "--executor", "debug", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = find_runs(tmp_path / "runs/mine")
    assert run.load_config().data.classes == sources.CLASSES
    logits = results.load(RunDir(run.path)).logits["clean", 0.0]
    assert logits.shape == (60, 3)
    assert (logits.argmax(1) == sample.labels[180:]).mean() > 0.8
    split = read_split_table(tmp_path / "runs/mine/split.csv")
    assert split["id"].tolist() == sample.names and split["ra"].isna().all()
    assert read_split_header(tmp_path / "runs/mine/split.csv")["divided"].startswith("by column split; validation")
    hardest = pd.read_csv(tmp_path / "runs/mine/report/hardest.csv")
    assert "g200.png" in hardest["id"].tolist()
    assert hardest["id"].tolist() == [f"g{row:03}.png" for row in hardest["row"]]
    assert '"200":"g200.png"' in (tmp_path / "runs/mine/report/report.html").read_text()
    for command in ("status", "fsck"):
        answer = run_python("-m", "galaxyhpc", command, "runs/mine", cwd=tmp_path)
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("executor", [pytest.param("debug", marks=pytest.mark.slow), "slurm"])
def test_duplicates_to_be_refused_are_known_before_a_run_is_planned(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted on Slurm's login node, too; a dry run only says that it does not convert."""
    sample = sources.make_sample(60)
    sample.images[1] = sample.images[0]
    parts = ["train" if row % 2 else "test" for row in range(60)]
    sources.write_catalogue(tmp_path / "catalogue", sample, "mine.csv", split=parts, ra=[""] * 60, dec=[""] * 60)
    sweep = SWEEP.replace("label: shape}", "label: label}, conflicting_duplicates: refuse")
    (tmp_path / "mine.yaml").write_text(sweep.replace("C4", "C2"))
    fake_slurm, calls = install_fake_slurm(tmp_path, monkeypatch), tmp_path / "calls"
    fake_slurm([])
    monkeypatch.chdir(tmp_path)
    options = ["mine.yaml", "--executor", executor]
    assert launch([*options, "--dry-run"]) == 0 and not (tmp_path / "runs").exists()
    output = capsys.readouterr().out
    assert f"not checked: duplicates by the pixels of {tmp_path / 'catalogue/mine.csv'}; a launch converts" in output
    num_tests = calls.read_text().count("sbatch")  # of sbatch --test-only
    assert launch(options) == 2
    error = capsys.readouterr().err
    assert "got 2 galaxies with the pixels, or nearly these, or the position of one of another part" in error
    assert calls.read_text().count("sbatch") == 2 * num_tests
    assert [path.name for path in (tmp_path / "runs/mine").iterdir() if not path.name.startswith(".")] == []
    assert launch([*options, "--dry-run"]) == 2 and "problems: 1" in capsys.readouterr().err  # converted


@pytest.fixture(scope="module")
def efigi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with EFIGI's catalogue and its images, unpacked if they are not."""
    if not EFIGI:
        pytest.skip("EFIGI does not name the directory of the EFIGI catalogue")
    archive = Path(EFIGI) / "images_88px.tar"
    if not archive.exists():
        return Path(EFIGI)
    directory = tmp_path_factory.mktemp("efigi")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    (directory / "catalogue.csv").write_bytes((Path(EFIGI) / "catalogue.csv").read_bytes())
    return directory


@pytest.mark.slow
def test_the_sweeps_of_efigi_find_their_galaxies(
    efigi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EFIGI", str(efigi))
    for name, counts in (("efigi", [289, 69, 537, 672, 989, 751, 903, 248]), ("handedness", [764, 702])):
        data = load_sweep(SWEEPS / f"{name}.yaml").runs[0].data.model_copy(update={"cache": str(tmp_path / "cache")})
        galaxies, table = open_dataset(fill_in_classes(data), tmp_path / name)
        assert np.bincount(galaxies.labels).tolist() == counts
        assert galaxies.published_sizes == (88,) and galaxies.num_left_out == 4458 - sum(counts)
        assert table["id"].str.startswith("PGC").all()
        assert read_split_header(tmp_path / name / "split.csv")["divided"].startswith("at random")
    options = ["--output", str(tmp_path / "page.html"), "--cache", str(tmp_path / "cache")]
    assert explore([str(SWEEPS / "handedness.yaml"), *options]) == 0
    assert "2,992 galaxies of other classes left out" in capsys.readouterr().out
