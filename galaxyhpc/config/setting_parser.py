"""The settings of a run as a person writes them: dotted or nested keys, each value with its location.

Every value is checked by itself, against pydantic's own model of a run, the moment it is read: an error is reported at
the line it was written on, used or not and however many points share it. Only what needs several settings together
(`SettingParser.build_run_config`) is checked point by point.
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

_ENVIRONMENT_SETTINGS = ("data.source", "data.images", "data.cache", "model.pretrained", "resources.setup")
_PLACEHOLDER_MODEL = {"group": "C1"}  # stands in where a model is needed to check something else
_EXPECTED_BY_ERROR_TYPE = {  # filled in with the context of pydantic's error
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "string_pattern_mismatch": "text without spaces, quotes, # and backslashes",
    "string_type": "text",
    "string_too_short": "non-empty text",
    "too_long": "at most {max_length} items",
    "too_short": "at least one item",
    "tuple_type": "a list",
}


def _collect_defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every setting's dotted key and default."""
    defaults: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = _collect_defaults(field.annotation, f"{prefix}{name}.")
            defaults |= inner or {prefix + name: field.default}  # options of sbatch have no fields
        else:
            defaults[prefix + name] = field.default
    return defaults


PRESET_KEY = "model.preset"  # stands for several settings
DEFAULTS = {key: default for key, default in _collect_defaults(RunConfig).items() if key != "seed"}
_OPTIONS = "resources.sbatch"  # a section whose names are those of sbatch
_SECTIONS = {key.rpartition(".")[0] for key in DEFAULTS} | {_OPTIONS}


