"""The galaxies of a sweep are divided once, alike for all, and refused with one clear line where they cannot be."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.data_files import write_file

from galaxyhpc.config.schema import DataConfig, DemoConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare

REAL = os.environ.get("GALAXY10_H5", "")


def settings(tmp_path: Path, source: Path, **changes: object) -> DataConfig:
    return DataConfig(source=str(source), cache=str(tmp_path / "cache"), **{"image_size": 32, **changes})


def split_text(config: DataConfig, galaxies: object, sweep: Path) -> str:
    load_split(config, galaxies, sweep)
    return (sweep / "split.csv").read_text()


def test_a_sweep_is_divided_once_and_read_back_alike(tmp_path):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"))
    galaxies = prepare(config)
    first = load_split(config, galaxies, tmp_path / "sweep")
    written = (tmp_path / "sweep/split.csv").read_bytes()
    other_size = config.model_copy(update={"image_size": 16})
    again = load_split(other_size, prepare(other_size), tmp_path / "sweep")
    pd.testing.assert_frame_equal(first, again)
    assert (tmp_path / "sweep/split.csv").read_bytes() == written
    assert list(first.columns) == ["row", "label", "ra", "dec", "sky_group", "fold", "half", "split"]
    assert np.allclose(first[["ra", "dec"]].T, [galaxies.ra, galaxies.dec], rtol=0, atol=1e-12)
    assert set(first["split"]) == {"train", "validation", "test"}


def test_the_split_says_what_it_was_made_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    pixels[119] = pixels[0]
    config = settings(tmp_path, write_file(tmp_path / "a.h5", images=pixels))
    galaxies = prepare(config)
    text = split_text(config, galaxies, tmp_path / "sweep")
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert comments == text.splitlines()[: len(comments)]
    assert f"# fingerprint: {galaxies.fingerprint}" in comments
    chosen = json.loads(next(line for line in comments if "settings" in line).split(": ", 1)[1])
    assert chosen["link_arcsec"] == 67.0 and chosen["conflicting_duplicates"] == "drop"
    counts = pd.read_csv(io.StringIO(text), comment="#")["split"].value_counts()
    expected = ", ".join(f"{split} {counts[split]}" for split in ("train", "validation", "test", "dropped"))
    assert f"# counts: {expected}" in comments
    assert any(line.startswith("# dropped: 2 with the pixels") for line in comments)
    assert "GENERATED" not in text


def test_the_split_of_demo_galaxies_says_that_they_are_generated(tmp_path):
    config = DataConfig(cache=str(tmp_path), image_size=33, demo=DemoConfig(galaxies=100, size=32))
    assert "GENERATED" in split_text(config, prepare(config), tmp_path / "sweep")


def test_processes_that_divide_together_get_one_split(tmp_path):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"))
    prepare(config)
    script = "import sys\nfrom pathlib import Path\nfrom galaxyhpc.config.schema import DataConfig\n"
    script += "from galaxyhpc.data.dataset import open_dataset\n"
    script += "config = DataConfig.model_validate_json(sys.argv[1])\n"
    script += "print(hash(open_dataset(config, Path(sys.argv[2]))[1].to_csv()))\n"
    command = [sys.executable, "-c", script, config.model_dump_json(), str(tmp_path / "sweep")]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    hashes = {job.communicate()[0].splitlines()[-1] for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(hashes) == 1


@pytest.mark.parametrize("change", ["galaxies", "settings", "rows"])
def test_another_split_in_the_same_sweep_is_refused(tmp_path, change):
    config, sweep = settings(tmp_path, write_file(tmp_path / "a.h5")), tmp_path / "sweep"
    galaxies = prepare(config)
    text = split_text(config, galaxies, sweep)
    if change == "galaxies":
        galaxies = prepare(settings(tmp_path, write_file(tmp_path / "b.h5", seed=1)))
    elif change == "settings":
        config = config.model_copy(update={"split_seed": 1})
    else:
        (sweep / "split.csv").write_text("\n".join(text.splitlines()[:-3]))
    with pytest.raises(DataError) as error:
        load_split(config, galaxies, sweep)
    assert str(error.value).startswith(f"{sweep / 'split.csv'}: ")
    messages = {"galaxies": galaxies.fingerprint[:12], "settings": '"split_seed": 1', "rows": "as written"}
    assert messages[change] in str(error.value)


N, ROWS = 120, np.arange(120)
IN_ONE_PLACE = np.where(ROWS >= 108, 1.0, ROWS / 2.0 + 10)  # all of class 9
UNDIVIDED = {  # how the galaxies of class 9 hang together, the settings, what is said
    "linked": (
        {"dec": IN_ONE_PLACE + ROWS / 1000},
        {},
        r"linked by data.link_arcsec \(67\); .*smaller data.link_arcsec",
    ),
    "in one place": (
        {"dec": IN_ONE_PLACE},
        {},
        "within 1 arcsec of each other, at ra 30, dec 1; expected the position",
    ),
    "in one place, unlinked": ({"dec": IN_ONE_PLACE}, {"link_arcsec": 0.0}, "within 1 arcsec of each other"),
    "of the same pixels": ({"images": 9}, {"link_arcsec": 0.0}, "of the same pixels; expected images that differ"),
    "dropped": (
        {"dec": np.where(ROWS >= 110, 0.0, ROWS / 2.0)},
        {},
        "all but 2 dropped, .*conflicting_duplicates=keep",
    ),
}


@pytest.mark.parametrize("name", UNDIVIDED)
def test_a_class_that_cannot_be_divided_is_refused_with_its_cause(tmp_path, name):
    changes, options, message = UNDIVIDED[name]
    if "images" in changes:
        images = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)
        images[ROWS >= 108] = changes["images"]
        changes = {"images": images}
    path = write_file(tmp_path / "a.h5", **{"ra": np.full(N, 30.0), "dec": ROWS / 2.0, **changes})
    config = settings(tmp_path, path, **options)
    with pytest.raises(DataError, match=rf"class 9 \(Edge-on with Bulge\): got no galaxy for .*{message}") as error:
        load_split(config, prepare(config), tmp_path / "sweep")
    assert ("data.link_arcsec" in str(error.value)) == (name == "linked")  # no advice that cannot help
    assert not (tmp_path / "sweep/split.csv").exists()


def test_a_file_whose_galaxies_are_dropped_for_their_labels_is_refused_unless_they_are_kept(tmp_path):
    dec = np.where(ROWS % 3 == 0, ROWS / 2.0 + 5, ROWS / 2.0)
    path = write_file(tmp_path / "a.h5", ra=np.full(N, 30.0), dec=dec)
    config = settings(tmp_path, path)
    with pytest.raises(DataError, match=r"got [0-9]+ of 120 galaxies dropped, with the pixels or the position .*=keep"):
        load_split(config, prepare(config), tmp_path / "sweep")
    load_split(config.model_copy(update={"conflicting_duplicates": "keep"}), prepare(config), tmp_path / "sweep")


@pytest.mark.skipif(not REAL, reason="GALAXY10_H5 does not name a real file")
def test_the_real_galaxies_are_divided_without_leaks(tmp_path):
    config = settings(tmp_path, Path(REAL), image_size=65)
    galaxies = prepare(config)
    table = load_split(config, galaxies, tmp_path / "sweep")
    assert not galaxies.generated
    assert (table.groupby("sky_group")["split"].agg(lambda s: len(set(s) - {"dropped"})) <= 1).all()
    assert 20 < galaxies.mean < 80
