"""The grammar of what a person writes, as pydantic models: a sweep's file, and settings wherever they stand in it.

`validate_file` fills in environment variables, validates a file once, and gives each of pydantic's errors the line of
the value it is about. What only several settings together can show is checked for each run (`settings`).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails

from galaxyhpc.config import MAX_RUNS
from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import ModelConfig, RequestedResources, RunConfig
from galaxyhpc.config.settings import (
    DEFAULTS,
    PRESET_KEY,
    describe_error,
    describe_unknown_setting,
    get_setting_key,
    is_setting,
)
from galaxyhpc.config.slurm_options import SbatchOptions, check_options
from galaxyhpc.config.yaml_loader import ConfigError, Entry, format_value

BLOCK_KINDS = ("grid", "zip", "points")
EXPECTED_KIND = f"exactly one of {', '.join(BLOCK_KINDS)}"
_ENVIRONMENT_SETTINGS = ("data.source", "data.images", "data.cache", "model.pretrained", "resources.setup")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")

EntryPath = tuple[str | int, ...]  # keys and indices of a value in its file


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


# The settings: models of RunConfig's shape in which every setting may be left out


def is_any_of(key: str, value: Any) -> bool:
    """Whether a value that points are compared with is a list of values, any of which they may have."""
    is_tuple = isinstance(DEFAULTS.get(key), tuple)  # then only a list of lists means any of them
    return isinstance(value, list) and (not is_tuple or all(isinstance(item, list) for item in value))


def _check_preset(name: Any) -> Any:
    if name not in list(PRESETS):
        raise ValueError(", ".join(PRESETS))
    return name


def _refuse_preset(name: Any) -> Any:
    raise ValueError("got a preset; expected the settings a preset stands for")


def _make_value_type(key: str, value_type: Any) -> Any:
    return value_type


def _make_axis_type(key: str, value_type: Any) -> Any:
    return Annotated[list[value_type], Field(min_length=1)]


def _make_criterion_type(key: str, value_type: Any) -> Any:
    if key == PRESET_KEY:
        return Annotated[Any, BeforeValidator(_refuse_preset)]
    kinds: Any = Annotated[_make_axis_type(key, value_type), Tag("values")] | Annotated[value_type, Tag("value")]
    return Annotated[kinds, Discriminator(lambda setting: "values" if is_any_of(key, setting) else "value")]


def _make_settings_model(
    make_type: Callable[[str, Any], Any], model: type[BaseModel] = RunConfig, prefix: str = ""
) -> type[BaseModel]:
    """Return the model of some settings; `make_type` gives a field's type from the setting's key and type."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key, value_type = prefix + name, field.rebuild_annotation()
        if key == "seed":
            continue
        if value_type is SbatchOptions:
            options_type: Any = GenericAlias(dict, (str, make_type(key, Any)))
            fields[name] = Annotated[options_type, AfterValidator(check_options)]
        elif isinstance(value_type, type) and issubclass(value_type, BaseModel):
            fields[name] = _make_settings_model(make_type, value_type, f"{key}.")
        else:
            fields[name] = make_type(key, value_type)
    if model is ModelConfig:
        fields["preset"] = make_type(PRESET_KEY, Annotated[Any, BeforeValidator(_check_preset)])
    optional_fields: dict[str, Any] = {name: (field_type, None) for name, field_type in fields.items()}
    return create_model("Settings", __base__=_FileModel, **optional_fields)


def _is_empty(settings: Any) -> bool:
    return isinstance(settings, dict) and all(map(_is_empty, settings.values()))


def _check_not_empty(settings: Any) -> Any:
    if _is_empty(settings):
        raise ValueError("at least one setting")
    return settings


if TYPE_CHECKING:
    SettingsModel: TypeAlias = Any
    ResourcesModel: TypeAlias = Any
    AxesModel: TypeAlias = Any
    CriteriaModel: TypeAlias = Any
else:
    SettingsModel = _make_settings_model(_make_value_type)
    ResourcesModel = _make_settings_model(_make_value_type, RequestedResources, "resources.")
    AxesModel = Annotated[_make_settings_model(_make_axis_type), BeforeValidator(_check_not_empty)]
    CriteriaModel = Annotated[_make_settings_model(_make_criterion_type), BeforeValidator(_check_not_empty)]


# The file


def _check_name(name: Any) -> Any:
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        return name
    quotes = ", in quotes" if isinstance(name, int | float) else ""
    raise ValueError(f"1 to 100 characters from A-Z a-z 0-9 . _ -, not starting with a dot{quotes}")


def _make_seeds(seeds: Any) -> Any:
    if type(seeds) is int and 1 <= seeds <= MAX_RUNS:
        return list(range(seeds))
    if not isinstance(seeds, list):
        raise ValueError(f"a list, or how many: 1 to {MAX_RUNS:,}")
    return seeds


Name = Annotated[str, BeforeValidator(_check_name)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1), BeforeValidator(_make_seeds)]


class Block(_FileModel):
    """Points: by one of its kinds the product of lists of values, their pairing, or each point by itself."""

    base: SettingsModel = Field(None)
    grid: AxesModel = Field(None)
    zip: AxesModel = Field(None)
    points: Annotated[list[SettingsModel], Field(min_length=1)] = []


class ResourceRule(_FileModel):
    """Resources of the points that have some settings."""

    when: CriteriaModel
    set: ResourcesModel


class SweepFile(_FileModel):
    """A sweep, as `sweep` describes it. `_get_path_of_setting` says where it has settings."""

    name: Name = ""
    overrides: list[str] = []  # that a resolved file was made with
    base: SettingsModel = Field(None)
    blocks: Annotated[list[Block], Field(min_length=1)]
    exclude: list[CriteriaModel] = []
    seeds: Seeds = []
    resources: list[ResourceRule] = []


