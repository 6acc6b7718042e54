"""The settings of a run by dotted key, each value with its location, in layers; and the run that they make.

What can be said about one value is checked when a file is read (`sweep_file`); here, what needs several settings
together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.config.yaml_loader import ConfigError, Entry, SourceLocation, format_value, join_key

Settings = dict[str, Entry]  # dotted key -> value; the most specific comes last

PRESET_KEY = "model.preset"  # stands for several settings
_OPTIONS = "resources.sbatch"  # a section whose names are those of sbatch
_PLACEHOLDER_MODEL = {"group": "C1"}  # stands in where a model is needed to check something else
_EXPECTED_BY_ERROR_TYPE = {  # filled in with the context of pydantic's error
    "bool_type": "true or false",
    "dict_type": "a mapping of settings",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "list_type": "a list",
    "model_type": "a mapping of settings",
    "string_pattern_mismatch": "text without spaces, quotes, # and backslashes",
    "string_type": "text",
    "string_too_short": "non-empty text",
    "too_long": "at most {max_length} items",
    "too_short": "a list with at least one item",
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


DEFAULTS = {key: default for key, default in _collect_defaults(RunConfig).items() if key != "seed"}
_SECTIONS = {key.rpartition(".")[0] for key in DEFAULTS} | {_OPTIONS}


def is_setting(key: str) -> bool:
    """Whether a dotted key is that of a setting, or of an option of sbatch."""
    return key in DEFAULTS or key.startswith(f"{_OPTIONS}.")


def get_setting_key(names: Iterable[str | int]) -> str:
    """Return the dotted key of the setting that a path below all settings leads to, or into."""
    key = ""
    for name in names:
        if not isinstance(name, str) or (key and key not in _SECTIONS):
            break
        key = join_key(key, name)
    return key


def flatten_settings(entry: Entry | None, key: str = "") -> Settings:
    """Return the settings of a mapping below `key`; a mapping that is invalid is a setting, called ? without a key."""
    if entry is None:
        return {}
    if not entry.is_valid or not isinstance(entry.value, dict) or (key and key not in _SECTIONS):
        return {key or "?": entry}
    settings: Settings = {}
    for name, child in entry.value.items():
        settings |= flatten_settings(child, join_key(key, name))
    return settings


def build_run_config(
    settings: Settings, location: SourceLocation, seed: int
) -> tuple[RunConfig | None, list[ConfigError]]:
    """Build a run; return it, and the errors about settings that do not fit together, as far as invalid ones allow.

    `location` is that of errors about what is nowhere set.
    """
    bad_sections = {key.partition(".")[0] for key, entry in settings.items() if not entry.is_all_valid}
    if not bad_sections <= RunConfig.model_fields.keys():  # nobody knows what was meant
        return None, []
    valid_settings = {key: entry for key, entry in settings.items() if key.partition(".")[0] not in bad_sections}
    values = {**_nest_settings(valid_settings, _PLACEHOLDER_MODEL if "model" in bad_sections else {}), "seed": seed}
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        return None, [
            _locate_run_error(details, valid_settings, location) for details in error.errors(include_url=False)
        ]
    return (None if bad_sections else config), []


def describe_error(error: ErrorDetails) -> str:
    """Return what pydantic found wrong with a value: `got X; expected Y`."""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = _EXPECTED_BY_ERROR_TYPE.get(error["type"], "").format_map(error.get("ctx", {})) or message
    return expected if expected.startswith("got ") else f"got {format_value(error['input'])}; expected {expected}"


def describe_unknown_setting(key: str) -> str:
    """Return the message about a setting that does not exist."""
    if key.rpartition(".")[2] in ("seed", "seeds"):
        return "unknown setting; seeds are given by `seeds` at the top of the sweep"
    if key == "resources.resources":
        return "unknown setting; a profile holds the settings of resources themselves, without this level"
    section, _, name = key.rpartition(".")
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


def _locate_run_error(error: ErrorDetails, settings: Settings, location: SourceLocation) -> ConfigError:
    """Return pydantic's error about these settings with the key and location of the last of those it mentions."""
    key = get_setting_key(error["loc"])
    if key in settings:
        return ConfigError(settings[key].location, key, describe_error(error))
    message = error["msg"].removeprefix("Value error, ")
    keys = [known for known in settings if known.startswith(f"{key}.".lstrip("."))]
    names = {known: re.escape(known.rpartition(".")[2]) for known in keys}
    mentioned_keys = [known for known, name in names.items() if re.search(rf"\b{name}\b", message)] or keys
    if not mentioned_keys:
        return ConfigError(location, key, f"got nothing; {message}")
    key = mentioned_keys[-1]
    value = get_value(settings, key)
    message = message.removeprefix(f"{key} {value} is ")
    return ConfigError(settings[key].location, key, f"got {format_value(value)}; {message}")
