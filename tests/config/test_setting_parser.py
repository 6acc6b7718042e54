"""Settings as they are written: keys, values checked one by one, layers, and the runs that come out."""

from __future__ import annotations

from typing import Any

import pytest

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.setting_parser import (
    DEFAULTS,
    PRESET_KEY,
    SettingParser,
    Settings,
    get_all_settings,
    get_value,
    merge,
)
from galaxyhpc.config.yaml_loader import Entry, EntryReader, ErrorCollector, SourceLocation

POINT = SourceLocation("x.yaml", 99)


class Reader:
    """A parser with its errors."""

    def __init__(self) -> None:
        self.collector = ErrorCollector()
        self.parser = SettingParser(self.collector)

    @property
    def errors(self) -> list[str]:
        return list(self.collector.format_lines())

    def read(self, text: str, prefix: str = "", file: str = "x.yaml") -> Settings:
        entry = EntryReader(self.collector).read_text(text, SourceLocation(file, 1))
        assert entry is not None
        return self.parser.read_settings(entry, "base", prefix)

    def build(self, *texts: str) -> RunConfig | None:
        return self.parser.build_run_config(merge(*map(self.read, texts)), POINT, seed=3)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def to_python(settings: Settings) -> dict[str, Any]:
    return {key: entry.to_python() for key, entry in settings.items()}


def test_nested_dotted_and_mixed_keys_are_the_same_settings(reader: Reader) -> None:
    for text in ("data: {demo: {size: 40}}", "data.demo.size: 40", "data: {demo.size: 40}", "data.demo: {size: 40}"):
        assert to_python(reader.read(text)) == {"data.demo.size": 40}
    assert to_python(reader.read("{nodes: 2}", "resources.")) == {"resources.nodes": 2}
    assert not reader.errors


def test_every_default_is_a_valid_value_of_its_setting(reader: Reader) -> None:
    run = RunConfig.model_validate({"model": {"group": "C4"}})
    for key, value in get_all_settings(run).items():
        items = [Entry(item, POINT) for item in value] if isinstance(value, list) else value
        if key != "data.cache":
            assert reader.parser.validate(key, Entry(items, POINT)).is_valid, key
    assert not reader.errors


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("train.epoch: 1", ["x.yaml:1: train.epoch: unknown setting; did you mean epochs? known: epochs, batch_size,"]),
        ("tarin: {epochs: 1}", ["x.yaml:1: tarin: unknown setting; did you mean train? known: data, model, train,"]),
        ("epochs: 1", ["x.yaml:1: epochs: unknown setting; did you mean train.epochs? known: data, model, train,"]),
        ("data.demo.qqq: 1", ["x.yaml:1: data.demo.qqq: unknown setting; known: galaxies, size, seed"]),
        ("train.epochs.x: 1", ["x.yaml:1: train.epochs.x: unknown setting;"]),
        ("seeds: [1]", ["x.yaml:1: seeds: unknown setting; seeds are given by `seeds` at the top of the sweep"]),
        ("a: 1\nb: 2", ["x.yaml:1: a: unknown setting;", "x.yaml:2: b: unknown setting;"]),
        ("train: 3", ["x.yaml:1: train: got 3; expected a mapping of settings"]),
        ("[train]", ["x.yaml:1: base: got [train]; expected a mapping of settings"]),
    ],
)
def test_a_key_that_is_no_setting_is_an_error_with_its_line(text: str, errors: list[str], reader: Reader) -> None:
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
    text: str, error: str, reader: Reader
) -> None:
    (entry,) = reader.read(text).values()
    (line,) = reader.errors
    assert line.startswith(f"x.yaml:1: {error}")
    assert not entry.is_valid


def test_an_error_in_a_list_is_at_the_line_of_its_item(reader: Reader) -> None:
    reader.read("evaluate:\n  conditions:\n    - clean\n    - klean\n")
    assert [line.partition("; ")[0] for line in reader.errors] == ["x.yaml:4: evaluate.conditions: got klean"]


def test_a_value_is_not_reported_again_by_the_runs_that_share_it(reader: Reader) -> None:
    settings = reader.read("model.group: C4\ntrain.epochs: 0\n")
    assert reader.errors == ["x.yaml:2: train.epochs: got 0; expected a number >= 1"]
    assert [reader.parser.build_run_config(settings, POINT, seed) for seed in range(3)] == [None] * 3
    assert len(reader.collector.errors) == 1


def test_environment_variables_are_expanded_and_an_empty_one_counts_as_unset(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
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


def test_an_expanded_variable_is_not_expanded_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "${HOME}")
    reader.read("data.source: '${OUTER}'")
    assert reader.errors == [
        "x.yaml:1: data.source: got '${HOME}'; expected ${NAME} and ${NAME:-default}, or $NAME for the shell"
    ]


def test_shell_commands_have_several_lines_and_no_other_control_characters(reader: Reader) -> None:
    assert to_python(reader.read('resources.setup: ["a\\n\\tb"]')) == {"resources.setup": ["a\n\tb"]}
    reader.read('resources.setup: ["a\\rb"]')
    assert reader.errors == [r"x.yaml:1: resources.setup: got 'a\rb'; expected printable text"]


def test_later_layers_win_and_what_was_set_last_comes_last(reader: Reader) -> None:
    merged = merge(*map(reader.read, ("{train.epochs: 1, train.decay: 0.5}", "train.warmup: 0.1", "train.epochs: 2")))
    assert list(to_python(merged).items()) == [("train.decay", 0.5), ("train.warmup", 0.1), ("train.epochs", 2)]


def test_a_preset_is_replaced_by_its_settings_at_its_line_and_settings_beside_it_win(reader: Reader) -> None:
    merged = merge(reader.read("model:\n  group: D4\n  preset: WRN16d8d4d1\n"))
    assert PRESET_KEY not in merged
    assert to_python(merged) == {f"model.{k}": v for k, v in PRESETS["WRN16d8d4d1"].items()} | {"model.group": "D4"}
    assert (merged["model.depth"].location.line, merged["model.group"].location.line) == (3, 2)


def test_values_are_read_with_their_defaults(reader: Reader) -> None:
    settings = reader.read("train.epochs: 5")
    assert (get_value(settings, "train.epochs"), get_value(settings, "train.decay")) == (5, DEFAULTS["train.decay"])
    assert get_value(settings, "train.milestones") == [0.25, 0.5, 0.75]


def test_a_run_has_the_settings_and_the_seed(reader: Reader) -> None:
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
    texts: list[str], error: str, reader: Reader
) -> None:
    assert reader.build(*texts) is None
    (line,) = reader.errors
    assert line.startswith(error)


def test_an_invalid_section_does_not_hide_the_errors_of_the_others(reader: Reader) -> None:
    assert reader.build("model.group: E4\ndata.image_size: 64\ntrain.epochs: many\n") is None
    assert [line.partition(": got ")[0] for line in reader.errors] == [
        "x.yaml:1: model.group",
        "x.yaml:2: data.image_size",
        "x.yaml:3: train.epochs",
    ]


def test_nothing_is_concluded_about_a_run_with_an_unknown_section(reader: Reader) -> None:
    assert reader.build("mode.group: C4") is None  # the architecture without its group is no second error
    assert len(reader.errors) == 1