class SettingsFile(_FileModel):
    """A profile, or one setting of the command line, as a sweep's file would have it."""

    name: Name = ""
    base: SettingsModel = Field(None)
    seeds: Seeds = []


_STRUCTURE: dict[EntryPath, type[BaseModel]] = {(): SweepFile, ("blocks",): Block, ("resources",): ResourceRule}
_EXPECTED_LISTS: dict[EntryPath, str] = {
    ("blocks",): f"a list of blocks, each with {EXPECTED_KIND}",
    ("resources",): "a list of rules with when and set; resources of all points are given in base",
}


def validate_file(model: type[BaseModel], file: Entry) -> list[ConfigError]:
    """Fill in a file's environment variables, check it, mark what is invalid, and return every error."""
    errors = _expand_texts(file)
    try:
        model.model_validate(file.to_python())
    except ValidationError as error:
        invalid = [(file.find(details["loc"]), details) for details in error.errors(include_url=False)]
        errors += [_locate_error(details, entry) for entry, details in invalid if entry.is_valid]
        for entry, _ in invalid:
            entry.is_valid = False
    return errors


def _locate_error(error: ErrorDetails, entry: Entry) -> ConfigError:
    path = error["loc"]
    path_of_setting = _get_path_of_setting(path)
    key = get_setting_key(path_of_setting)
    if error["type"] == "extra_forbidden":
        message = describe_unknown_setting(key) if path_of_setting else _describe_unknown_part(path)
    elif error["type"] == "missing":
        message = f"got nothing; expected {_EXPECTED_LISTS.get(path, 'a mapping of settings')}"
    elif error["type"] == "list_type" and path in _EXPECTED_LISTS:
        message = f"got {format_value(error['input'])}; expected {_EXPECTED_LISTS[path]}"
    elif error["type"] == "model_type" and (names := _list_parts(path)):
        got = format_value(error["input"]) if path or error["input"] is not None else "nothing"
        message = f"got {got}; expected a mapping with {', '.join(names)}"
    else:
        message = describe_error(error)
    label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return ConfigError(entry.location, key if path_of_setting else label, message)


def _get_path_of_setting(path: EntryPath) -> EntryPath:
    """Return the part of a value's path that is below all settings; none of a value outside of settings."""
    match path:
        case ("blocks", int(), part, *names) if part in Block.model_fields:
            return tuple(names[1:] if names and isinstance(names[0], int) else names)
        case ("base", *names) | ("exclude", int(), *names) | ("resources", int(), "when", *names):
            return tuple(names)
        case ("resources", int(), "set", *names) if names:
            return ("resources", *names)
    return ()


def _list_parts(path: EntryPath) -> list[str]:
    """Return the keys of the mapping at a path; none where it has settings."""
    model = _STRUCTURE.get(tuple(part for part in path if isinstance(part, str)))
    return list(model.model_fields) if model else []


def _describe_unknown_part(path: EntryPath) -> str:
    names, name = _list_parts(path[:-1]), str(path[-1])
    hint = "".join(f" did you mean {similar}?" for similar in get_close_matches(name, names, 1))
    if name in RunConfig.model_fields:
        hint = " settings of all points are given in base;"
    return f"unknown key;{hint} known: {', '.join(names)}"


def _expand_texts(file: Entry) -> list[ConfigError]:
    """Fill in environment variables; return the errors of texts that no path, shell or terminal takes."""
    errors = []
    for path, entry in _list_texts(file, ()):
        key = get_setting_key(_get_path_of_setting(path))
        if is_setting(key):
            text_errors = _expand_environment(key, entry) or _check_printable(key, entry)
            entry.is_valid = not text_errors
            errors += text_errors
    return errors


def _list_texts(entry: Entry, path: EntryPath) -> Iterator[tuple[EntryPath, Entry]]:
    if isinstance(entry.value, str):
        yield path, entry
    elif isinstance(entry.value, dict | list):
        members = entry.value.items() if isinstance(entry.value, dict) else enumerate(entry.value)
        for part, child in members:
            yield from _list_texts(child, (*path, part))


def _expand_environment(key: str, entry: Entry) -> list[ConfigError]:
    """Fill in `${NAME}` and `${NAME:-default}`; a variable that is set but empty counts as unset, as in a shell."""
    text = str(entry.value)
    if "${" not in text:
        return []
    if key not in _ENVIRONMENT_SETTINGS:
        expected = f"environment variables only in {', '.join(_ENVIRONMENT_SETTINGS)}"
        return [ConfigError.unexpected(entry, key, expected)]
    values = {m[0]: os.environ.get(m[1]) or m[2] for m in _VARIABLE.finditer(text)}
    if unset := [variable for variable, value in values.items() if value is None]:
        advice = "which is not set; set it or write"
        return [ConfigError(entry.location, key, f"got {name}, {advice} {name[:-1]}:-default}}") for name in unset]
    entry.value = _VARIABLE.sub(lambda match: str(values[match[0]]), text)
    if "${" in entry.value:
        return [ConfigError.unexpected(entry, key, "${NAME} and ${NAME:-default}, or $NAME for the shell")]
    return []


def _check_printable(key: str, entry: Entry) -> list[ConfigError]:
    """Refuse what does not fit on a line; shell commands may have several lines."""
    text = str(entry.value)
    text = text.replace("\n", "").replace("\t", "") if key == "resources.setup" else text
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        return [ConfigError.unexpected(entry, key, "printable text")]
    return []
