"""The lines about a source of galaxies, and what is left out where it says little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.data_files import write_file

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.explore.__main__ import make_data_config
from galaxyhpc.explore.dataset_summary import DatasetSummary, summarize_dataset
from galaxyhpc.explore.distributions import make_redshift_section
from galaxyhpc.explore.findings import describe_chance, describe_findings, format_title


def summarize_file(path: Path) -> DatasetSummary:
    config = make_data_config(str(path), None, path.parent / "cache")
    return summarize_dataset(path, prepare(config), config, lambda done: None)


def test_a_file_without_redshifts_or_pairs_is_said_to_have_none(tmp_path: Path) -> None:
    summary = summarize_file(write_file(tmp_path / "a.h5"))
    findings = "; ".join(describe_findings(summary))
    assert "0 pairs of duplicates" in findings and "Redshift known for 0 of 120 galaxies" in findings
    assert GENERATED_NOTICE not in format_title(summary)
    section = make_redshift_section(summary)
    assert section.paragraphs == ("The source has no redshifts.",)
    assert not section.figures


def test_equal_and_unequal_numbers_of_galaxies_are_told_in_other_words(tmp_path: Path) -> None:
    summary = summarize_file(write_file(tmp_path / "a.h5"))
    assert describe_findings(summary)[0] == "12 galaxies in each of the 10 classes"
    assert describe_chance(summary).endswith("same number of galaxies: the chance level of the accuracy is 10.0 %.")
    summary.galaxies.labels[0] = 3
    assert describe_findings(summary)[0] == "From 11 (Disturbed) to 13 (In-between Round Smooth) galaxies per class"
    assert "commonest class (In-between Round Smooth, 10.8 %)" in describe_chance(summary)


def test_images_that_show_no_galaxy_are_counted_with_their_rows(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    images[5], images[7, ..., 2] = 40, 0
    summary = summarize_file(write_file(tmp_path / "a.h5", images=images))
    assert "2 images blank or with an empty band: row 5, 7" in describe_findings(summary)
