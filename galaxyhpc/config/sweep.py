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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from galaxyhpc.config import MAX_RUNS
from galaxyhpc.config.schema import DataConfig, RequestedResources, RunConfig
from galaxyhpc.config.settings import (
    DEFAULTS,
    Settings,
    build_run_config,
    flatten_settings,
    get_all_settings,
    get_value,
    merge,
)
from galaxyhpc.config.sweep_file import (
    BLOCK_KINDS,
    EXPECTED_KIND,
    Block,
    SettingsFile,
    SweepFile,
    is_any_of,
    validate_file,
)
from galaxyhpc.config.yaml_loader import (
    ConfigError,
    Entry,
    SourceLocation,
    dump_yaml,
    format_errors,
    format_value,
    read_yaml,
    read_yaml_file,
)

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
        self.errors: list[ConfigError] = []
        self.override_settings: Settings = {}

    def parse(self, path: Path, overrides: Sequence[str], profile: Path | None) -> Sweep:
        override_top = self._read_overrides(overrides)
        profile_settings = self._read_profile(profile)
        file, errors = read_yaml_file(path)
        self.errors += errors
        if file is not None:
            self.errors += validate_file(SweepFile, file)
        if file is None or not file.members:
            raise SweepError(format_errors(self.errors))
        top = file.members | override_top
        seeds = self._read_seeds(top["seeds"]) if "seeds" in top else [0]
        configs = self._build_configs(top, profile_settings, seeds)
        if self.errors:
            raise SweepError(format_errors(self.errors))
        runs = tuple(config.model_copy(update={"seed": seed}) for config in configs for seed in seeds)
        name = str(top["name"].value) if "name" in top else path.stem
        recorded = [*top["overrides"].to_python(), *overrides] if "overrides" in top else list(overrides)
        return Sweep(name, runs, _RESOLVED_HEADER + _dump_resolved(name, recorded, configs, seeds))

    def parse_data(self, source: str, overrides: Sequence[str]) -> DataConfig:
        location = SourceLocation("--set")
        top = self._read_overrides(overrides)
        for key in (*top, *self.override_settings):
            if not key.startswith("data.") and not self.errors:
                self.errors.append(ConfigError(location, key, "got a setting without use here; expected those of data"))
        return self._build_without_model(merge(self.override_settings, {"data.source": Entry(source, location)})).data

    def parse_resources(self, profile: Path | None) -> RequestedResources:
        return self._build_without_model(self._read_profile(profile)).resources

    def _build_without_model(self, settings: Settings) -> RunConfig:
        location = SourceLocation("model")  # is named by no error: there is nothing that a cnn needs
        config, errors = build_run_config(settings | {"model.architecture": Entry("cnn", location)}, location, seed=0)
        self.errors += errors
        if self.errors or config is None:
            raise SweepError(format_errors(self.errors))
        return config

    def _read_overrides(self, overrides: Sequence[str]) -> dict[str, Entry]:
        """Read --set, the last one for a key counts; return what belongs at the top of the file."""
        top: dict[str, Entry] = {}
        location = SourceLocation("--set")
        for text in overrides:
            key, equals, value = text.partition("=")
            key = key.strip()
            if not equals or not key:
                self.errors.append(ConfigError.unexpected(Entry(text, location), "", "dotted.key=value"))
                continue
            entry, errors = read_yaml(value, location, key)
            self.errors += errors
            if entry is not None and key in ("name", "seeds"):
                self.errors += validate_file(SettingsFile, entry)
                top |= entry.members
            elif entry is not None:
                self.override_settings = merge(self.override_settings, self._read_settings(entry))
        return top

    def _read_profile(self, profile: Path | None) -> Settings:
        """Read a file of resources."""
        if profile is None:
            return {}
        entry, errors = read_yaml_file(profile)
        self.errors += errors
        return {} if entry is None else self._read_settings(Entry({"resources": entry}, entry.location))

    def _read_settings(self, entry: Entry) -> Settings:
        """Check and return settings that are in no sweep's file."""
        self.errors += validate_file(SettingsFile, Entry({"base": entry}, entry.location))
        return flatten_settings(entry)

    def _build_configs(self, top: dict[str, Entry], profile_settings: Settings, seeds: list[int]) -> list[RunConfig]:
        """Return the distinct points that are not excluded, each with the first seed."""
        base = merge(profile_settings, flatten_settings(top.get("base")))
        points, is_complete = self._read_blocks(top, base, len(seeds))
        excludes = [_read_exclude(label, item) for label, item in _list_items(top, "exclude")]
        rules = [_read_rule(label, item) for label, item in _list_items(top, "resources")]
        selected, used = self._apply_rules(points, excludes, rules)
        for rule in (*excludes, *rules) if is_complete else ():
            if id(rule) not in used and rule.match_values:
                self.errors.append(ConfigError(rule.location, rule.label, "matches no point"))
        if is_complete and not selected:
            message = f"excludes every point ({len(points)}); expected to leave at least one"
            self.errors.append(ConfigError(top["exclude"].location, "exclude", message))
        return self._deduplicate_points(selected, seeds[0])

    def _read_blocks(self, top: dict[str, Entry], base: Settings, num_seeds: int) -> tuple[list[_Point], bool]:
        """Return the points of all blocks, and whether every block could be read."""
        points: list[_Point] = []
        is_complete = top["blocks"].is_valid
        for label, block in _list_items(top, "blocks"):
            block_points = self._read_block(label, block, base)
            is_complete = is_complete and bool(block_points)
            points += block_points
            if len(points) * num_seeds > MAX_RUNS:
                self.errors.append(ConfigError.unexpected(block, label, f"at most {MAX_RUNS:,} runs", "more"))
                return [], False
        return points, is_complete

    def _read_block(self, label: str, block: Entry, base: Settings) -> list[_Point]:
        """Return the points of one block; none after an error in its structure."""
        readers = {"grid": self._read_grid, "zip": self._read_zip, "points": self._read_points}
        kinds = [kind for kind in BLOCK_KINDS if kind in block.members]
        has_unknown = not block.members.keys() <= Block.model_fields.keys()
        if block.is_valid and len(kinds) != 1 and (kinds or not has_unknown):
            self.errors.append(ConfigError.unexpected(block, label, EXPECTED_KIND, " and ".join(kinds) or "none"))
        if len(kinds) != 1:
            return []
        base = merge(base, flatten_settings(block.members.get("base")))
        points = readers[kinds[0]](f"{label}.{kinds[0]}", block.members[kinds[0]])
        return [_Point(merge(base, point.settings), point.location) for point in points]

    def _read_grid(self, label: str, entry: Entry) -> list[_Point]:
        """Return the product of lists of values."""
        axes = _read_axes(entry)
        num_points = math.prod(map(len, axes.values()))
        if num_points > MAX_RUNS:
            self.errors.append(ConfigError.unexpected(entry, label, f"at most {MAX_RUNS:,} points", f"{num_points:,}"))
            return []
        return _combine(axes, itertools.product(*axes.values()))

    def _read_zip(self, label: str, entry: Entry) -> list[_Point]:
        """Return the pairing of lists of values."""
        axes = _read_axes(entry)
        lengths = {key: len(values) for key, values in axes.items()}
        if len(set(lengths.values())) > 1:
            got = f"lists of lengths {format_value(lengths)}"
            self.errors.append(ConfigError.unexpected(entry, label, "equal lengths", got))
            return []
        return _combine(axes, zip(*axes.values(), strict=True))

    def _read_points(self, label: str, entry: Entry) -> list[_Point]:
        """Return explicit points."""
        return [_Point(flatten_settings(item), item.location) for item in entry.items]

    def _read_seeds(self, entry: Entry) -> list[int]:
        """Return the seeds: a list of them, or how many from 0."""
        if isinstance(entry.value, int) and entry.is_valid:
            return list(range(entry.value))
        seeds: dict[int, SourceLocation] = {}
        for index, item in enumerate(entry.items):
            if item.is_valid and isinstance(item.value, int):
                first = seeds.setdefault(item.value, item.location)
                if first is not item.location:
                    message = f"duplicate {item.value}, first at {first}"
                    self.errors.append(ConfigError(item.location, f"seeds[{index}]", message))
        return list(seeds) or [0]

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
            config, errors = build_run_config(settings, point.location, seed)
            self.errors += errors
            if config is None:
                continue
            first_point, _ = first.setdefault(config.run_id, (point, config))
            if first_point is not point and all(
                get_value(first_point.settings, key) == get_value(point.settings, key) for key in override_keys
            ):
                duplicates.setdefault((first_point.location, point.location), []).append(config.run_id)
        for (original, location), names in duplicates.items():
            others_text = f" and {len(names) - 1} more" if len(names) > 1 else ""
            message = f"duplicate run, first at {original} ({names[0]}{others_text})"
            self.errors.append(ConfigError(location, "blocks", message))
        return [config for _, config in first.values()]


