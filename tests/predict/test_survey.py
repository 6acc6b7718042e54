"""A survey is predicted in parts by tasks that take unit after unit."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.classifiers import write_galaxies, write_run

from galaxyhpc.predict.__main__ import main


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_each_unit_becomes_a_part(executor: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "sweep")
    for number in range(3):
        write_galaxies(tmp_path / f"g{number}.h5", 20)
    out = tmp_path / "out"
    command = [str(run.path), "--input", str(tmp_path / "g*.h5"), "--output", str(out)]
    assert main([*command, "--executor", executor]) == 0
    parts = sorted((out / "parts").iterdir())
    assert [part.name for part in parts] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert [pq.read_table(part).num_rows for part in parts] == [20] * 3
