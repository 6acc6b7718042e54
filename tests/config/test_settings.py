"""Settings in layers, and the runs that they make."""

from __future__ import annotations

import pytest
from helpers.settings import POINT, SettingsReader, to_python

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.settings import DEFAULTS, PRESET_KEY, build_run_config, get_setting_key, get_value, merge


@pytest.fixture
def reader() -> SettingsReader:
    return SettingsReader()


def test_nested_dotted_and_mixed_keys_are_the_same_settings(reader: SettingsReader) -> None:
    for text in ("data: {demo: {size: 40}}", "data.demo.size: 40", "data: {demo.size: 40}", "data.demo: {size: 40}"):
        assert to_python(reader.read(text)) == {"data.demo.size": 40}
    assert not reader.errors


def test_a_value_is_not_reported_again_by_the_runs_that_share_it(reader: SettingsReader) -> None:
    settings = reader.read("model.group: C4\ntrain.epochs: 0\n")
    assert reader.errors == ["x.yaml:2: train.epochs: got 0; expected a number >= 1"]
    assert [build_run_config(settings, POINT, seed) for seed in range(3)] == [(None, [])] * 3


def test_later_layers_win_and_what_was_set_last_comes_last(reader: SettingsReader) -> None:
    merged = merge(*map(reader.read, ("{train.epochs: 1, train.decay: 0.5}", "train.warmup: 0.1", "train.epochs: 2")))
    assert list(to_python(merged).items()) == [("train.decay", 0.5), ("train.warmup", 0.1), ("train.epochs", 2)]


def test_a_preset_is_replaced_by_its_settings_at_its_line_and_settings_beside_it_win(reader: SettingsReader) -> None:
    merged = merge(reader.read("model:\n  group: D4\n  preset: WRN16d8d4d1\n"))
    assert PRESET_KEY not in merged
    assert to_python(merged) == {f"model.{k}": v for k, v in PRESETS["WRN16d8d4d1"].items()} | {"model.group": "D4"}
    assert (merged["model.depth"].location.line, merged["model.group"].location.line) == (3, 2)


def test_values_are_read_with_their_defaults(reader: SettingsReader) -> None:
    settings = reader.read("train.epochs: 5")
    assert (get_value(settings, "train.epochs"), get_value(settings, "train.decay")) == (5, DEFAULTS["train.decay"])
    assert get_value(settings, "train.milestones") == [0.25, 0.5, 0.75]


def test_a_run_has_the_settings_and_the_seed(reader: SettingsReader) -> None:
    run = reader.build("model.group: C4", "train: {epochs: 7, milestones: [0.5]}")
    assert run is not None and not reader.errors
    assert (run.model.group, run.train.epochs, run.train.milestones, run.seed) == ("C4", 7, (0.5,), 3)


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (["train.epochs: 7"], "x.yaml:99: model: got nothing; architecture steerable_cnn needs a group"),
        (
            ["model:\n  group: C4\n  architecture: cnn\n"],
            "x.yaml:3: model.architecture: got cnn; architecture cnn takes no group",
        ),
        (
            ["model:\n  architecture: cnn\n", "model:\n\n  group: C4\n"],
            "x.yaml:3: model.group: got C4; architecture cnn takes no group",
        ),
        (
            ["model.group: C4\ntrain.batch_size: 4\nresources.nodes: 3\n"],
            "x.yaml:2: train.batch_size: got 4; shared by 3 processes; each needs at least 2",
        ),
        (
            ["model.group: C4\nresources:\n  nodes: 2\n  gpus_per_node: auto\n"],
            "x.yaml:4: resources.gpus_per_node: got auto; gpus_per_node auto chooses",
        ),
        (
            ["model:\n  group: D4\n  restriction:\n    - C8\n  architecture: e2wrn\n  depth: 16\n  widen: 8\n"],
            "x.yaml:3: model.restriction: got [C8]; restriction C8 is no subgroup of D4",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_reported_at_the_last_one_mentioned(
    texts: list[str], error: str, reader: SettingsReader
) -> None:
    assert reader.build(*texts) is None
    (line,) = reader.errors
    assert line.startswith(error)


def test_an_invalid_section_does_not_hide_the_errors_of_the_others(reader: SettingsReader) -> None:
    assert reader.build("model.group: E4\ndata.image_size: 64\ntrain.epochs: many\n") is None
    assert [line.partition(": got ")[0] for line in reader.errors] == [
        "x.yaml:1: model.group",
        "x.yaml:2: data.image_size",
        "x.yaml:3: train.epochs",
    ]


def test_nothing_is_concluded_about_a_run_with_an_unknown_section(reader: SettingsReader) -> None:
    assert reader.build("mode.group: C4") is None  # the architecture without its group is no second error
    assert len(reader.errors) == 1


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("train", "epochs"), "train.epochs"),
        (("train", "milestones", 1), "train.milestones"),
        (("model", "pretrained", "bool"), "model.pretrained"),  # pydantic names the member of a union
        (("data", "demo", "size"), "data.demo.size"),
        (("data", "demo", "sise"), "data.demo.sise"),
        (("resources", "sbatch", "gres", 0), "resources.sbatch.gres"),
        (("data",), "data"),
        (("mode", "group"), "mode"),
        ((), ""),
    ],
)
def test_a_path_leads_to_a_setting_or_into_it(path: tuple[str | int, ...], key: str) -> None:
    assert get_setting_key(path) == key