def _list_items(top: dict[str, Entry], key: str) -> list[tuple[str, Entry]]:
    """Return the items of one of the file's lists, which may be absent, each with its label."""
    return [(f"{key}[{index}]", item) for index, item in enumerate(top[key].items)] if key in top else []


def _read_axes(entry: Entry) -> dict[str, list[Entry]]:
    """Return the values of each setting; nothing where a list is invalid."""
    axes = {key: values.items for key, values in flatten_settings(entry).items()}
    return axes if all(axes.values()) else {}


def _combine(axes: dict[str, list[Entry]], combinations: Iterable[tuple[Entry, ...]]) -> list[_Point]:
    """Return points at the last of their lines; none where there are no axes."""
    return [
        _Point(dict(zip(axes, values, strict=True)), max(value.location for value in values))
        for values in (combinations if axes else ())
    ]


def _read_exclude(label: str, entry: Entry) -> _Rule:
    return _Rule(entry.location, label, _read_match_values(entry))


def _read_rule(label: str, entry: Entry) -> _Rule:
    settings = flatten_settings(entry.members.get("set"), "resources")
    return _Rule(entry.location, label, _read_match_values(entry.members.get("when")), settings)


def _read_match_values(entry: Entry | None) -> dict[str, list[Any]]:
    """Read a combination of settings; a list means any of its values. It is empty after an error."""
    settings = flatten_settings(entry)
    if not all(value.is_all_valid for value in settings.values()):
        return {}
    values = {key: value.to_python() for key, value in settings.items()}
    return {key: value if is_any_of(key, value) else [value] for key, value in values.items()}


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
