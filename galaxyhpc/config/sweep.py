"""Which runs: a YAML file of blocks becomes an ordered tuple of `RunConfig`.

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
The decision that is not obvious: nothing stops at the first mistake. Whatever can still be read is read, so that one
look shows them all, and what follows only from another mistake is kept quiet.
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
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.setting_parser import (
    DEFAULTS,
    PRESET_KEY,
    Settings,
    build_run_config,
    flatten_settings,
    get_all_settings,
    get_value,
    merge,
    read_settings,
    validate,
)
from galaxyhpc.config.yaml_loader import (
    Entry,
    ErrorCollector,
    SourceLocation,
    dump_yaml,
    format_value,
    read_list,
    read_mapping,
    read_yaml,
    read_yaml_file,
)

_TOP_LEVEL_KEYS = ("name", "overrides", "base", "blocks", "exclude", "seeds", "resources")
_BLOCK_KINDS = ("grid", "zip", "points")
_EXPECTED_BLOCK_KIND = "exactly one of grid, zip, points"
_RESOLVED_HEADER = "# Resolved: defaults, profile, environment and --set are filled in; loads to the same runs.\n"


class SweepError(ValueError):
    """All mistakes of a sweep, one line each."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep in the order of its file, seeds innermost, and `text`, which loads to the same runs."""

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
    """What holds for the points whose settings are all among the wanted values; an exclude sets nothing."""

    location: SourceLocation
    label: str
    match_values: dict[str, list[Any]]
    settings: Settings = field(default_factory=dict)

    def matches(self, settings: Settings) -> bool:
        known = self.match_values.items()
        return bool(known) and all(get_value(settings, key) in wanted for key, wanted in known)


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
        With all mistakes at once.
    """
    mistakes = ErrorCollector()
    sets, top = _parse_overrides(overrides, mistakes)
    file = read_yaml_file(path, mistakes)
    least = {} if profile is None else _read_profile(profile, mistakes)
    top = {} if file is None else read_mapping(file, "", _TOP_LEVEL_KEYS, mistakes) | top
    if file is None or not isinstance(file.value, dict):
        raise SweepError(mistakes.format_lines())
    name = _read_name(top.get("name", Entry(path.stem, file.location)), mistakes)
    seeds = _read_seeds(top["seeds"], mistakes) if "seeds" in top else [0]
    configs = _build_configs(top, least, sets, seeds, file.location, mistakes)
    recorded = [*_read_recorded_overrides(top, mistakes), *overrides]
    if mistakes.errors:
        raise SweepError(mistakes.format_lines())
    runs = tuple(config.model_copy(update={"seed": seed}) for config in configs for seed in seeds)
    return Sweep(name, runs, _RESOLVED_HEADER + _dump_resolved(name, recorded, configs, seeds))


def _parse_overrides(overrides: Sequence[str], collector: ErrorCollector) -> tuple[Settings, dict[str, Entry]]:
    """Return the settings of --set, and what it puts at the top of the file; the last one for a key counts."""
    sets: Settings = {}
    top: dict[str, Entry] = {}
    place = SourceLocation("--set")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            collector.add(place, "", f"found {format_value(text)}; allowed dotted.key=value")
            continue
        entry = read_yaml(value, place, collector, key.strip())
        if entry is None:
            continue
        if key.strip() in ("name", "seeds"):
            top[key.strip()] = entry
        else:
            sets = merge(sets, read_settings(Entry({key.strip(): entry}, place), "", collector))
    return sets, top


def _read_profile(path: Path, collector: ErrorCollector) -> Settings:
    """Read the resources of one kind of cluster."""
    entry = read_yaml_file(path, collector)
    return {} if entry is None else read_settings(entry, "", collector, "resources.")


def _build_configs(
    top: dict[str, Entry],
    profile_settings: Settings,
    override_settings: Settings,
    seeds: list[int],
    file_location: SourceLocation,
    collector: ErrorCollector,
) -> list[RunConfig]:
    """Return the distinct points that are not excluded, each with the first seed."""
    base = merge(profile_settings, read_settings(top["base"], "base", collector)) if "base" in top else profile_settings
    points, whole = _read_blocks(top.get("blocks"), base, len(seeds), file_location, collector)
    excludes = [
        _Rule(item.location, label, _read_match_values(item, label, collector))
        for label, item in read_list(top.get("exclude"), "exclude", collector, min_items=0)
    ]
    rules = [
        _read_rule(item, label, collector)
        for label, item in read_list(top.get("resources"), "resources", collector, min_items=0)
    ]
    kept, used = _apply_rules(points, excludes, rules, override_settings)
    for rule in (*excludes, *rules) if whole else ():
        if id(rule) not in used and rule.match_values:
            collector.add(rule.location, rule.label, "matches no point")
    if points and not kept:
        collector.add(
            top["exclude"].location, "exclude", f"excludes every point ({len(points)}); allowed to leave some"
        )
    return _deduplicate_points(kept, override_settings, seeds[0], collector)


def _read_blocks(
    entry: Entry | None, base: Settings, num_seeds: int, file_location: SourceLocation, collector: ErrorCollector
) -> tuple[list[_Point], bool]:
    """Return the points of all blocks, and whether every block could be read."""
    points: list[_Point] = []
    whole = entry is not None
    if entry is None:
        collector.add(
            file_location, "blocks", f"found nothing; allowed a list of blocks, each with {_EXPECTED_BLOCK_KIND}"
        )
    for label, item in read_list(entry, "blocks", collector):
        found = _read_block(item, label, base, collector)
        whole = whole and bool(found)
        points += found
        if len(points) * num_seeds > MAX_RUNS:
            collector.add(item.location, label, f"found more than {MAX_RUNS:,} runs; allowed at most as many")
            return [], False
    return points, whole


def _read_block(entry: Entry, label: str, base: Settings, collector: ErrorCollector) -> list[_Point]:
    """Return the points of one block; none after a mistake in its structure."""
    parts = read_mapping(entry, label, ("base", *_BLOCK_KINDS), collector)
    if "base" in parts:
        base = merge(base, read_settings(parts["base"], f"{label}.base", collector))
    kinds = [kind for kind in _BLOCK_KINDS if kind in parts]
    rows: list[tuple[Settings, SourceLocation]] = []
    for kind in kinds:
        rows = (_read_points if kind == "points" else _combine_axes)(parts[kind], f"{label}.{kind}", collector)
    if isinstance(entry.value, dict) and len(kinds) != 1 and (kinds or len(parts) == len(entry.value)):
        collector.add(entry.location, label, f"found {' and '.join(kinds) or 'none'}; allowed {_EXPECTED_BLOCK_KIND}")
    return [_Point(merge(base, row), place) for row, place in rows] if len(kinds) == 1 else []


def _read_points(entry: Entry, label: str, collector: ErrorCollector) -> list[tuple[Settings, SourceLocation]]:
    """Return explicit points."""
    return [(read_settings(item, name, collector), item.location) for name, item in read_list(entry, label, collector)]


def _combine_axes(entry: Entry, label: str, collector: ErrorCollector) -> list[tuple[Settings, SourceLocation]]:
    """Return the product (grid) or the pairing (zip) of lists of values."""
    axes = {
        key: _read_axis(key, values, collector) for key, values in flatten_settings(entry, label, collector).items()
    }
    lengths = {key: len(values) for key, values in axes.items()}
    rows: Iterable[tuple[Entry, ...]] = ()
    if not axes:
        collector.add(entry.location, label, "found {}; allowed at least one setting with a list of values")
    elif label.endswith("grid") and math.prod(lengths.values()) > MAX_RUNS:
        collector.add(entry.location, label, f"found {math.prod(lengths.values()):,} points; allowed {MAX_RUNS:,}")
    elif label.endswith("grid"):
        rows = itertools.product(*axes.values())
    elif len(set(lengths.values())) > 1:
        collector.add(entry.location, label, f"found lists of lengths {format_value(lengths)}; allowed equal lengths")
    else:
        rows = zip(*axes.values(), strict=True)
    return [(dict(zip(axes, row, strict=True)), max(value.location for value in row)) for row in rows]


def _read_axis(key: str, entry: Entry, collector: ErrorCollector) -> list[Entry]:
    """Return the values of one setting."""
    if not entry.is_valid:
        return [entry]
    return [validate(key, item, collector) for _, item in read_list(entry, key, collector)]


def _read_rule(entry: Entry, label: str, collector: ErrorCollector) -> _Rule:
    """Read a resource rule."""
    parts = read_mapping(entry, label, ("when", "set"), collector)
    if isinstance(entry.value, dict) and len(parts) < 2:
        collector.add(entry.location, label, f"found {' '.join(parts) or 'neither'}; allowed when and set, both")
    wanted = _read_match_values(parts["when"], f"{label}.when", collector) if "when" in parts else {}
    sets = read_settings(parts["set"], f"{label}.set", collector, "resources.") if "set" in parts else {}
    return _Rule(entry.location, label, wanted, sets)


def _read_match_values(entry: Entry, label: str, collector: ErrorCollector) -> dict[str, list[Any]]:
    """Read a combination of settings; a list means any of its values. It is empty after a mistake."""
    before = len(collector.errors)
    found = flatten_settings(entry, label, collector)
    if not found:
        collector.add(entry.location, label, "found {}; allowed at least one setting")
    wanted = {}
    for key, value in found.items():
        if key == PRESET_KEY:
            collector.add(value.location, f"{label}.{key}", "found a preset; allowed are the settings it stands for")
            continue
        any_of = isinstance(value.value, list) and not (
            isinstance(DEFAULTS.get(key), tuple) and not all(isinstance(item.value, list) for item in value.value)
        )
        alternatives = _read_axis(key, value, collector) if any_of else [validate(key, value, collector)]
        wanted[key] = [alternative.to_python() for alternative in alternatives]
    return wanted if len(collector.errors) == before else {}


def _apply_rules(
    points: list[_Point], excludes: list[_Rule], rules: list[_Rule], override_settings: Settings
) -> tuple[list[tuple[_Point, Settings]], set[int]]:
    """Apply --set, excludes and rules; return the points left with all their settings, and the ids of what matched.

    What matches only before or only after --set counts as used: --set must not make a good file a bad one.
    """
    kept: list[tuple[_Point, Settings]] = []
    used: set[int] = set()
    for point in points:
        settings = merge(point.settings, override_settings)
        was = [exclude for exclude in excludes if exclude.matches(point.settings)]
        now = [exclude for exclude in excludes if exclude.matches(settings)]
        used.update(map(id, (*was, *now)))
        for rule in rules:
            matches = not now and rule.matches(settings)
            if matches or (not was and rule.matches(point.settings)):
                used.add(id(rule))
            if matches:
                settings = merge(settings, rule.settings)
        if not now:
            kept.append((point, merge(settings, override_settings)))
    return kept, used


def _deduplicate_points(
    selected: list[tuple[_Point, Settings]], override_settings: Settings, seed: int, collector: ErrorCollector
) -> list[RunConfig]:
    """Return each run once. Points that --set made equal are one; points that were equal before are a mistake."""
    first: dict[str, tuple[_Point, RunConfig]] = {}
    again: dict[tuple[SourceLocation, SourceLocation], list[str]] = {}
    for point, settings in selected:
        config = build_run_config(settings, point.location, seed, collector)
        if config is None:
            continue
        other, _ = first.setdefault(config.run_id, (point, config))
        if other is not point and all(
            get_value(other.settings, key) == get_value(point.settings, key)
            for key in override_settings
            if key in DEFAULTS
        ):
            again.setdefault((other.location, point.location), []).append(config.run_id)
    for (one, two), names in again.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        collector.add(two, "blocks", f"found the same run as at {one} ({names[0]}{more}); allowed once")
    return [config for _, config in first.values()]


def _dump_resolved(name: str, overrides: list[str], configs: list[RunConfig], seeds: list[int]) -> str:
    """Return the sweep with nothing left to fill in: what all points share, then what each has of its own."""
    points = [get_all_settings(config) for config in configs]
    shared = {key for key in DEFAULTS if all(point[key] == points[0][key] for point in points)}
    base: dict[str, Any] = {}
    for key in (key for key in DEFAULTS if key in shared):
        section, _, rest = key.partition(".")
        base.setdefault(section, {})[rest] = points[0][key]
    own = [{key: value for key, value in point.items() if key not in shared} for point in points]
    parts = {"name": name, "overrides": overrides, "base": base, "blocks": [{"points": own}], "seeds": seeds}
    return dump_yaml(parts)


def _read_name(entry: Entry, collector: ErrorCollector) -> str:
    """Return the name, which names a directory."""
    if isinstance(entry.value, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", entry.value):
        return entry.value
    allowed = "up to 100 of A-Z a-z 0-9 . _ -, no dot at the start, digits alone in quotes"
    collector.add(entry.location, "name", f"found {format_value(entry.to_python())}; allowed {allowed}")
    return ""


def _read_seeds(entry: Entry, collector: ErrorCollector) -> list[int]:
    """Return the seeds: a list of them, or how many from 0."""
    if type(entry.value) is int and 1 <= entry.value <= MAX_RUNS:
        return list(range(entry.value))
    if not isinstance(entry.value, list):
        allowed = f"a list, or how many: 1 to {MAX_RUNS:,}"
        collector.add(entry.location, "seeds", f"found {format_value(entry.to_python())}; allowed {allowed}")
        return [0]
    seeds: dict[int, SourceLocation] = {}
    for label, item in read_list(entry, "seeds", collector):
        if type(item.value) is not int or not 0 <= item.value < 2**31:
            collector.add(
                item.location,
                label,
                f"found {format_value(item.to_python())}; allowed whole numbers from 0 to 2**31 - 1",
            )
        elif item.value in seeds:
            collector.add(item.location, label, f"found {item.value} twice, first at {seeds[item.value]}; allowed once")
        else:
            seeds[item.value] = item.location
    return list(seeds) or [0]


def _read_recorded_overrides(top: dict[str, Entry], collector: ErrorCollector) -> list[str]:
    """Return the overrides that a resolved file was made with; they are in its settings already."""
    recorded = read_list(top.get("overrides"), "overrides", collector, min_items=0)
    for label, item in recorded:
        if not isinstance(item.value, str):
            collector.add(
                item.location, label, f"found {format_value(item.to_python())}; allowed text, as a record of --set"
            )
    return [str(item.value) for _, item in recorded]
