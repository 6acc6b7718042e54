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

from galaxyhpc.config import MOST_RUNS
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.setting_parser import (
    DEFAULTS,
    PRESET,
    Settings,
    all_settings,
    checked,
    dotted,
    over,
    read_settings,
    run_config,
    value_of,
)
from galaxyhpc.config.yaml_loader import (
    Entry,
    Mistakes,
    Place,
    dump_yaml,
    items_of,
    members,
    read_file,
    read_yaml,
    shown,
)

_TOP = ("name", "overrides", "base", "blocks", "exclude", "seeds", "resources")
_KINDS = ("grid", "zip", "points")
_ONE_KIND = "exactly one of grid, zip, points"
_RESOLVED = "# Resolved: defaults, profile, environment and --set are filled in; loads to the same runs.\n"


class SweepError(ValueError):
    """All mistakes of a sweep, one line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep in the order of its file, seeds innermost, and `text`, which loads to the same runs."""

    name: str
    runs: tuple[RunConfig, ...]
    text: str


@dataclass(frozen=True)
class _Point:
    """One combination as the file has it, before rules and --set."""

    settings: Settings
    place: Place


@dataclass(frozen=True)
class _Rule:
    """What holds for the points whose settings are all among the wanted values; an exclude sets nothing."""

    place: Place
    label: str
    wanted: dict[str, list[Any]]
    sets: Settings = field(default_factory=dict)

    def matches(self, settings: Settings) -> bool:
        known = self.wanted.items()
        return bool(known) and all(value_of(settings, key) in wanted for key, wanted in known)


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
    mistakes = Mistakes()
    sets, top = _overrides(overrides, mistakes)
    file = read_file(path, mistakes)
    least = {} if profile is None else _profile(profile, mistakes)
    top = {} if file is None else members(file, "", _TOP, mistakes) | top
    if file is None or not isinstance(file.value, dict):
        raise SweepError(mistakes.lines())
    name = _name(top.get("name", Entry(path.stem, file.place)), mistakes)
    seeds = _seeds(top["seeds"], mistakes) if "seeds" in top else [0]
    configs = _configs(top, least, sets, seeds, file.place, mistakes)
    recorded = [*_recorded(top, mistakes), *overrides]
    if mistakes.found:
        raise SweepError(mistakes.lines())
    runs = tuple(config.model_copy(update={"seed": seed}) for config in configs for seed in seeds)
    return Sweep(name, runs, _RESOLVED + _text(name, recorded, configs, seeds))


def _overrides(overrides: Sequence[str], mistakes: Mistakes) -> tuple[Settings, dict[str, Entry]]:
    """Return the settings of --set, and what it puts at the top of the file; the last one for a key counts."""
    sets: Settings = {}
    top: dict[str, Entry] = {}
    place = Place("--set")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            mistakes.add(place, "", f"found {shown(text)}; allowed dotted.key=value")
            continue
        entry = read_yaml(value, place, mistakes, key.strip())
        if entry is None:
            continue
        if key.strip() in ("name", "seeds"):
            top[key.strip()] = entry
        else:
            sets = over(sets, read_settings(Entry({key.strip(): entry}, place), "", mistakes))
    return sets, top


def _profile(path: Path, mistakes: Mistakes) -> Settings:
    """Read the resources of one kind of cluster."""
    entry = read_file(path, mistakes)
    return {} if entry is None else read_settings(entry, "", mistakes, "resources.")


def _configs(
    top: dict[str, Entry], least: Settings, sets: Settings, seeds: list[int], start: Place, mistakes: Mistakes
) -> list[RunConfig]:
    """Return the distinct points that are not excluded, each with the first seed."""
    base = over(least, read_settings(top["base"], "base", mistakes)) if "base" in top else least
    points, whole = _blocks(top.get("blocks"), base, len(seeds), start, mistakes)
    excludes = [
        _Rule(item.place, label, _wanted(item, label, mistakes))
        for label, item in items_of(top.get("exclude"), "exclude", mistakes, least=0)
    ]
    rules = [
        _rule(item, label, mistakes) for label, item in items_of(top.get("resources"), "resources", mistakes, least=0)
    ]
    kept, used = _applied(points, excludes, rules, sets)
    for rule in (*excludes, *rules) if whole else ():
        if id(rule) not in used and rule.wanted:
            mistakes.add(rule.place, rule.label, "matches no point")
    if points and not kept:
        mistakes.add(top["exclude"].place, "exclude", f"excludes every point ({len(points)}); allowed to leave some")
    return _distinct(kept, sets, seeds[0], mistakes)


