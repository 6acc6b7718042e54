"""The table of conditions: names, severities and parameters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc.config.conditions import (
    CONDITIONS,
    DEFAULT_CONDITIONS,
    describe_expected,
    describe_severity,
    get_levels,
    get_parameter,
    get_parameters,
    get_severities,
    is_condition,
    list_severity_pairs,
    split_combination,
)
from galaxyhpc.evaluation import corruptions


def test_every_condition_has_its_function_and_a_description() -> None:
    for name, condition in CONDITIONS.items():
        assert callable(corruptions.CORRUPTIONS[name])
        assert condition.description and (condition.unit or name == "clean")


def test_the_table_is_imported_without_torch() -> None:
    code = "import sys, galaxyhpc.config.conditions; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_readme_has_the_numbers_of_conditions_and_severities() -> None:
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert f"these {len(CONDITIONS)} conditions" in readme  # without the combinations
    assert f"{len(list_severity_pairs(DEFAULT_CONDITIONS))} severities" in readme  # with them


def test_severities_and_parameters_do_not_change() -> None:
    assert get_severities("clean") == (0.0,)
    assert get_severities("rotation") == tuple(7.5 * step for step in range(48))
    assert get_severities("pedestal_noise") == (0.75, 0.5, 0.25)
    assert get_severities("shot_noise") == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert [get_parameter("shot_noise", severity) for severity in get_severities("shot_noise")] == [
        0.5,
        0.25,
        0.1,
        0.04,
        0.02,
    ]


@pytest.mark.parametrize("name", DEFAULT_CONDITIONS)
def test_severities_are_those_of_the_table_and_new_ones_count_from_one(name: str) -> None:
    severities = get_severities(name)
    assert is_condition(name) and all(isinstance(severity, float) for severity in severities)
    if name not in ("clean", "rotation", "rotation_control", "pedestal_noise"):
        assert severities == tuple(float(k) for k in range(1, len(severities) + 1)) and len(severities) <= 5


def test_a_part_of_a_combination_has_its_own_level() -> None:
    assert get_severities("rotation+shot_noise") == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert get_parameters("rotation+shot_noise", 3.0) == [("rotation", 22.5), ("shot_noise", 0.1)]
    assert get_parameter("rotation+shot_noise", 3.0) == 3.0
    assert describe_severity("rotation+shot_noise", 3.0) == "22.5 degrees + 0.1 of the exposure time"
    assert describe_severity("pedestal_noise", 0.25) == "SNR 0.25"
    assert split_combination("a+b") == ("a", "b") and get_levels("rotation") == (7.5, 15.0, 22.5, 30.0, 45.0)


def test_a_combination_has_as_many_levels_as_the_part_with_fewest() -> None:
    assert get_severities("flip+shot_noise") == (1.0, 2.0)
    assert get_severities("jpeg+pedestal_noise+star") == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "name",
    ["", "+", "klean", "Clean", "clean+flip", "flip+clean", "flip+", "flip + shift", "flip+klean", "flip+flip"],
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_condition(name)


def test_the_nearest_name_is_suggested() -> None:
    assert describe_expected("jpg+star").endswith("; did you mean jpeg+star?")
    assert "did you mean" not in describe_expected("snow")


def test_more_than_three_parts_are_refused() -> None:
    assert is_condition("flip+shift+jpeg") and not is_condition("flip+shift+jpeg+star")
