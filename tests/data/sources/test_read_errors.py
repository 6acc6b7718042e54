"""A file that cannot be read is called what it is, and the message says what helps."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from helpers.data_files import write_file, write_images_with_missing_filter
from PIL import Image

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.sources.hdf5 import open_hdf5


def explain(path: Path) -> str:
    """Return why a file laid out as Galaxy10 cannot be read."""
    with pytest.raises(DataError) as error:
        open_hdf5(path, DataConfig()).check_images()
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "; expected " in message and "\n" not in message
    return message.removeprefix(f"{path}: ")


def _encode(image_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, image_format)
    return file.getvalue()


def _pack(archive: str) -> bytes:
    file = io.BytesIO()
    if archive == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("galaxies.h5", "x")
    else:
        with tarfile.open(fileobj=file, mode=archive) as packed:
            packed.addfile(tarfile.TarInfo("galaxies.h5"))
    return file.getvalue()


def _fits_bytes() -> bytes:
    file = io.BytesIO()
    fits.PrimaryHDU(np.zeros((3, 32, 32), np.float32)).writeto(file)
    return file.getvalue()


FOREIGN = {
    "login page": (b"\n<!DOCTYPE html>\n<html><title>Log in</title>", "got a web page (Log in)", "ask for a login"),
    "CSV": (b"row,ra,dec\n1,2,3\n", "got text (row,ra,dec 1,2,3)", "expected an HDF5 file"),
    "PNG": (_encode("PNG"), "got a PNG image", "expected an HDF5 file"),
    "JPEG": (_encode("JPEG"), "got a JPEG image", "expected an HDF5 file"),
    "WebP": (_encode("WEBP"), "got a WebP image", "expected an HDF5 file"),
    "FITS": (_fits_bytes(), "got a FITS file", "expected an HDF5 file"),
    "tar": (_pack("w:"), "got a tar archive", "tar -xf"),
    "tar.gz": (_pack("w:gz"), "got a gzip archive", "gunzip"),
    "zip": (_pack("zip"), "got a zip archive", "unzip"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a Git LFS pointer", "git lfs pull"),
    "nothing": (b"", "got an empty file", "download it again"),
    "zeros": (bytes(9000), "got zeros", "download it again"),
    "noise": (bytes(range(128, 256)), "got an unknown kind of file", "expected an HDF5 file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_hdf5_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, got, advice = FOREIGN[name]
    (tmp_path / "a.h5").write_bytes(content)
    message = explain(tmp_path / "a.h5")
    assert message.startswith(got) and advice in message


def test_an_hdf5_file_after_other_bytes_is_an_hdf5_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file["ans"] = 1
    assert "images: got no such array among ans" in explain(tmp_path / "a.h5")


def test_a_name_that_is_no_file_is_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GALAXY10_H5", raising=False)
    assert "no such file" in explain(tmp_path / "absent.h5") and "GALAXY10_H5" in explain(tmp_path / "absent.h5")
    monkeypatch.setenv("GALAXY10_H5", str(tmp_path / "absent.h5"))  # as advised, without the file
    assert "no such file" in explain(tmp_path / "absent.h5") and "GALAXY10_H5" not in explain(tmp_path / "absent.h5")
    assert "`galaxyhpc download galaxy10`" in explain(tmp_path / "absent.h5")
    (tmp_path / "folder.h5").mkdir()
    assert "got a directory" in explain(tmp_path / "folder.h5")
    (tmp_path / "link.h5").symlink_to("elsewhere.h5")
    assert "got a link to elsewhere.h5, which does not exist" in explain(tmp_path / "link.h5")
    os.mkfifo(tmp_path / "pipe.h5")
    assert "got a pipe" in explain(tmp_path / "pipe.h5")


def test_a_file_that_another_process_has_locked_is_no_damaged_one(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5")
    code = "import sys; from pathlib import Path; from galaxyhpc.config.schema import DataConfig\n"
    code += "from galaxyhpc.data.sources.hdf5 import open_hdf5\n"
    command = [sys.executable, "-c", code + "open_hdf5(Path(sys.argv[1]), DataConfig())", str(path)]
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locking, unlocked = ({**os.environ, "HDF5_USE_FILE_LOCKING": value} for value in ("TRUE", "FALSE"))
        message = subprocess.run(command, env=locking, capture_output=True, text=True).stderr.splitlines()[-1]
        assert "another process has locked" in message and "download" not in message
        assert "HDF5_USE_FILE_LOCKING=FALSE" in message
        subprocess.run(command, env=unlocked, check=True)  # as advised


def test_a_file_whose_writer_was_killed_needs_h5clear(tmp_path: Path) -> None:
    code = "import h5py, os, sys; file = h5py.File(sys.argv[1], 'w', libver='latest'); file['images'] = 1\n"
    code += "file.swmr_mode = True; os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], check=True)
    assert f"h5clear -s {tmp_path / 'a.h5'}" in explain(tmp_path / "a.h5")


@contextmanager
def _as_another_user() -> Iterator[None]:
    """Run as a user who owns nothing here, where the tests run as root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_permission_names_the_permission(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5")
    path.chmod(0)
    with _as_another_user():
        message = explain(path)
    assert "got no permission to read it" in message and "chmod" in message


def test_a_missing_filter_is_named_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDF5_PLUGIN_PATH", "/elsewhere")
    message = explain(write_images_with_missing_filter(tmp_path / "a.h5"))
    assert "images compressed with filter 32001 (Blosc), which HDF5 does not find in /elsewhere" in message
    assert (
        "download" not in message
        and "hdf5plugin" in message
        and "HDF5_PLUGIN_PATH" in message
        and "h5repack" in message
    )


def test_a_file_cut_off_says_how_much_is_there(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5")
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    message = explain(path)
    assert f"got {whole // 2:,} of its {whole:,} bytes" in message and "continue the download" in message


def test_links_and_values_in_other_files_that_are_missing_are_named(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5", images=None)
    shape = (120, 32, 32, 3)
    layout = h5py.VirtualLayout(shape, "u1")
    layout[:] = h5py.VirtualSource("pixels.h5", "images", shape, "u1")
    with h5py.File(path, "a", locking=False) as file:  # as it is opened again while it is open
        file["images"] = h5py.ExternalLink("pixels.h5", "/images")
        assert "images: got a link to /images in pixels.h5, which cannot be opened" in explain_now(file, path)
        file["images"] = h5py.SoftLink("/pixels")
        assert "images: got a link to /pixels, which does not exist" in explain_now(file, path)
        file.create_group("images")
        assert "images: got a group" in explain_now(file, path)
        file.create_virtual_dataset("images", layout)  # HDF5 reads zeros where its sources are missing
        assert "images: got values in pixels.h5, which does not exist" in explain_now(file, path)
        file.create_dataset("images", shape, "u1", external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])
        assert "images: got values in raw.bin, which does not exist" in explain_now(file, path)


def explain_now(file: h5py.File, path: Path) -> str:
    """Explain the file as it is, and remove its images."""
    file.flush()
    message = explain(path)
    del file["images"]
    return message