def _blocks(
    entry: Entry | None, base: Settings, seeds: int, start: Place, mistakes: Mistakes
) -> tuple[list[_Point], bool]:
    """Return the points of all blocks, and whether every block could be read."""
    points: list[_Point] = []
    whole = entry is not None
    if entry is None:
        mistakes.add(start, "blocks", f"found nothing; allowed a list of blocks, each with {_ONE_KIND}")
    for label, item in items_of(entry, "blocks", mistakes):
        found = _block(item, label, base, mistakes)
        whole = whole and bool(found)
        points += found
        if len(points) * seeds > MOST_RUNS:
            mistakes.add(item.place, label, f"found more than {MOST_RUNS:,} runs; allowed at most as many")
            return [], False
    return points, whole


def _block(entry: Entry, label: str, base: Settings, mistakes: Mistakes) -> list[_Point]:
    """Return the points of one block; none after a mistake in its structure."""
    parts = members(entry, label, ("base", *_KINDS), mistakes)
    if "base" in parts:
        base = over(base, read_settings(parts["base"], f"{label}.base", mistakes))
    kinds = [kind for kind in _KINDS if kind in parts]
    rows: list[tuple[Settings, Place]] = []
    for kind in kinds:
        rows = (_listed if kind == "points" else _combined)(parts[kind], f"{label}.{kind}", mistakes)
    if isinstance(entry.value, dict) and len(kinds) != 1 and (kinds or len(parts) == len(entry.value)):
        mistakes.add(entry.place, label, f"found {' and '.join(kinds) or 'none'}; allowed {_ONE_KIND}")
    return [_Point(over(base, row), place) for row, place in rows] if len(kinds) == 1 else []


def _listed(entry: Entry, label: str, mistakes: Mistakes) -> list[tuple[Settings, Place]]:
    """Return explicit points."""
    return [(read_settings(item, name, mistakes), item.place) for name, item in items_of(entry, label, mistakes)]


def _combined(entry: Entry, label: str, mistakes: Mistakes) -> list[tuple[Settings, Place]]:
    """Return the product (grid) or the pairing (zip) of lists of values."""
    axes = {key: _axis(key, values, mistakes) for key, values in dotted(entry, label, mistakes).items()}
    lengths = {key: len(values) for key, values in axes.items()}
    rows: Iterable[tuple[Entry, ...]] = ()
    if not axes:
        mistakes.add(entry.place, label, "found {}; allowed at least one setting with a list of values")
    elif label.endswith("grid") and math.prod(lengths.values()) > MOST_RUNS:
        mistakes.add(entry.place, label, f"found {math.prod(lengths.values()):,} points; allowed {MOST_RUNS:,}")
    elif label.endswith("grid"):
        rows = itertools.product(*axes.values())
    elif len(set(lengths.values())) > 1:
        mistakes.add(entry.place, label, f"found lists of lengths {shown(lengths)}; allowed equal lengths")
    else:
        rows = zip(*axes.values(), strict=True)
    return [(dict(zip(axes, row, strict=True)), max(value.place for value in row)) for row in rows]


def _axis(key: str, entry: Entry, mistakes: Mistakes) -> list[Entry]:
    """Return the values of one setting."""
    if not entry.sound:
        return [entry]
    return [checked(key, item, mistakes) for _, item in items_of(entry, key, mistakes)]


def _rule(entry: Entry, label: str, mistakes: Mistakes) -> _Rule:
    """Read a resource rule."""
    parts = members(entry, label, ("when", "set"), mistakes)
    if isinstance(entry.value, dict) and len(parts) < 2:
        mistakes.add(entry.place, label, f"found {' '.join(parts) or 'neither'}; allowed when and set, both")
    wanted = _wanted(parts["when"], f"{label}.when", mistakes) if "when" in parts else {}
    sets = read_settings(parts["set"], f"{label}.set", mistakes, "resources.") if "set" in parts else {}
    return _Rule(entry.place, label, wanted, sets)


def _wanted(entry: Entry, label: str, mistakes: Mistakes) -> dict[str, list[Any]]:
    """Read a combination of settings; a list means any of its values. It is empty after a mistake."""
    before = len(mistakes.found)
    found = dotted(entry, label, mistakes)
    if not found:
        mistakes.add(entry.place, label, "found {}; allowed at least one setting")
    wanted = {}
    for key, value in found.items():
        if key == PRESET:
            mistakes.add(value.place, f"{label}.{key}", "found a preset; allowed are the settings it stands for")
            continue
        any_of = isinstance(value.value, list) and not (
            isinstance(DEFAULTS.get(key), tuple) and not all(isinstance(item.value, list) for item in value.value)
        )
        alternatives = _axis(key, value, mistakes) if any_of else [checked(key, value, mistakes)]
        wanted[key] = [alternative.plain() for alternative in alternatives]
    return wanted if len(mistakes.found) == before else {}


