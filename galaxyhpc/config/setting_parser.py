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
from galaxyhpc.config.yaml_loader import Entry, ErrorCollector, SourceLocation, format_value

Settings = dict[str, Entry]  # dotted key -> value; the most specific comes last

_ENVIRONMENT_SETTINGS = ("data.source", "data.cache", "model.pretrained", "resources.setup")
_PLACEHOLDER_MODEL = {"group": "C1"}  # stands in where a model is needed to check something else
_EXPECTED_BY_ERROR_TYPE = {
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


def _collect_defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every setting's dotted key and default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _collect_defaults(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


PRESET_KEY = "model.preset"  # stands for several settings
DEFAULTS = {key: default for key, default in _collect_defaults(RunConfig).items() if key != "seed"}
_SECTIONS = {key.rpartition(".")[0] for key in DEFAULTS}


def read_settings(entry: Entry, label: str, collector: ErrorCollector, prefix: str = "") -> Settings:
    """Read a mapping of settings below `prefix`, itself called `label`, and check every value by itself."""
    found = flatten_settings(entry, label, collector, prefix)
    return {key: validate(key, value, collector) for key, value in found.items()}


def flatten_settings(entry: Entry, label: str, collector: ErrorCollector, prefix: str = "") -> Settings:
    """Flatten a mapping to dotted keys; unknown ones stay, unsound: nothing is to be concluded without them."""
    if not isinstance(entry.value, dict):
        if entry.is_valid:
            collector.add(
                entry.location, label, f"found {format_value(entry.to_python())}; allowed a mapping of settings"
            )
        return {prefix + "?": replace(entry, is_valid=False)}
    found: Settings = {}
    for name, child in entry.value.items():
        key = prefix + name
        inside = flatten_settings(child, key, collector, f"{key}.") if key in _SECTIONS else {key: child}
        for below, value in inside.items():
            if below in found:
                collector.add(value.location, below, f"found twice, first at {found[below].location}; allowed once")
            known = below in DEFAULTS or below == PRESET_KEY or not value.is_valid
            if not known:
                collector.add(value.location, below, describe_unknown(below))
            found[below] = value if known else replace(value, is_valid=False)
    return found


def describe_unknown(key: str) -> str:
    """Return what to say about a setting that does not exist."""
    if key.rpartition(".")[2] in ("seed", "seeds"):
        return "unknown setting; seeds are given by `seeds` at the top of the sweep"
    section, _, name = key.rpartition(".")
    while section and section not in _SECTIONS:
        section, _, name = section.rpartition(".")
    prefix = f"{section}." if section else ""
    known = [k.removeprefix(prefix).partition(".")[0] for k in (*DEFAULTS, PRESET_KEY) if k.startswith(prefix)]
    names = list(dict.fromkeys(known))
    near = get_close_matches(name, names, 1) or [k for k in DEFAULTS if k.endswith(f".{name}")][:1]
    return f"unknown setting;{f' did you mean {near[0]}?' if near else ''} known: {', '.join(names)}"


def validate(key: str, entry: Entry, collector: ErrorCollector) -> Entry:
    """Return the value with its environment variables filled in, unsound when it is none this setting may have."""
    if not entry.is_valid:
        return entry
    before = len(collector.errors)
    if key == PRESET_KEY:
        if entry.to_python() not in list(PRESETS):
            collector.add(entry.location, key, f"found {format_value(entry.to_python())}; allowed {', '.join(PRESETS)}")
        return replace(entry, is_valid=len(collector.errors) == before)
    entry = _expand_environment(key, entry, collector)
    _check_printable(key, entry, collector)
    if len(collector.errors) == before:
        for error in _collect_errors(_nest_settings({key: entry}, _PLACEHOLDER_MODEL)):
            path = ".".join(map(str, error["loc"]))
            if f"{path}.".startswith(f"{key}.") or f" {key} " in f" {error['msg']} ":
                collector.add(*_format_error(error, {key: entry}, entry.location))
    return replace(entry, is_valid=len(collector.errors) == before)


def _expand_environment(key: str, entry: Entry, collector: ErrorCollector) -> Entry:
    """Fill in `${NAME}` and `${NAME:-default}`; a variable that is set but empty counts as unset, as in a shell."""
    if isinstance(entry.value, list):
        return replace(entry, value=[_expand_environment(key, item, collector) for item in entry.value])
    if not isinstance(entry.value, str) or "${" not in entry.value:
        return entry
    if key not in _ENVIRONMENT_SETTINGS:
        allowed = ", ".join(_ENVIRONMENT_SETTINGS)
        collector.add(
            entry.location, key, f"found {format_value(entry.value)}; environment variables are allowed in {allowed}"
        )
        return entry

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            name = match[1]
            collector.add(
                entry.location, key, f"found ${{{name}}}, which is not set; set it or give ${{{name}:-default}}"
            )
        return found or ""

    text = re.sub(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}", value, entry.value)
    if "${" in text:
        allowed = "allowed ${NAME} and ${NAME:-default}, or $NAME for the shell"
        collector.add(entry.location, key, f"found {format_value(text)}; {allowed}")
    return replace(entry, value=text)


def _check_printable(key: str, entry: Entry, collector: ErrorCollector) -> None:
    """Refuse what no terminal, path or shell takes; lines of the shell may be several."""
    for item in entry.value if isinstance(entry.value, list) else [entry]:
        text = item.value if isinstance(item.value, str) else ""
        text = text.replace("\n", "").replace("\t", "") if key == "resources.setup" else text
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
            collector.add(item.location, key, f"found {format_value(item.value)}; allowed text that can be printed")


def merge(*layers: Settings) -> Settings:
    """Merge settings, later layers above earlier ones; what came last is last."""
    found: Settings = {}
    for layer in layers:
        for key, entry in _expand_preset(layer).items():
            found.pop(key, None)
            found[key] = entry
    return found


def _expand_preset(layer: Settings) -> Settings:
    """Put the settings of a preset in its place; those written beside it win."""
    if PRESET_KEY not in layer or not layer[PRESET_KEY].is_valid:
        return layer
    named = layer[PRESET_KEY]
    meant = {f"model.{name}": _make_entry(value, named.location) for name, value in PRESETS[str(named.value)].items()}
    return meant | {key: entry for key, entry in layer.items() if key != PRESET_KEY}


def _make_entry(value: Any, location: SourceLocation) -> Entry:
    return Entry([_make_entry(item, location) for item in value] if isinstance(value, list) else value, location)


def get_value(settings: Settings, key: str) -> Any:
    """Return the plain value of a setting, its default when it is not set."""
    value = settings[key].to_python() if key in settings else DEFAULTS[key]
    return list(value) if isinstance(value, tuple) else value


def get_all_settings(config: RunConfig) -> dict[str, Any]:
    """Return every setting of a run but its seed, by dotted key."""
    found = {}
    for key in DEFAULTS:
        value = reduce(getattr, key.split("."), config)
        found[key] = list(value) if isinstance(value, tuple) else value
    return found


def build_run_config(
    settings: Settings, location: SourceLocation, seed: int, collector: ErrorCollector
) -> RunConfig | None:
    """Put a run together; what does not fit together is told, as far as unsound values allow to tell."""
    broken = {key.partition(".")[0] for key, entry in settings.items() if not entry.is_valid}
    if not broken <= RunConfig.model_fields.keys():  # nobody knows what was meant
        return None
    fit = {key: entry for key, entry in settings.items() if key.partition(".")[0] not in broken}
    values = {**_nest_settings(fit, _PLACEHOLDER_MODEL if "model" in broken else {}), "seed": seed}
    errors = _collect_errors(values)
    for error in errors:
        collector.add(*_format_error(error, fit, location))
    return None if broken or errors else RunConfig.model_validate(values)


def _nest_settings(settings: Settings, default_model: dict[str, Any]) -> dict[str, Any]:
    """Return settings as pydantic wants them, those of the model on top of `model`."""
    found: dict[str, Any] = {"model": dict(default_model)}
    for key, entry in settings.items():
        *sections, name = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = entry.to_python()
    return found


def _collect_errors(values: dict[str, Any]) -> list[ErrorDetails]:
    """Return what pydantic says against a run with these values."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _format_error(error: ErrorDetails, settings: Settings, location: SourceLocation) -> tuple[SourceLocation, str, str]:
    """Return place, key and text of a pydantic error about these settings, or about their owner at `place`."""
    path = tuple(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for key, entry in settings.items():
        parts = tuple(key.split("."))
        if path[: len(parts)] == parts:
            return (
                _get_item(entry, error).location,
                key,
                f"found {format_value(error['input'])}; allowed {_EXPECTED_BY_ERROR_TYPE.get(error['type'], said)}",
            )
    section = "".join(f"{part}." for part in path)
    inside = [key for key in settings if key.startswith(section)]
    named = [key for key in inside if re.search(rf"\b{key.rpartition('.')[2]}\b", said)] or inside
    if not named:
        return location, section.rstrip("."), f"found nothing; {said}"
    value = get_value(settings, named[-1])
    said = said.removeprefix(f"{named[-1]} {value} is ")
    return settings[named[-1]].location, named[-1], f"found {format_value(value)}; {said}"


def _get_item(entry: Entry, error: ErrorDetails) -> Entry:
    """Return the item of a list that an error is about, or the whole entry."""
    last = error["loc"][-1]
    return entry.value[last] if isinstance(entry.value, list) and isinstance(last, int) else entry
