"""Galaxies are converted once and whole, opened alike by everyone, and refused with one clear line when wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.data_files import write_file

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig, DemoConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import divide_before_conversion
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.sources.hdf5 import open_hdf5

REAL = os.environ.get("GALAXY10_H5", "")
PREPARE = """
import sys
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.galaxies import prepare
galaxies = prepare(DataConfig.model_validate_json(sys.argv[1]))
with open('/proc/self/status') as file:  # not ru_maxrss: a process inherits that of the one which started it
    peak = int(file.read().partition('VmHWM:')[2].split()[0]) / 1024
print(galaxies.fingerprint, galaxies.labels[-1], galaxies.images[-1].sum(), "torch" in sys.modules, peak)
"""


def settings(tmp_path: Path, source: Path, **changes: object) -> DataConfig:
    return DataConfig(source=str(source), cache=str(tmp_path / "cache"), **{"image_size": 32, **changes})


def process(config: DataConfig, first: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", first + PREPARE, config.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def unfinished(config: DataConfig) -> list[Path]:
    return list(Path(config.cache).glob(".*.making"))


def test_galaxies_come_out_as_they_were_published(tmp_path):
    path = write_file(tmp_path / "a.h5")
    galaxies = prepare(settings(tmp_path, path))
    with h5py.File(path) as file:
        assert np.array_equal(galaxies.images, file["images"][:].transpose(0, 3, 1, 2))
        assert np.array_equal(galaxies.labels, file["ans"][:])
        assert np.array_equal(galaxies.ra, file["ra"][:])
        assert np.array_equal(galaxies.dec, file["dec"][:])
        assert galaxies.mean == pytest.approx(file["images"][:].mean())
    assert isinstance(galaxies.images, np.memmap)
    assert not galaxies.images.flags.writeable
    assert galaxies.labels.dtype == np.int64
    assert galaxies.pixel_scale_arcsec == pytest.approx(0.262 * 8)
    assert not galaxies.generated
    assert len(set(galaxies.digests)) == 120


def test_smaller_images_are_averages_without_aliasing(tmp_path):
    stripes = np.zeros((120, 64, 64, 3), np.uint8)
    stripes[:, ::2] = 200  # finer than 16 px can show
    stripes[:, :, :, 2] = np.arange(120)[:, None, None]
    images = prepare(settings(tmp_path, write_file(tmp_path / "a.h5", images=stripes), image_size=16)).images
    assert np.abs(images[:, :2, 1:-1].astype(int) - 100).max() <= 7
    assert (images[:, 2] == np.arange(120)[:, None, None]).all()


def test_a_file_that_does_not_say_its_pixel_scale_shows_the_published_field(tmp_path):
    for k, scale in enumerate([None, np.full(120, np.nan)]):
        path = write_file(tmp_path / f"{k}.h5", pxscale=scale)
        assert prepare(settings(tmp_path, path, image_size=65)).pixel_scale_arcsec == pytest.approx(67.072 / 65)


def test_the_fingerprint_is_of_the_content_not_of_the_file(tmp_path):
    first = prepare(settings(tmp_path, write_file(tmp_path / "a.h5")))
    (tmp_path / "elsewhere").mkdir()
    with h5py.File(tmp_path / "a.h5") as old, h5py.File(tmp_path / "elsewhere/b.h5", "w") as new:
        for key in old:
            new[key] = old[key][:]  # neither chunks nor compression
    again = prepare(settings(tmp_path, tmp_path / "elsewhere/b.h5", image_size=16))
    assert first.fingerprint == again.fingerprint
    assert np.array_equal(first.digests, again.digests)
    images = np.array(first.images.transpose(0, 2, 3, 1))
    images[7, 0, 0, 0] ^= 1
    labels, ra = np.roll(first.labels, 1), np.roll(first.ra, 1)
    for changes in ({"images": images}, {"ans": labels}, {"ra": ra}, {"dec": -first.dec}):
        other = prepare(settings(tmp_path, write_file(tmp_path / "c.h5", **changes)))
        assert other.fingerprint != first.fingerprint, changes.keys()


def test_names_of_classes_are_part_of_the_fingerprint_unless_they_are_those_of_galaxy10(tmp_path):
    first = prepare(settings(tmp_path, write_file(tmp_path / "a.h5")))
    named = prepare(settings(tmp_path, write_file(tmp_path / "b.h5", classes=GALAXY10_CLASSES)))
    assert named.fingerprint == first.fingerprint
    classes = GALAXY10_CLASSES[::-1]
    other = prepare(settings(tmp_path, write_file(tmp_path / "c.h5", classes=classes), classes=classes))
    assert other.classes == classes and other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "got 3 classes; expected the 10 of data.classes, such as class 0: 'E', not 'Disturbed'"),
        (("E", "Sa"), "got 3 classes; expected the 2 of data.classes, such as class 1: 'S0', not 'Sa'"),
        (("E", "S0", "Sp", "Im"), "got 3 classes; expected the 4 of data.classes:"),
    ],
)
def test_galaxies_of_other_classes_than_those_of_the_run_are_refused(tmp_path, classes, message):
    config = settings(tmp_path, write_file(tmp_path / "a.h5", classes=["E", "S0", "Sp"]), classes=classes)
    for read in (lambda config: divide_before_conversion([config]), prepare, prepare):  # the last opens the converted
        with pytest.raises(DataError) as error:
            read(config)
        assert str(error.value).startswith(f"{config.source}: {message}")


def test_a_converted_file_is_opened_and_not_converted_again(tmp_path, capfd):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"))
    prepare(config)
    assert capfd.readouterr().err == "converting a.h5 to 32 px: 120 galaxies of 32 px\n"
    prepare(config)
    assert capfd.readouterr().err == ""


def test_a_file_written_anew_is_converted_anew(tmp_path):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"))
    before = prepare(config)
    write_file(tmp_path / "a.h5", seed=1)
    assert prepare(config).fingerprint != before.fingerprint


def test_jobs_that_start_together_convert_once(tmp_path):
    config = settings(tmp_path, write_file(tmp_path / "a.h5", n=2000))
    jobs = [process(config) for _ in range(4)]
    outputs = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0, 0], outputs
    assert len({out.split()[0] for out, _ in outputs}) == 1
    assert sum(err.count("converting") for _, err in outputs) == 1
    assert all("False" in out for out, _ in outputs)  # nobody needed torch


def assert_a_killed_conversion_is_not_trusted(config: DataConfig, job: subprocess.Popen[str]) -> None:
    output = job.communicate()
    assert job.returncode == -signal.SIGKILL, output
    assert len(unfinished(config)) == 1
    assert not list(Path(config.cache).glob("a-33px-*"))
    images = np.array(prepare(config).images)
    unbroken = prepare(config.model_copy(update={"cache": config.cache + "-2"}))
    assert np.array_equal(images, unbroken.images)
    assert unfinished(config) == []


def test_a_killed_conversion_leaves_nothing_that_a_later_one_trusts(tmp_path):
    config = settings(tmp_path, write_file(tmp_path / "a.h5", n=1500, side=64), image_size=33)
    job = process(config)
    while job.poll() is None and not any((made / "images.npy").exists() for made in unfinished(config)):
        time.sleep(0.0005)
    job.send_signal(signal.SIGKILL)
    assert_a_killed_conversion_is_not_trusted(config, job)


@pytest.mark.parametrize(
    "moment", ["sources.conversion.compute_fingerprint", "sources.conversion.write_text", "galaxies.os.replace"]
)
def test_a_conversion_killed_near_its_end_leaves_nothing_either(tmp_path, moment):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"), image_size=33)
    kill = f"import os, galaxyhpc.data.galaxies\ngalaxyhpc.data.{moment} = lambda *_: os.kill(os.getpid(), 9)\n"
    assert_a_killed_conversion_is_not_trusted(config, process(config, kill))


@pytest.mark.parametrize("name", ["images.npy", "columns.npz", "metadata.json"])
@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_a_damaged_conversion_is_made_again(tmp_path, name, damage):
    config = settings(tmp_path, write_file(tmp_path / "a.h5"))
    before = np.array(prepare(config).images)
    (file,) = Path(config.cache).glob(f"a-32px-*/{name}")
    length = {"missing": 0, "torn": file.stat().st_size // 2, "empty": 0}[damage]
    os.truncate(file, length)
    if damage == "missing":
        file.unlink()
    assert np.array_equal(prepare(config).images, before)


@pytest.mark.slow
def test_a_file_is_converted_in_less_memory_than_its_pixels_take(tmp_path):
    n, side, rng = 4460, 256, np.random.default_rng(0)
    path = write_file(tmp_path / "a.h5", n=n, images=None)
    with h5py.File(path, "a") as file:  # 836 MiB of pixels, laid out as published; what is not written takes no space
        shape, chunks = (n, side, side, 3), (555, 16, 16, 1)
        images = file.create_dataset("images", shape, np.uint8, chunks=chunks, compression="gzip", shuffle=False)
        last = rng.integers(0, 256, (20, side, side, 3), np.uint8)
        images[-20:] = last
        images[555:1110, :64, :64] = rng.integers(0, 256, (555, 64, 64, 3), np.uint8)
    job = process(settings(tmp_path, path, image_size=65))
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert float(out.split()[-1]) < 800, "MiB"
    galaxies = prepare(settings(tmp_path, path, image_size=65))
    assert galaxies.images.shape == (n, 3, 65, 65)
    assert galaxies.images[-1].mean() == pytest.approx(last[-1].mean(), abs=1.0)
    assert galaxies.images[-20:].any() and galaxies.images[600].any() and not galaxies.images[1200].any()


@pytest.mark.parametrize("chunks", [None, (1, 32, 32, 3), (600, 4, 4, 1), (7, 5, 3, 2)])
def test_any_chunking_gives_the_same_galaxies(tmp_path, chunks, monkeypatch):
    monkeypatch.setattr("galaxyhpc.data.sources.hdf5.SLICE_BYTES", 50 * 32 * 32 * 3)  # 12 slices and more
    path = write_file(tmp_path / "a.h5", n=600, images=None)
    pixels = np.random.default_rng(5).integers(0, 256, (600, 32, 32, 3), np.uint8)
    with h5py.File(path, "a") as file:
        file.create_dataset("images", data=pixels, chunks=chunks)
    assert np.array_equal(prepare(settings(tmp_path, path)).images, pixels.transpose(0, 3, 1, 2))


def test_a_missing_file_is_refused(tmp_path):
    config = settings(tmp_path, tmp_path / "absent.h5")
    with pytest.raises(DataError, match="no such file"):
        prepare(config)
    assert unfinished(config) == []


def test_pixels_that_cannot_be_read_are_refused_and_leave_nothing(tmp_path):
    path = write_file(tmp_path / "damaged.h5")
    with h5py.File(path) as file:
        where = file["images"].id.get_chunk_info(40)
    with path.open("r+b") as file:
        file.seek(where.byte_offset)
        file.write(b"\xff" * where.size)
    config = settings(tmp_path, path)
    open_hdf5(path, DataConfig())
    with pytest.raises(DataError, match="damaged"):
        prepare(config)
    assert unfinished(config) == []


def test_a_cache_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.cache: got ''; expected an absolute path"):
        prepare(DataConfig(source=str(write_file(tmp_path / "a.h5"))))


def test_demo_galaxies_are_generated_once_and_say_so(tmp_path, capfd):
    config = DataConfig(cache=str(tmp_path), image_size=33, demo=DemoConfig(galaxies=100, size=32))
    galaxies = prepare(config)
    assert galaxies.generated
    assert galaxies.images.shape == (100, 3, 33, 33)
    (file,) = tmp_path.glob("demo-*.h5")
    written = file.stat().st_mtime_ns
    assert prepare(config.model_copy(update={"image_size": 65})).fingerprint == galaxies.fingerprint
    assert file.stat().st_mtime_ns == written