def _applied(
    points: list[_Point], excludes: list[_Rule], rules: list[_Rule], sets: Settings
) -> tuple[list[tuple[_Point, Settings]], set[int]]:
    """Apply --set, excludes and rules; return the points left with all their settings, and the ids of what matched.

    What matches only before or only after --set counts as used: --set must not make a good file a bad one.
    """
    kept: list[tuple[_Point, Settings]] = []
    used: set[int] = set()
    for point in points:
        settings = over(point.settings, sets)
        was = [exclude for exclude in excludes if exclude.matches(point.settings)]
        now = [exclude for exclude in excludes if exclude.matches(settings)]
        used.update(map(id, (*was, *now)))
        for rule in rules:
            matches = not now and rule.matches(settings)
            if matches or (not was and rule.matches(point.settings)):
                used.add(id(rule))
            if matches:
                settings = over(settings, rule.sets)
        if not now:
            kept.append((point, over(settings, sets)))
    return kept, used


def _distinct(kept: list[tuple[_Point, Settings]], sets: Settings, seed: int, mistakes: Mistakes) -> list[RunConfig]:
    """Return each run once. Points that --set made equal are one; points that were equal before are a mistake."""
    first: dict[str, tuple[_Point, RunConfig]] = {}
    again: dict[tuple[Place, Place], list[str]] = {}
    for point, settings in kept:
        config = run_config(settings, point.place, seed, mistakes)
        if config is None:
            continue
        other, _ = first.setdefault(config.run_id, (point, config))
        if other is not point and all(
            value_of(other.settings, key) == value_of(point.settings, key) for key in sets if key in DEFAULTS
        ):
            again.setdefault((other.place, point.place), []).append(config.run_id)
    for (one, two), names in again.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        mistakes.add(two, "blocks", f"found the same run as at {one} ({names[0]}{more}); allowed once")
    return [config for _, config in first.values()]


def _text(name: str, overrides: list[str], configs: list[RunConfig], seeds: list[int]) -> str:
    """Return the sweep with nothing left to fill in: what all points share, then what each has of its own."""
    points = [all_settings(config) for config in configs]
    shared = {key for key in DEFAULTS if all(point[key] == points[0][key] for point in points)}
    base: dict[str, Any] = {}
    for key in (key for key in DEFAULTS if key in shared):
        section, _, rest = key.partition(".")
        base.setdefault(section, {})[rest] = points[0][key]
    own = [{key: value for key, value in point.items() if key not in shared} for point in points]
    parts = {"name": name, "overrides": overrides, "base": base, "blocks": [{"points": own}], "seeds": seeds}
    return dump_yaml(parts)


def _name(entry: Entry, mistakes: Mistakes) -> str:
    """Return the name, which names a directory."""
    if isinstance(entry.value, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", entry.value):
        return entry.value
    allowed = "up to 100 of A-Z a-z 0-9 . _ -, no dot at the start, digits alone in quotes"
    mistakes.add(entry.place, "name", f"found {shown(entry.plain())}; allowed {allowed}")
    return ""


def _seeds(entry: Entry, mistakes: Mistakes) -> list[int]:
    """Return the seeds: a list of them, or how many from 0."""
    if type(entry.value) is int and 1 <= entry.value <= MOST_RUNS:
        return list(range(entry.value))
    if not isinstance(entry.value, list):
        allowed = f"a list, or how many: 1 to {MOST_RUNS:,}"
        mistakes.add(entry.place, "seeds", f"found {shown(entry.plain())}; allowed {allowed}")
        return [0]
    seeds: dict[int, Place] = {}
    for label, item in items_of(entry, "seeds", mistakes):
        if type(item.value) is not int or not 0 <= item.value < 2**31:
            mistakes.add(item.place, label, f"found {shown(item.plain())}; allowed whole numbers from 0 to 2**31 - 1")
        elif item.value in seeds:
            mistakes.add(item.place, label, f"found {item.value} twice, first at {seeds[item.value]}; allowed once")
        else:
            seeds[item.value] = item.place
    return list(seeds) or [0]


def _recorded(top: dict[str, Entry], mistakes: Mistakes) -> list[str]:
    """Return the overrides that a resolved file was made with; they are in its settings already."""
    recorded = items_of(top.get("overrides"), "overrides", mistakes, least=0)
    for label, item in recorded:
        if not isinstance(item.value, str):
            mistakes.add(item.place, label, f"found {shown(item.plain())}; allowed text, as a record of --set")
    return [str(item.value) for _, item in recorded]
