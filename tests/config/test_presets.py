"""The study's networks by name, in a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.sweep import SweepError, load_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"


def load_runs(folder: Path, text: str, *overrides: str) -> tuple[RunConfig, ...]:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path, overrides).runs


def load_errors(folder: Path, text: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        load_runs(folder, text)
    return str(caught.value).splitlines()


def test_a_preset_stands_for_its_settings(tmp_path: Path) -> None:
    named, spelt = load_runs(
        tmp_path,
        "blocks:\n- points: [{model.preset: WRN16d8d4d1}]\n- base: {train.epochs: 7}\n  points:\n"
        "  - {model: {architecture: e2wrn, depth: 16, widen: 8, group: D8, restriction: [D4, D1]}}\n",
    )
    assert named.model == spelt.model
    assert (named.model_tag, named.model.invariance_group) == ("D8D4D1-e2wrn16-8", "D1")


def test_a_network_that_takes_any_image_size_gets_it(tmp_path: Path) -> None:
    text = "base: {data.image_size: 224}\nblocks: [{grid: {model.architecture: [resnet18, squeezenet1_1]}}]\n"
    assert [run.data.image_size for run in load_runs(tmp_path, text)] == [224, 224]
    (line,) = load_errors(tmp_path, text.replace("squeezenet1_1", "cnn"))
    assert "got 224; not exact under quarter turns for cnn" in line and "sweep.yaml:1" in line


def test_what_is_written_beside_or_above_a_preset_wins(tmp_path: Path) -> None:
    text = "base: {model: {preset: D8, scale: 0.5}}\nblocks: [{grid: {model.group: [C4, D8]}}]\n"
    assert [run.model.group for run in load_runs(tmp_path, text)] == ["C4", "D8"]
    assert {run.model.scale for run in load_runs(tmp_path, text)} == {0.5}
    text = "blocks: [{grid: {model.preset: [d4resnet18, c4resnet18]}}]\n"
    assert {run.model.base_width for run in load_runs(tmp_path, text, "model.base_width=9")} == {9}
    (only,) = load_runs(tmp_path, text, "model.preset=small_c4resnet18")
    assert only.model.blocks == (1, 1, 1, 1)


def test_rules_match_the_settings_of_a_preset(tmp_path: Path) -> None:
    text = "blocks: [{grid: {model.preset: [D8, CNN, c4resnet18]}}]\nexclude: [{model.architecture: e2resnet}]\n"
    text += "resources: [{when: {model.group: D8}, set: {time_minutes: 99}}]\n"
    assert [run.resources.time_minutes for run in load_runs(tmp_path, text)] == [99, 720]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("blocks: [{points: [{model.preset: D9}]}]", "model.preset: got D9; expected C1, C2, C4"),
        ("blocks: [{points: [{model.preset: [D8]}]}]", "model.preset: got [D8]; expected C1"),
        (
            "blocks: [{points: [{model.preset: CNN}]}]\nexclude: [{model.preset: CNN}]",
            "expected the settings a preset stands for",
        ),
        ("blocks: [{points: [{model: {prest: CNN}}]}]", "did you mean preset?"),
        ("blocks: [{points: [{model: {preset: CNN, depth: 18}}]}]", "architecture cnn takes no depth"),
        ("blocks: [{points: [{model: {preset: ResNet18, scale: 0.5}}]}]", "architecture resnet18 takes no scale"),
        ("blocks: [{points: [{model: {preset: D8, architecture: e2wrn}}]}]", "e2wrn needs depth, one of 10, 16"),
        ("blocks: [{points: [{model: {preset: WRN16d8d4d1, restriction: [C3]}}]}]", "C3 is no subgroup of D8"),
    ],
)
def test_an_error_about_a_network_has_its_line_and_what_is_expected(text: str, error: str, tmp_path: Path) -> None:
    (line,) = load_errors(tmp_path, text)
    assert line.startswith("sweep.yaml:1: ") or str(tmp_path) in line or "sweep.yaml:2" in line
    assert error in line


def test_the_sweep_of_all_architectures_holds_every_preset_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY10_H5", "/data/Galaxy10_DECals.h5")
    runs = load_sweep(SWEEPS / "architectures.yaml").runs
    models = {run.model for run in runs}
    assert len(models) == len(PRESETS) == 31 and len(runs) == 3 * 31
    assert all(run.train.learning_rate == 1e-3 for run in runs)


def test_the_sweep_of_the_paper_has_its_eleven_networks_with_its_flattening_head() -> None:
    runs = load_sweep(SWEEPS / "paper.yaml").runs
    assert {run.model.group for run in runs} == {None, *(f"{f}{n}" for f in "CD" for n in (1, 2, 4, 8, 16))}
    assert {(run.model.head, run.train.learning_rate, run.data.image_size) for run in runs} == {("flatten", 1e-2, 255)}
