"""What a user of a trained network is told of the images it was trained on."""

from __future__ import annotations

from pathlib import Path

from helpers.sources import make_sample, write_catalogue

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.evaluation.trained_model import describe_field


def test_the_field_is_that_of_the_source_or_unknown(tmp_path: Path) -> None:
    source = str(write_catalogue(tmp_path, make_sample()))
    assert describe_field(DataConfig()) == "67.1 arcsec of sky"
    assert describe_field(DataConfig(source=source, field_arcsec=30.0)) == "30.0 arcsec of sky"
    for path in (source, str(tmp_path / "absent.csv")):
        assert describe_field(DataConfig(source=path)) == "a field of unknown size"
