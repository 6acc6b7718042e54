"""The grammar of a sweep: a YAML file of blocks becomes an ordered tuple of `RunConfig`.

    name: all_groups                                   # default: the name of the file
    base: {data: {image_size: 255}, train.epochs: 100} # for all points; keys nested or dotted, here and everywhere
    blocks:                                            # points in the order of the file; a block may have a base
      - grid: {model.group: [C1, C2], model.width: [fields, parameters]}         # product, the last runs fastest
      - zip: {model.group: [C4, D4], train.learning_rate: [1e-2, 1e-3]}          # paired
      - points: [{model.architecture: cnn}]                                      # explicit
    exclude: [{model.group: [C2, C4], model.width: parameters}]                  # combinations; a list: any of these
    seeds: [0, 1, 2]                                   # innermost; or how many from 0
    resources: [{when: {model.group: D4}, set: {gpus_per_node: 4}}]              # in order, the last one wins

Settings are layered: defaults < profile < the sweep's base < the block's base < the point < resource rules < --set.
Nothing stops at the first error: everything that can still be read is read, so that all errors are reported at once,
and what follows only from another error is left out.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from galaxyhpc.config import MAX_RUNS
from galaxyhpc.config.schema import DataConfig, RequestedResources, RunConfig
from galaxyhpc.config.setting_parser import (
    DEFAULTS,
    PRESET_KEY,
    SettingParser,
    Settings,
    get_all_settings,
    get_value,
    merge,
)
from galaxyhpc.config.yaml_loader import Entry, EntryReader, ErrorCollector, SourceLocation, dump_yaml, format_value

_TOP_LEVEL_KEYS = ("name", "overrides", "base", "blocks", "exclude", "seeds", "resources")
_BLOCK_KINDS = ("grid", "zip", "points")
_EXPECTED_BLOCK_KIND = "exactly one of grid, zip, points"
_RESOLVED_HEADER = "# Resolved: defaults, profile, environment and --set are filled in; loads to the same runs.\n"


class SweepError(ValueError):
    """All errors of a sweep, one line each."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep in the order of its file, seeds innermost; `resolved_yaml` loads to the same runs."""

    name: str
    runs: tuple[RunConfig, ...]
    resolved_yaml: str


@dataclass(frozen=True)
class _Point:
    """One combination as the file has it, before rules and --set."""

    settings: Settings
    location: SourceLocation


@dataclass(frozen=True)
class _Rule:
    """Settings for the points whose values are all among `match_values`; an exclude sets nothing."""

    location: SourceLocation
    label: str
    match_values: dict[str, list[Any]]
    settings: Settings = field(default_factory=dict)

    def matches(self, settings: Settings) -> bool:
        criteria = self.match_values.items()
        return bool(criteria) and all(get_value(settings, key) in values for key, values in criteria)


def load_sweep(path: Path, overrides: Sequence[str] = (), profile: Path | None = None) -> Sweep:
    """Read a sweep.

    Parameters
    ----------
    path : the YAML file
    overrides : `dotted.key=value`, the value in YAML, above everything in the file; `seeds` and `name` as well
    profile : a YAML mapping of resources, below everything in the file

    Raises
    ------
    SweepError
        With all errors at once.
    """
    return _SweepParser().parse(path, overrides, profile)


def load_data_config(source: str, overrides: Sequence[str] = ()) -> DataConfig:
    """Return the settings of a source that is in no sweep: the defaults below `overrides`, `data.key=value` each.

    Raises
    ------
    SweepError
        With all errors at once.
    """
    return _SweepParser().parse_data(source, overrides)


def load_resources(profile: Path | None) -> RequestedResources:
    """Return the resources of a profile, for jobs that are in no sweep.

    Raises
    ------
    SweepError
        With all errors at once.
    """
    return _SweepParser().parse_resources(profile)


