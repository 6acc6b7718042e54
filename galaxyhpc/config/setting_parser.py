"""The settings of a run as a person writes them: dotted or nested keys, each value with its place.

Every value is checked by itself, against pydantic's own model of a run, the moment it is read: a mistake is told at
the line it was written on, used or not and however many points share it. Only what needs several settings together
(`run_config`) is checked point by point.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import replace
from difflib import get_close_matches
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.yaml_loader import Entry, Mistakes, Place, shown

Settings = dict[str, Entry]  # dotted key -> value; the most specific comes last

_WITH_ENVIRONMENT = ("data.source", "data.cache", "model.pretrained", "resources.setup")
_SOME_MODEL = {"group": "C1"}  # stands in where a model is needed to check something else
_ALLOWED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_pattern_mismatch": "text without spaces, quotes, # and backslashes",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "too_short": "at least one item",
    "tuple_type": "a list",
}


def _defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every setting's dotted key and default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _defaults(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


PRESET = "model.preset"  # stands for several settings
DEFAULTS = {key: default for key, default in _defaults(RunConfig).items() if key != "seed"}
_SECTIONS = {key.rpartition(".")[0] for key in DEFAULTS}


def read_settings(entry: Entry, label: str, mistakes: Mistakes, prefix: str = "") -> Settings:
    """Read a mapping of settings below `prefix`, itself called `label`, and check every value by itself."""
    found = dotted(entry, label, mistakes, prefix)
    return {key: checked(key, value, mistakes) for key, value in found.items()}


def dotted(entry: Entry, label: str, mistakes: Mistakes, prefix: str = "") -> Settings:
    """Flatten a mapping to dotted keys; unknown ones stay, unsound: nothing is to be concluded without them."""
    if not isinstance(entry.value, dict):
        if entry.sound:
            mistakes.add(entry.place, label, f"found {shown(entry.plain())}; allowed a mapping of settings")
        return {prefix + "?": replace(entry, sound=False)}
    found: Settings = {}
    for name, child in entry.value.items():
        key = prefix + name
        inside = dotted(child, key, mistakes, f"{key}.") if key in _SECTIONS else {key: child}
        for below, value in inside.items():
            if below in found:
                mistakes.add(value.place, below, f"found twice, first at {found[below].place}; allowed once")
            known = below in DEFAULTS or below == PRESET or not value.sound
            if not known:
                mistakes.add(value.place, below, unknown(below))
            found[below] = value if known else replace(value, sound=False)
    return found


def unknown(key: str) -> str:
    """Return what to say about a setting that does not exist."""
    if key.rpartition(".")[2] in ("seed", "seeds"):
        return "unknown setting; seeds are given by `seeds` at the top of the sweep"
    section, _, name = key.rpartition(".")
    while section and section not in _SECTIONS:
        section, _, name = section.rpartition(".")
    prefix = f"{section}." if section else ""
    known = [k.removeprefix(prefix).partition(".")[0] for k in (*DEFAULTS, PRESET) if k.startswith(prefix)]
    names = list(dict.fromkeys(known))
    near = get_close_matches(name, names, 1) or [k for k in DEFAULTS if k.endswith(f".{name}")][:1]
    return f"unknown setting;{f' did you mean {near[0]}?' if near else ''} known: {', '.join(names)}"


def checked(key: str, entry: Entry, mistakes: Mistakes) -> Entry:
    """Return the value with its environment variables filled in, unsound when it is none this setting may have."""
    if not entry.sound:
        return entry
    before = len(mistakes.found)
    if key == PRESET:
        if entry.plain() not in list(PRESETS):
            mistakes.add(entry.place, key, f"found {shown(entry.plain())}; allowed {', '.join(PRESETS)}")
        return replace(entry, sound=len(mistakes.found) == before)
    entry = _with_environment(key, entry, mistakes)
    _demand_printable(key, entry, mistakes)
    if len(mistakes.found) == before:
        for error in _errors(_nested({key: entry}, _SOME_MODEL)):
            path = ".".join(map(str, error["loc"]))
            if f"{path}.".startswith(f"{key}.") or f" {key} " in f" {error['msg']} ":
                mistakes.add(*_told(error, {key: entry}, entry.place))
    return replace(entry, sound=len(mistakes.found) == before)


def _with_environment(key: str, entry: Entry, mistakes: Mistakes) -> Entry:
    """Fill in `${NAME}` and `${NAME:-default}`; a variable that is set but empty counts as unset, as in a shell."""
    if isinstance(entry.value, list):
        return replace(entry, value=[_with_environment(key, item, mistakes) for item in entry.value])
    if not isinstance(entry.value, str) or "${" not in entry.value:
        return entry
    if key not in _WITH_ENVIRONMENT:
        allowed = ", ".join(_WITH_ENVIRONMENT)
        mistakes.add(entry.place, key, f"found {shown(entry.value)}; environment variables are allowed in {allowed}")
        return entry

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            name = match[1]
            mistakes.add(entry.place, key, f"found ${{{name}}}, which is not set; set it or give ${{{name}:-default}}")
        return found or ""

    text = re.sub(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}", value, entry.value)
    if "${" in text:
        allowed = "allowed ${NAME} and ${NAME:-default}, or $NAME for the shell"
        mistakes.add(entry.place, key, f"found {shown(text)}; {allowed}")
    return replace(entry, value=text)


def _demand_printable(key: str, entry: Entry, mistakes: Mistakes) -> None:
    """Refuse what no terminal, path or shell takes; lines of the shell may be several."""
    for item in entry.value if isinstance(entry.value, list) else [entry]:
        text = item.value if isinstance(item.value, str) else ""
        text = text.replace("\n", "").replace("\t", "") if key == "resources.setup" else text
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
            mistakes.add(item.place, key, f"found {shown(item.value)}; allowed text that can be printed")


def over(*layers: Settings) -> Settings:
    """Merge settings, later layers above earlier ones; what came last is last."""
    found: Settings = {}
    for layer in layers:
        for key, entry in _unfolded(layer).items():
            found.pop(key, None)
            found[key] = entry
    return found


def _unfolded(layer: Settings) -> Settings:
    """Put the settings of a preset in its place; those written beside it win."""
    if PRESET not in layer or not layer[PRESET].sound:
        return layer
    named = layer[PRESET]
    meant = {f"model.{name}": _at(value, named.place) for name, value in PRESETS[str(named.value)].items()}
    return meant | {key: entry for key, entry in layer.items() if key != PRESET}


def _at(value: Any, place: Place) -> Entry:
    return Entry([_at(item, place) for item in value] if isinstance(value, list) else value, place)


def value_of(settings: Settings, key: str) -> Any:
    """Return the plain value of a setting, its default when it is not set."""
    value = settings[key].plain() if key in settings else DEFAULTS[key]
    return list(value) if isinstance(value, tuple) else value


def all_settings(config: RunConfig) -> dict[str, Any]:
    """Return every setting of a run but its seed, by dotted key."""
    found = {}
    for key in DEFAULTS:
        value = reduce(getattr, key.split("."), config)
        found[key] = list(value) if isinstance(value, tuple) else value
    return found


def run_config(settings: Settings, place: Place, seed: int, mistakes: Mistakes) -> RunConfig | None:
    """Put a run together; what does not fit together is told, as far as unsound values allow to tell."""
    broken = {key.partition(".")[0] for key, entry in settings.items() if not entry.sound}
    if not broken <= RunConfig.model_fields.keys():  # nobody knows what was meant
        return None
    fit = {key: entry for key, entry in settings.items() if key.partition(".")[0] not in broken}
    values = {**_nested(fit, _SOME_MODEL if "model" in broken else {}), "seed": seed}
    errors = _errors(values)
    for error in errors:
        mistakes.add(*_told(error, fit, place))
    return None if broken or errors else RunConfig.model_validate(values)


def _nested(settings: Settings, model: dict[str, Any]) -> dict[str, Any]:
    """Return settings as pydantic wants them, those of the model on top of `model`."""
    found: dict[str, Any] = {"model": dict(model)}
    for key, entry in settings.items():
        *sections, name = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = entry.plain()
    return found


def _errors(values: dict[str, Any]) -> list[ErrorDetails]:
    """Return what pydantic says against a run with these values."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _told(error: ErrorDetails, settings: Settings, place: Place) -> tuple[Place, str, str]:
    """Return place, key and text of a pydantic error about these settings, or about their owner at `place`."""
    path = tuple(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for key, entry in settings.items():
        parts = tuple(key.split("."))
        if path[: len(parts)] == parts:
            return (
                _item(entry, error).place,
                key,
                f"found {shown(error['input'])}; allowed {_ALLOWED.get(error['type'], said)}",
            )
    section = "".join(f"{part}." for part in path)
    inside = [key for key in settings if key.startswith(section)]
    named = [key for key in inside if re.search(rf"\b{key.rpartition('.')[2]}\b", said)] or inside
    if not named:
        return place, section.rstrip("."), f"found nothing; {said}"
    value = value_of(settings, named[-1])
    said = said.removeprefix(f"{named[-1]} {value} is ")
    return settings[named[-1]].place, named[-1], f"found {shown(value)}; {said}"


def _item(entry: Entry, error: ErrorDetails) -> Entry:
    """Return the item of a list that an error is about, or the whole entry."""
    last = error["loc"][-1]
    return entry.value[last] if isinstance(entry.value, list) and isinstance(last, int) else entry