class SettingParser:
    """Reads settings from entries and builds runs from settings; `errors` receives every error."""

    def __init__(self, errors: ErrorCollector) -> None:
        self.errors = errors

    def read_settings(self, entry: Entry, label: str, prefix: str = "") -> Settings:
        """Read a mapping of settings below `prefix`, itself called `label`, and check every value by itself."""
        return {key: self.validate(key, value) for key, value in self.flatten_settings(entry, label, prefix).items()}

    def flatten_settings(self, entry: Entry, label: str, prefix: str = "") -> Settings:
        """Flatten a mapping to dotted keys; unknown ones stay, invalid: nothing is to be concluded without them."""
        if not isinstance(entry.value, dict):
            if entry.is_valid:
                self.errors.add_unexpected(entry, label, "a mapping of settings")
            return {prefix + "?": replace(entry, is_valid=False)}
        settings: Settings = {}
        for name, child in entry.value.items():
            section = prefix + name
            inner = self.flatten_settings(child, section, f"{section}.") if section in _SECTIONS else {section: child}
            for key, value in inner.items():
                if key in settings:
                    self.errors.add(value.location, key, f"duplicate key, first at {settings[key].location}")
                is_known = key in (*DEFAULTS, PRESET_KEY) or key.rpartition(".")[0] == _OPTIONS or not value.is_valid
                if not is_known:
                    self.errors.add(value.location, key, _describe_unknown(key))
                settings[key] = value if is_known else replace(value, is_valid=False)
        return settings

    def validate(self, key: str, entry: Entry) -> Entry:
        """Return the value with its environment variables filled in, marked invalid if this setting cannot have it."""
        if not entry.is_valid:
            return entry
        num_errors = len(self.errors.errors)
        if key == PRESET_KEY:
            if entry.to_python() not in list(PRESETS):
                self.errors.add_unexpected(entry, key, ", ".join(PRESETS))
            return replace(entry, is_valid=len(self.errors.errors) == num_errors)
        entry = self._expand_environment(key, entry)
        self._check_printable(key, entry)
        if len(self.errors.errors) == num_errors:
            for error in _collect_errors(_nest_settings({key: entry}, _PLACEHOLDER_MODEL)):
                path = ".".join(map(str, error["loc"]))
                is_named = key != "data.image_size" and f" {key} " in f" {error['msg']} "  # sizes depend on the network
                if f"{path}.".startswith(f"{key}.") or is_named:
                    self.errors.add(*_format_error(error, {key: entry}, entry.location))
        return replace(entry, is_valid=len(self.errors.errors) == num_errors)

    def _expand_environment(self, key: str, entry: Entry) -> Entry:
        """Fill in `${NAME}` and `${NAME:-default}`; a variable that is set but empty counts as unset, as in a shell."""
        if isinstance(entry.value, list):
            return replace(entry, value=[self._expand_environment(key, item) for item in entry.value])
        if not isinstance(entry.value, str) or "${" not in entry.value:
            return entry
        if key not in _ENVIRONMENT_SETTINGS:
            expected = f"environment variables only in {', '.join(_ENVIRONMENT_SETTINGS)}"
            self.errors.add_unexpected(entry, key, expected)
            return entry

        def expand(match: re.Match[str]) -> str:
            name, default = match.groups()
            text = os.environ.get(name) or default
            if text is None:
                message = f"got ${{{name}}}, which is not set; set it or write ${{{name}:-default}}"
                self.errors.add(entry.location, key, message)
            return text or ""

        expanded = replace(entry, value=re.sub(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}", expand, entry.value))
        if "${" in str(expanded.value):
            self.errors.add_unexpected(expanded, key, "${NAME} and ${NAME:-default}, or $NAME for the shell")
        return expanded

    def _check_printable(self, key: str, entry: Entry) -> None:
        """Refuse text that no terminal, path or shell takes; shell commands may have several lines."""
        for item in entry.value if isinstance(entry.value, list) else [entry]:
            text = item.value if isinstance(item.value, str) else ""
            text = text.replace("\n", "").replace("\t", "") if key == "resources.setup" else text
            if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
                self.errors.add_unexpected(item, key, "printable text")

    def build_run_config(self, settings: Settings, location: SourceLocation, seed: int) -> RunConfig | None:
        """Build a run; settings that do not fit together are reported, as far as invalid values allow."""
        bad_sections = {key.partition(".")[0] for key, entry in settings.items() if not entry.is_valid}
        if not bad_sections <= RunConfig.model_fields.keys():  # nobody knows what was meant
            return None
        valid_settings = {key: entry for key, entry in settings.items() if key.partition(".")[0] not in bad_sections}
        values = {**_nest_settings(valid_settings, _PLACEHOLDER_MODEL if "model" in bad_sections else {}), "seed": seed}
        errors = _collect_errors(values)
        for error in errors:
            self.errors.add(*_format_error(error, valid_settings, location))
        return None if bad_sections or errors else RunConfig.model_validate(values)


def _describe_unknown(key: str) -> str:
    """Return the message about a setting that does not exist."""
    if key.rpartition(".")[2] in ("seed", "seeds"):
        return "unknown setting; seeds are given by `seeds` at the top of the sweep"
    if key.startswith(f"{_OPTIONS}."):
        return "unknown setting; expected the name of one option of sbatch after sbatch."
    if key == "resources.resources":
        return "unknown setting; a profile holds the settings of resources themselves, without this level"
    section, _, name = key.rpartition(".")
    while section and section not in _SECTIONS:
        section, _, name = section.rpartition(".")
    prefix = f"{section}." if section else ""
    known = [k.removeprefix(prefix).partition(".")[0] for k in (*DEFAULTS, PRESET_KEY) if k.startswith(prefix)]
    names = list(dict.fromkeys(known))
    similar = get_close_matches(name, names, 1) or [k for k in DEFAULTS if k.endswith(f".{name}")][:1]
    return f"unknown setting;{f' did you mean {similar[0]}?' if similar else ''} known: {', '.join(names)}"


def merge(*layers: Settings) -> Settings:
    """Merge settings, later layers above earlier ones; keys set last come last."""
    merged: Settings = {}
    for layer in layers:
        for key, entry in _expand_preset(layer).items():
            merged.pop(key, None)
            merged[key] = entry
    return merged


def _expand_preset(layer: Settings) -> Settings:
    """Replace a preset by its settings; explicit settings win."""
    if PRESET_KEY not in layer or not layer[PRESET_KEY].is_valid:
        return layer
    preset = layer[PRESET_KEY]
    expanded = {
        f"model.{name}": _make_entry(value, preset.location) for name, value in PRESETS[str(preset.value)].items()
    }
    return expanded | {key: entry for key, entry in layer.items() if key != PRESET_KEY}


def _make_entry(value: Any, location: SourceLocation) -> Entry:
    return Entry([_make_entry(item, location) for item in value] if isinstance(value, list) else value, location)


def get_value(settings: Settings, key: str) -> Any:
    """Return the plain value of a setting, its default where it is not set."""
    return _to_plain(settings[key].to_python() if key in settings else DEFAULTS.get(key))


def get_all_settings(config: RunConfig) -> dict[str, Any]:
    """Return every setting of a run but its seed, by dotted key."""
    return {key: _to_plain(reduce(getattr, key.split("."), config)) for key in DEFAULTS}


def _to_plain(value: Any) -> Any:
    """Return a setting's value as YAML writes it."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return list(value) if isinstance(value, tuple) else value


def _nest_settings(settings: Settings, default_model: dict[str, Any]) -> dict[str, Any]:
    """Return settings as pydantic takes them, those of the model on top of `default_model`."""
    values: dict[str, Any] = {"model": dict(default_model)}
    for key, entry in settings.items():
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = entry.to_python()
    return values


def _collect_errors(values: dict[str, Any]) -> list[ErrorDetails]:
    """Return pydantic's errors about a run with these values."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _format_error(error: ErrorDetails, settings: Settings, location: SourceLocation) -> tuple[SourceLocation, str, str]:
    """Return location, key and message of a pydantic error about these settings, or about the point at `location`."""
    path = tuple(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for key, entry in settings.items():
        parts = tuple(key.split("."))
        if path[: len(parts)] == parts:
            expected = _EXPECTED_BY_ERROR_TYPE.get(error["type"], "").format_map(error.get("ctx", {})) or message
            location = _get_item(entry, error).location
            if expected.startswith("got "):  # says itself what is wrong, and what is expected
                return location, key, expected
            return location, key, f"got {format_value(error['input'])}; expected {expected}"
    section = "".join(f"{part}." for part in path)
    keys = [key for key in settings if key.startswith(section)]
    mentioned_keys = [key for key in keys if re.search(rf"\b{key.rpartition('.')[2]}\b", message)] or keys
    if not mentioned_keys:
        return location, section.rstrip("."), f"got nothing; {message}"
    key = mentioned_keys[-1]
    value = get_value(settings, key)
    return settings[key].location, key, f"got {format_value(value)}; {message.removeprefix(f'{key} {value} is ')}"


def _get_item(entry: Entry, error: ErrorDetails) -> Entry:
    """Return the item of a list that an error is about, or the whole entry."""
    last = error["loc"][-1]
    return entry.value[last] if isinstance(entry.value, list) and isinstance(last, int) else entry
