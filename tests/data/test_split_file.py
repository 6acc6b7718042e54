"""split.csv is read as it was written; a torn one is refused, or loses its torn rows, and reading labels is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from galaxyhpc.data import DataError
from galaxyhpc.data.split_file import format_split_file, read_split_header, read_split_labels, read_split_table

TABLE = pd.DataFrame(
    {
        "row": [0, 1, 2],
        "label": [0, 0, 7],
        "ra": [359.5, 0.25, 12.0],
        "dec": [-1.5, 80.0, 0.0],
        "sky_group": [0, 1, 0],
        "fold": [3, 0, -1],
        "half": [0, 1, -1],
        "split": ["train", "test", "dropped"],
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "split.csv"
    file.write_text(format_split_file(["fingerprint: f00d", 'settings: {"a": 1, "b": 2}'], TABLE))
    return file


def test_header_labels_and_table_are_read_as_written(path: Path) -> None:
    assert read_split_header(path) == {"fingerprint": "f00d", "settings": '{"a": 1, "b": 2}'}
    assert list(read_split_labels(path)) == [("train", "0"), ("test", "0"), ("dropped", "7")]
    pd.testing.assert_frame_equal(read_split_table(path), TABLE)


def test_a_torn_row_is_no_label_and_makes_no_table(path: Path) -> None:
    path.write_text(path.read_text()[:-20])
    assert list(read_split_labels(path)) == [("train", "0"), ("test", "0")]
    with pytest.raises(DataError, match=r"split\.csv: cannot be read: "):
        read_split_table(path)


@pytest.mark.parametrize("content", [None, b"", b"row,label\n0,1\n", b"row,label\n0,1\n0,1,2\n0,1,2,3\n"])
def test_a_file_without_the_columns_is_refused_in_one_line(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for read in (read_split_labels, read_split_table):
        with pytest.raises(DataError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value).splitlines()) == 1


def test_reading_labels_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, galaxyhpc.data.split_file; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
