"""Classes are names in the order of their labels, and part of a run's identity."""

from __future__ import annotations

import pytest

from galaxyhpc.config.class_names import GALAXY10_CLASSES, check_class_names
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig


def make_run(classes: tuple[str, ...]) -> RunConfig:
    return RunConfig(model=ModelConfig(architecture="cnn"), data=DataConfig(source="a.csv", classes=classes))


@pytest.mark.parametrize("names", [("E", "S0"), ("Sa, Sab", "Sb – Sbc"), tuple(map(str, range(1000)))])
def test_two_to_a_thousand_printable_names_are_classes(names: tuple[str, ...]) -> None:
    assert check_class_names(names) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("E",), "got 1 classes; expected 2 to 1000"),
        (tuple(map(str, range(1001))), "got 1001 classes"),
        (("E", " S0"), "without spaces around them"),
        (("E", ""), "got class name ''"),
        (("E", "S\n"), "printable"),
        (("E", "S0", "E"), "got class name 'E' twice"),
    ],
)
def test_other_names_are_refused_by_name(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_class_names(names)


def test_other_classes_or_another_order_make_another_run() -> None:
    runs = [make_run(classes) for classes in [(), ("E", "S0"), ("S0", "E")]]
    assert len({run.run_id for run in runs}) == 3
    assert make_run(GALAXY10_CLASSES).run_id == runs[0].run_id
