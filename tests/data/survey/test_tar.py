"""Images are found in any archive that tar writes, by headers alone, and a damaged archive is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import make_sample
from helpers.survey import find_and_read, stack, write_tar

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.survey.tar import iterate_images
from galaxyhpc.data.survey.units import find_units


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_gives_the_images_in_order(tmp_path: Path, tar_format: int) -> None:
    sample = make_sample()
    path = write_tar(tmp_path / "a.tar", sample, tar_format)
    with tarfile.open(path) as archive:
        names = [name for name in archive.getnames() if name.endswith(".png")]
    table = find_and_read(path, galaxies_per_unit=50)
    assert table["id"].tolist() == names
    assert table["row"].tolist() == list(range(120))
    order = np.argsort(np.argsort(names))
    assert np.array_equal(stack(table), sample.images[order])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_whole_and_what_is_no_image_is_left_out(tmp_path: Path, tar_format: int) -> None:
    long = "/".join(["directory" * 5] * 4) + "/é.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as archive:
        for name in ("a.json", "._a.png", "a.png", long, "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(name[0].encode() * 700))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(link)
    members = list(iterate_images(tmp_path / "a.tar"))
    assert [member.name for member in members] == ["a.png", long, "b.jpg"]
    content = (tmp_path / "a.tar").read_bytes()
    assert [content[member.start : member.start + member.size] for member in members] == [
        b"a" * 700,
        b"d" * 700,
        b"b" * 700,
    ]


def test_an_archive_that_is_cut_off_or_damaged_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", make_sample())
    sound, members = path.read_bytes(), list(iterate_images(path))
    third = members[3].start
    for content, message in (
        (sound[: third + 5], f"no end at byte {members[3].stop}"),
        (sound[: third - 512], f"no end at byte {third - 512}"),
        (sound[: third - 512] + os.urandom(512) + sound[third:], f"bad header at byte {third - 512}"),
    ):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"a.tar: got a file cut off or damaged \({message}\); expected a tar archive"
        ):
            find_units([str(path)], DataConfig())
    path.write_text("<html><title>Log in</title>")
    with pytest.raises(DataError, match=r"a.tar: got a web page \(Log in\); expected a tar archive"):
        find_units([str(path)], DataConfig())