class _SweepParser:
    """Reads one sweep; `errors` collects those of the file, the profile and --set."""

    def __init__(self) -> None:
        self.errors = ErrorCollector()
        self.reader = EntryReader(self.errors)
        self.parser = SettingParser(self.errors)
        self.override_settings: Settings = {}

    def parse(self, path: Path, overrides: Sequence[str], profile: Path | None) -> Sweep:
        override_top = self._parse_overrides(overrides)
        file = self.reader.read_file(path)
        profile_file = None if profile is None else self.reader.read_file(profile)
        profile_settings = {} if profile_file is None else self.parser.read_settings(profile_file, "", "resources.")
        top = {} if file is None else self.reader.read_mapping(file, "", _TOP_LEVEL_KEYS) | override_top
        if file is None or not isinstance(file.value, dict):
            raise SweepError(self.errors.format_lines())
        name = self._read_name(top.get("name", Entry(path.stem, file.location)))
        seeds = self._read_seeds(top["seeds"]) if "seeds" in top else [0]
        configs = self._build_configs(top, profile_settings, seeds, file.location)
        recorded = [*self._read_recorded_overrides(top), *overrides]
        if self.errors.errors:
            raise SweepError(self.errors.format_lines())
        runs = tuple(config.model_copy(update={"seed": seed}) for config in configs for seed in seeds)
        return Sweep(name, runs, _RESOLVED_HEADER + _dump_resolved(name, recorded, configs, seeds))

    def parse_data(self, source: str, overrides: Sequence[str]) -> DataConfig:
        location = SourceLocation("--set")
        top = self._parse_overrides(overrides)
        for key in (*top, *self.override_settings):
            if not key.startswith("data.") and not self.errors.errors:
                self.errors.add(location, key, "got a setting without use here; expected those of data")
        fixed = {"data.source": Entry(source, location), "model.architecture": Entry("cnn", location)}
        config = self.parser.build_run_config(merge(self.override_settings, fixed), location, seed=0)
        if self.errors.errors or config is None:
            raise SweepError(self.errors.format_lines())
        return config.data

    def parse_resources(self, profile: Path | None) -> RequestedResources:
        file = None if profile is None else self.reader.read_file(profile)
        settings = {} if file is None else self.parser.read_settings(file, "", "resources.")
        location = SourceLocation(str(profile or "resources"))
        config = self.parser.build_run_config(
            merge(settings, {"model.architecture": Entry("cnn", location)}), location, seed=0
        )
        if self.errors.errors or config is None:
            raise SweepError(self.errors.format_lines())
        return config.resources

    def _parse_overrides(self, overrides: Sequence[str]) -> dict[str, Entry]:
        """Read --set, the last one for a key counts; return what belongs at the top of the file."""
        top: dict[str, Entry] = {}
        location = SourceLocation("--set")
        for text in overrides:
            key, equals, value = text.partition("=")
            key = key.strip()
            if not equals or not key:
                self.errors.add_unexpected(Entry(text, location), "", "dotted.key=value")
                continue
            entry = self.reader.read_text(value, location, key)
            if entry is None:
                continue
            if key in ("name", "seeds"):
                top[key] = entry
            else:
                settings = self.parser.read_settings(Entry({key: entry}, location), "")
                self.override_settings = merge(self.override_settings, settings)
        return top

    def _build_configs(
        self, top: dict[str, Entry], profile_settings: Settings, seeds: list[int], file_location: SourceLocation
    ) -> list[RunConfig]:
        """Return the distinct points that are not excluded, each with the first seed."""
        base = profile_settings
        if "base" in top:
            base = merge(base, self.parser.read_settings(top["base"], "base"))
        points, is_complete = self._read_blocks(top.get("blocks"), base, len(seeds), file_location)
        exclude_items = self.reader.read_list(top.get("exclude"), "exclude", min_items=0)
        rule_items = self.reader.read_list(top.get("resources"), "resources", min_items=0)
        excludes = [_Rule(item.location, label, self._read_match_values(item, label)) for label, item in exclude_items]
        rules = [self._read_rule(item, label) for label, item in rule_items]
        selected, used = self._apply_rules(points, excludes, rules)
        for rule in (*excludes, *rules) if is_complete else ():
            if id(rule) not in used and rule.match_values:
                self.errors.add(rule.location, rule.label, "matches no point")
        if points and not selected:
            message = f"excludes every point ({len(points)}); expected to leave at least one"
            self.errors.add(top["exclude"].location, "exclude", message)
        return self._deduplicate_points(selected, seeds[0])

    def _read_blocks(
        self, entry: Entry | None, base: Settings, num_seeds: int, file_location: SourceLocation
    ) -> tuple[list[_Point], bool]:
        """Return the points of all blocks, and whether every block could be read."""
        points: list[_Point] = []
        is_complete = entry is not None
        if entry is None:
            message = f"got nothing; expected a list of blocks, each with {_EXPECTED_BLOCK_KIND}"
            self.errors.add(file_location, "blocks", message)
        for label, item in self.reader.read_list(entry, "blocks"):
            block_points = self._read_block(item, label, base)
            is_complete = is_complete and bool(block_points)
            points += block_points
            if len(points) * num_seeds > MAX_RUNS:
                self.errors.add_unexpected(item, label, f"at most {MAX_RUNS:,} runs", "more")
                return [], False
        return points, is_complete

    def _read_block(self, entry: Entry, label: str, base: Settings) -> list[_Point]:
        """Return the points of one block; none after an error in its structure."""
        parts = self.reader.read_mapping(entry, label, ("base", *_BLOCK_KINDS))
        if "base" in parts:
            base = merge(base, self.parser.read_settings(parts["base"], f"{label}.base"))
        kinds = [kind for kind in _BLOCK_KINDS if kind in parts]
        points: list[_Point] = []
        for kind in kinds:
            read = self._read_points if kind == "points" else self._combine_axes
            points = read(parts[kind], f"{label}.{kind}")
        if isinstance(entry.value, dict) and len(kinds) != 1 and (kinds or len(parts) == len(entry.value)):
            self.errors.add_unexpected(entry, label, _EXPECTED_BLOCK_KIND, " and ".join(kinds) or "none")
        return [_Point(merge(base, point.settings), point.location) for point in points] if len(kinds) == 1 else []

    def _read_points(self, entry: Entry, label: str) -> list[_Point]:
        """Return explicit points."""
        items = self.reader.read_list(entry, label)
        return [_Point(self.parser.read_settings(item, name), item.location) for name, item in items]

    def _combine_axes(self, entry: Entry, label: str) -> list[_Point]:
        """Return the product (grid) or the pairing (zip) of lists of values."""
        flattened = self.parser.flatten_settings(entry, label)
        axes = {key: self._read_axis(key, values) for key, values in flattened.items()}
        lengths = {key: len(values) for key, values in axes.items()}
        combinations: Iterable[tuple[Entry, ...]] = ()
        if not axes:
            self.errors.add_unexpected(entry, label, "at least one setting with a list of values")
        elif label.endswith("grid") and math.prod(lengths.values()) > MAX_RUNS:
            self.errors.add_unexpected(entry, label, f"at most {MAX_RUNS:,} points", f"{math.prod(lengths.values()):,}")
        elif label.endswith("grid"):
            combinations = itertools.product(*axes.values())
        elif len(set(lengths.values())) > 1:
            self.errors.add_unexpected(entry, label, "equal lengths", f"lists of lengths {format_value(lengths)}")
        else:
            combinations = zip(*axes.values(), strict=True)
        return [_Point(dict(zip(axes, c, strict=True)), max(value.location for value in c)) for c in combinations]

    def _read_axis(self, key: str, entry: Entry) -> list[Entry]:
        """Return the values of one setting."""
        if not entry.is_valid:
            return [entry]
        return [self.parser.validate(key, item) for _, item in self.reader.read_list(entry, key)]

    def _read_rule(self, entry: Entry, label: str) -> _Rule:
        """Read a resource rule."""
        parts = self.reader.read_mapping(entry, label, ("when", "set"))
        if isinstance(entry.value, dict) and len(parts) < 2:
            self.errors.add_unexpected(entry, label, "both when and set", " ".join(parts) or "neither")
        match_values = self._read_match_values(parts["when"], f"{label}.when") if "when" in parts else {}
        settings = self.parser.read_settings(parts["set"], f"{label}.set", "resources.") if "set" in parts else {}
        return _Rule(entry.location, label, match_values, settings)

    def _read_match_values(self, entry: Entry, label: str) -> dict[str, list[Any]]:
        """Read a combination of settings; a list means any of its values. It is empty after an error."""
        num_errors = len(self.errors.errors)
        settings = self.parser.flatten_settings(entry, label)
        if not settings:
            self.errors.add_unexpected(entry, label, "at least one setting")
        match_values = {}
        for key, value in settings.items():
            if key == PRESET_KEY:
                self.errors.add_unexpected(value, f"{label}.{key}", "the settings a preset stands for", "a preset")
                continue
            items = value.value if isinstance(value.value, list) else None
            is_tuple = isinstance(DEFAULTS.get(key), tuple)  # then only a list of lists means any of them
            is_any_of = items is not None and (not is_tuple or all(isinstance(item.value, list) for item in items))
            alternatives = self._read_axis(key, value) if is_any_of else [self.parser.validate(key, value)]
            match_values[key] = [alternative.to_python() for alternative in alternatives]
        return match_values if len(self.errors.errors) == num_errors else {}

    def _apply_rules(
        self, points: list[_Point], excludes: list[_Rule], rules: list[_Rule]
    ) -> tuple[list[tuple[_Point, Settings]], set[int]]:
        """Apply --set, excludes and rules; return the points left with their settings, and the ids of used rules.

        A rule that matches only before or only after --set counts as used: --set must not make a good file a bad one.
        """
        selected: list[tuple[_Point, Settings]] = []
        used_rule_ids: set[int] = set()
        for point in points:
            settings = merge(point.settings, self.override_settings)
            excludes_before = [exclude for exclude in excludes if exclude.matches(point.settings)]
            excludes_after = [exclude for exclude in excludes if exclude.matches(settings)]
            used_rule_ids.update(map(id, (*excludes_before, *excludes_after)))
            for rule in rules:
                matches = not excludes_after and rule.matches(settings)
                if matches or (not excludes_before and rule.matches(point.settings)):
                    used_rule_ids.add(id(rule))
                if matches:
                    settings = merge(settings, rule.settings)
            if not excludes_after:
                selected.append((point, merge(settings, self.override_settings)))
        return selected, used_rule_ids

    def _deduplicate_points(self, selected: list[tuple[_Point, Settings]], seed: int) -> list[RunConfig]:
        """Return each run once. Points that --set made equal are one; points that were equal before are an error."""
        first: dict[str, tuple[_Point, RunConfig]] = {}
        duplicates: dict[tuple[SourceLocation, SourceLocation], list[str]] = {}
        override_keys = [key for key in self.override_settings if key in DEFAULTS]
        for point, settings in selected:
            config = self.parser.build_run_config(settings, point.location, seed)
            if config is None:
                continue
            first_point, _ = first.setdefault(config.run_id, (point, config))
            if first_point is not point and all(
                get_value(first_point.settings, key) == get_value(point.settings, key) for key in override_keys
            ):
                duplicates.setdefault((first_point.location, point.location), []).append(config.run_id)
        for (original, location), names in duplicates.items():
            others_text = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.errors.add(location, "blocks", f"duplicate run, first at {original} ({names[0]}{others_text})")
        return [config for _, config in first.values()]

    def _read_name(self, entry: Entry) -> str:
        """Return the name, which names a directory."""
        if isinstance(entry.value, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", entry.value):
            return entry.value
        quotes = ", in quotes" if isinstance(entry.value, int | float) else ""
        expected = f"1 to 100 characters from A-Z a-z 0-9 . _ -, not starting with a dot{quotes}"
        self.errors.add_unexpected(entry, "name", expected)
        return ""

    def _read_seeds(self, entry: Entry) -> list[int]:
        """Return the seeds: a list of them, or how many from 0."""
        if type(entry.value) is int and 1 <= entry.value <= MAX_RUNS:
            return list(range(entry.value))
        if not isinstance(entry.value, list):
            self.errors.add_unexpected(entry, "seeds", f"a list, or how many: 1 to {MAX_RUNS:,}")
            return [0]
        seeds: dict[int, SourceLocation] = {}
        for label, item in self.reader.read_list(entry, "seeds"):
            if type(item.value) is not int or not 0 <= item.value < 2**31:
                self.errors.add_unexpected(item, label, "an integer from 0 to 2**31 - 1")
            elif item.value in seeds:
                self.errors.add(item.location, label, f"duplicate {item.value}, first at {seeds[item.value]}")
            else:
                seeds[item.value] = item.location
        return list(seeds) or [0]

    def _read_recorded_overrides(self, top: dict[str, Entry]) -> list[str]:
        """Return the overrides that a resolved file was made with; they are in its settings already."""
        recorded = self.reader.read_list(top.get("overrides"), "overrides", min_items=0)
        for label, item in recorded:
            if not isinstance(item.value, str):
                self.errors.add_unexpected(item, label, "text, as a record of --set")
        return [str(item.value) for _, item in recorded]


def _dump_resolved(name: str, overrides: list[str], configs: list[RunConfig], seeds: list[int]) -> str:
    """Write the sweep with nothing left to fill in: the settings all points share, then each point's own."""
    points = [get_all_settings(config) for config in configs]
    shared = {key: all(point[key] == points[0][key] for point in points) for key in DEFAULTS}
    base: dict[str, Any] = {}
    for key in filter(shared.get, DEFAULTS):
        section, _, name_in_section = key.partition(".")
        base.setdefault(section, {})[name_in_section] = points[0][key]
    own_settings = [{key: value for key, value in point.items() if not shared[key]} for point in points]
    parts = {"name": name, "overrides": overrides, "base": base, "blocks": [{"points": own_settings}], "seeds": seeds}
    return dump_yaml(parts)
