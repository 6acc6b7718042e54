"""The grammar of a sweep: every value is checked by its setting's type, at its line, wherever settings stand."""

from __future__ import annotations

import pytest
from helpers.settings import SettingsReader, to_python

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.settings import get_all_settings
from galaxyhpc.config.sweep_file import SweepFile, is_any_of, validate_file
from galaxyhpc.config.yaml_loader import SourceLocation, dump_yaml, format_errors, read_yaml


@pytest.fixture
def reader() -> SettingsReader:
    return SettingsReader()


def test_every_default_is_a_valid_value_of_its_setting(reader: SettingsReader) -> None:
    run = RunConfig.model_validate({"model": {"group": "C4"}})
    settings = {key: value for key, value in get_all_settings(run).items() if key != "resources.sbatch"}
    assert set(reader.read(dump_yaml(settings))) == set(settings)
    assert not reader.errors


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("train.epoch: 1", ["x.yaml:1: train.epoch: unknown setting; did you mean epochs? known: epochs, batch_size,"]),
        ("tarin: {epochs: 1}", ["x.yaml:1: tarin: unknown setting; did you mean train? known: data, model, train,"]),
        ("epochs: 1", ["x.yaml:1: epochs: unknown setting; did you mean train.epochs? known: data, model, train,"]),
        ("data.demo.qqq: 1", ["x.yaml:1: data.demo.qqq: unknown setting; known: galaxies, size, seed"]),
        ("train.epochs.x: 1", ["x.yaml:1: train.epochs: got {x: 1}; expected an integer"]),
        ("seeds: [1]", ["x.yaml:1: seeds: unknown setting; seeds are given by `seeds` at the top of the sweep"]),
        ("a: 1\nb: 2", ["x.yaml:1: a: unknown setting;", "x.yaml:2: b: unknown setting;"]),
        ("train: 3", ["x.yaml:1: train: got 3; expected a mapping of settings"]),
        ("[train]", ["x.yaml:1: base: got [train]; expected a mapping of settings"]),
    ],
)
def test_a_key_that_is_no_setting_is_an_error_with_its_line(
    text: str, errors: list[str], reader: SettingsReader
) -> None:
    settings = reader.read(text)
    assert len(reader.errors) == len(errors)
    assert all(line.startswith(error) for line, error in zip(reader.errors, errors, strict=True)), reader.errors
    assert not any(entry.is_valid for entry in settings.values())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("train.epochs: 0", "train.epochs: got 0; expected a number >= 1"),
        ("train.epochs: 1e9999", "train.epochs: got inf; expected an integer"),
        ("train.epochs: 1.5", "train.epochs: got 1.5; expected an integer"),
        ("train.decay: 1.5", "train.decay: got 1.5; expected a number <= 1.0"),
        ("train.warmup: 1", "train.warmup: got 1; expected a number < 1.0"),
        ("train.clip_norm: 0", "train.clip_norm: got 0; expected a number > 0.0"),
        ("train.milestones: 0.5", "train.milestones: got 0.5; expected a list"),
        ("train.milestones: [0.5, [0.7]]", "train.milestones: got [0.7]; expected a number"),
        ("model.restriction: [C4, C2, C1]", "model.restriction: got [C4, C2, C1]; expected at most 2 items"),
        ("model.group: D65", "model.group: got D65; expected C1 to C64 (rotations) or D1 to D64 (rotations and"),
        ("model.preset: D65", "model.preset: got D65; expected C1, C2, C4"),
        ("resources.partition: a b", "resources.partition: got 'a b'; expected text without spaces, quotes, # and"),
        ("resources.time_minutes: often", "resources.time_minutes: got often; expected an integer"),
        ("resources.memory_gb: 0", "resources.memory_gb: got 0; expected a number >= 0.01"),
        ("evaluate.conditions: []", "evaluate.conditions: got []; expected at least one item, each once"),
        ("evaluate.attack.population: 3", "evaluate.attack.population: got 3; expected a number >= 4"),
        ("data.classes: [E]", "data.classes: got 1 classes; expected 2 to 1000"),
        ("data.source: null", "data.source: got null; expected text"),
        ('data.cache: "a\\tb"', r"data.cache: got 'a\tb'; expected printable text"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_an_error_that_says_what_is_expected(
    text: str, error: str, reader: SettingsReader
) -> None:
    (entry,) = reader.read(text).values()
    (line,) = reader.errors
    assert line.startswith(f"x.yaml:1: {error}")
    assert not entry.is_all_valid


def test_an_error_in_a_list_is_at_the_line_of_its_item(reader: SettingsReader) -> None:
    reader.read("evaluate:\n  conditions:\n    - clean\n    - klean\n")
    assert [line.partition("; ")[0] for line in reader.errors] == ["x.yaml:4: evaluate.conditions: got klean"]


def test_environment_variables_are_expanded_and_an_empty_one_counts_as_unset(
    reader: SettingsReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULL", "/data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    settings = reader.read(
        "data: {source: '${FULL}/${EMPTY:-a}.h5', cache: '${UNSET:-}'}\nresources.setup: ['cd ${FULL}', 'echo $HOME']\n"
    )
    assert to_python(settings) == {
        "data.source": "/data/a.h5",
        "data.cache": "",
        "resources.setup": ["cd /data", "echo $HOME"],
    }
    reader.read("data.source: '${EMPTY}/${UNSET}'\n")
    assert reader.errors == [
        "x.yaml:1: data.source: got ${EMPTY}, which is not set; set it or write ${EMPTY:-default}",
        "x.yaml:1: data.source: got ${UNSET}, which is not set; set it or write ${UNSET:-default}",
    ]


def test_an_expanded_variable_is_not_expanded_again(reader: SettingsReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "${HOME}")
    reader.read("data.source: '${OUTER}'")
    assert reader.errors == [
        "x.yaml:1: data.source: got '${HOME}'; expected ${NAME} and ${NAME:-default}, or $NAME for the shell"
    ]


def test_shell_commands_have_several_lines_and_no_other_control_characters(reader: SettingsReader) -> None:
    assert to_python(reader.read('resources.setup: ["a\\n\\tb"]')) == {"resources.setup": ["a\n\tb"]}
    reader.read('resources.setup: ["a\\rb"]')
    assert reader.errors == [r"x.yaml:1: resources.setup: got 'a\rb'; expected printable text"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(("train.epochs", 3, False), ("train.epochs", [3, 4], True), ("model.group", None, False)),
        *(("train.milestones", [0.5], False), ("train.milestones", [[0.5], [0.7]], True)),
    ],
)
def test_a_list_means_any_of_its_values_except_where_a_value_is_a_list(key: str, value: object, expected: bool) -> None:
    assert is_any_of(key, value) is expected


def test_a_setting_is_checked_in_every_part_of_a_sweep_at_its_line_and_marked() -> None:
    text = """\
base: {train.epochs: -1}
blocks:
- base: {train.epochs: -2}
  grid:
    train:
      epochs: [3,
        -4]
- zip: {train.epochs: [-5]}
- points:
  - {train.epochs: -6}
exclude:
- train.epochs: [1, -7]
- train.epochs: -8
resources:
- when: {train.epochs: -9}
  set:
    nodes: -10
"""
    entry, errors = read_yaml(text, SourceLocation("x.yaml", 1))
    assert entry is not None and not errors
    assert format_errors(validate_file(SweepFile, entry)) == tuple(
        f"x.yaml:{line}: {key}: got {value}; expected a number >= 1"
        for line, key, value in (
            *((1, "train.epochs", -1), (3, "train.epochs", -2), (7, "train.epochs", -4), (8, "train.epochs", -5)),
            *((10, "train.epochs", -6), (12, "train.epochs", -7), (13, "train.epochs", -8)),
            *((15, "train.epochs", -9), (17, "resources.nodes", -10)),
        )
    )
    axis = entry.find(["blocks", 0, "grid", "train", "epochs"])
    assert [item.is_valid for item in axis.items] == [True, False] and axis.is_valid and entry.is_valid


def test_what_yaml_could_not_read_is_not_reported_again() -> None:
    entry, errors = read_yaml(
        "base: !secret {}\nblocks: [{points: [{model.group: !!int x}]}]", SourceLocation("x.yaml", 1)
    )
    assert entry is not None and len(errors) == 2
    assert validate_file(SweepFile, entry) == []
