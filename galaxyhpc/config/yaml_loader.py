"""YAML as entries: every value knows its file and line, so that errors can name them.

Plain scalars are read as YAML 1.2 reads them: `1e-3` is a number, `yes` and `12:30` are text. Nothing is ever
constructed from a tag, and values multiplied by aliases are counted, so that any text ends as an `Entry` or as an
error. `a.b: 1` is the same as `a: {b: 1}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 20_000_000
MAX_VALUES = 200_000  # aliases counted as often as they are used
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_FLOAT_PATTERN = r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?\Z"


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """File and line of a value; line 0 where there are no lines, as on the command line."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class Entry:
    """A value and its location: the line of its key in a mapping, its own line in a list."""

    value: bool | int | float | str | dict[str, Entry] | list[Entry] | None
    location: SourceLocation
    is_valid: bool = True  # false once an error was found, so that nothing is concluded from it

    def to_python(self) -> Any:
        """Return the value without locations."""
        if isinstance(self.value, dict):
            return {key: child.to_python() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.to_python() for child in self.value]
        return self.value

    def find(self, path: Iterable[str | int]) -> Entry:
        """Return the entry at a path of keys and indices; what does not exist is skipped, as names of types."""
        entry = self
        for part in path:
            if isinstance(entry.value, dict) and part in entry.value:
                entry = entry.value[str(part)]
            elif isinstance(entry.value, list) and isinstance(part, int) and part < len(entry.value):
                entry = entry.value[part]
        return entry

    @property
    def members(self) -> dict[str, Entry]:
        """The values of a mapping by key; none of what is invalid."""
        return self.value if self.is_valid and isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Entry]:
        """The items of a list; none of what is invalid."""
        return self.value if self.is_valid and isinstance(self.value, list) else []

    @property
    def is_all_valid(self) -> bool:
        """Whether no error was found in a value, nor in its parts."""
        return self.is_valid and all(part.is_all_valid for part in (*self.items, *self.members.values()))


@dataclass(frozen=True, slots=True)
class ConfigError:
    """What is wrong with a key, which may be empty, and where it was written."""

    location: SourceLocation
    key: str
    message: str

    @classmethod
    def unexpected(cls, entry: Entry, key: str, expected: str, got: str = "") -> ConfigError:
        """Return the error that `entry` is not what is expected; `got` describes it, by default its value."""
        return cls(entry.location, key, f"got {got or format_value(entry.to_python())}; expected {expected}")

    def __str__(self) -> str:
        return f"{self.location}: " + (f"{make_printable(self.key)}: " if self.key else "") + self.message


def format_errors(errors: Iterable[ConfigError]) -> tuple[str, ...]:
    """Return each distinct error once, `file:line: key: message`, in the order of the files' lines."""
    return tuple(dict.fromkeys(map(str, sorted(errors, key=lambda error: error.location))))


def make_printable(text: str) -> str:
    """Shorten `text` and escape what does not fit on one line of a terminal."""
    return text[:80] if text.isprintable() else repr(text[:80])


def format_value(value: object) -> str:
    """Write a plain value as its author would have, shortened."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value) and _resolve_scalar_type(value) == "str":
        text = value
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(format_value, value[:20]))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {format_value(child)}' for key, child in list(value.items())[:20])}}}"
    else:
        text = repr(value)
    return make_printable(text if len(text) <= 60 else f"{text[:57]}...")


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2's core schema does."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (declared by PyYAML, which copies it before changing it)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else; writes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?\d{1,300}\Z", re.ASCII), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT_PATTERN, re.ASCII), list("-+.0123456789"))
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<\Z"), ["<"])
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT_PATTERN, re.ASCII), list("-+.0123456789"))

_SCALAR_PARSERS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": float,
    "str": str,
}


def _resolve_scalar_type(text: str) -> str:
    """Return the type that a plain scalar is read as: null, bool, int, float, merge or str."""
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return str(tag).removeprefix(_TAG)
    return "str"


def dump_yaml(value: object) -> str:
    """Write plain data as YAML that `read_yaml` reads back to the same."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    return text


def read_yaml_file(path: Path) -> tuple[Entry | None, list[ConfigError]]:
    """Read a YAML file; return its value, none where it cannot be read, and every error."""
    location = SourceLocation(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return read_yaml(content.decode("utf-8-sig"), SourceLocation(str(path), 1))
        message = f"got more than {MAX_BYTES:,} bytes; expected a YAML file of at most as many"
    except UnicodeDecodeError as error:
        location = SourceLocation(str(path), content.count(b"\n", 0, error.start) + 1)
        message = f"got byte 0x{content[error.start]:02x}; expected UTF-8 text"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None, [ConfigError(location, "", message)]


def read_yaml(text: str, start: SourceLocation, key: str = "") -> tuple[Entry | None, list[ConfigError]]:
    """Read the one document in `text`, null if there is none; lines are counted where `start` has one.

    With a key, the text is its value, and the entry that is returned is the mapping with this key.
    """
    converter = _NodeConverter(start)
    try:
        node = yaml.compose(text, Loader=_Loader)
        node = node or yaml.ScalarNode(_TAG + "null", "")
        entry = converter.convert(node, start, key, depth=key.count("."))
        return converter.nest(Entry({key: entry}, start) if key else entry), converter.errors
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two: "\UFFFFFFFF"
        line = _find_error_line(error, text)
        location = SourceLocation(start.file, start.line and line)
        message = f"not valid YAML: {_describe_yaml_error(error, text, line)}"
        return None, [*converter.errors, ConfigError(location, key, message)]
    except _TooLargeError as error:
        return None, [*converter.errors, ConfigError(error.location, key, str(error))]


def _find_error_line(error: Exception, text: str) -> int:
    """Return the line at which PyYAML gave up, from 1."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return int(mark.line) + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


def _describe_yaml_error(error: Exception, text: str, line: int) -> str:
    """Return PyYAML's message on one line, with advice in the most frequent case."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    message = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    has_variable = "${" in "".join(text.split("\n")[line - 1 : line])
    return make_printable(" ".join(message.split())) + ("; quote '${NAME}' inside {} and []" if has_variable else "")


class _TooLargeError(Exception):
    def __init__(self, location: SourceLocation, message: str) -> None:
        super().__init__(message)
        self.location = location


class _NodeConverter:
    """One pass over the composed nodes of a document; every use of an alias is a visit."""

    def __init__(self, start: SourceLocation) -> None:
        self.start, self.num_visits, self.num_dots = start, 0, 0
        self.errors: list[ConfigError] = []

    def get_location(self, node: yaml.Node) -> SourceLocation:
        return SourceLocation(self.start.file, self.start.line and node.start_mark.line + 1)

    def convert(self, node: yaml.Node, location: SourceLocation, key: str, depth: int = 0) -> Entry:
        self.num_visits += 1
        if self.num_visits > MAX_VALUES or self.num_dots > 2 * MAX_VALUES:
            raise _TooLargeError(location, f"got more than {MAX_VALUES:,} values, aliases expanded; expected fewer")
        if depth > MAX_DEPTH:
            raise _TooLargeError(location, f"got more than {MAX_DEPTH} levels, or an alias inside its own anchor")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Entry(self.convert_mapping(node, key, depth), location)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.convert(n, self.get_location(n), f"{key}[{i}]", depth + 1) for i, n in enumerate(node.value)]
            return Entry(items, location)
        return self.convert_scalar(node, location, key)

    def convert_scalar(self, node: yaml.Node, location: SourceLocation, key: str) -> Entry:
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and tag in _SCALAR_PARSERS:
            try:
                return Entry(_SCALAR_PARSERS[tag](node.value), location)
            except (ValueError, KeyError):  # only an explicit tag can be wrong
                message = f"got {format_value(node.value)}; expected !!{tag}, as its tag says"
        else:
            message = f"got the tag {make_printable(node.tag)}; expected plain values"
        self.errors.append(ConfigError(location, key, message))
        return Entry(None, location, is_valid=False)

    def convert_mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            location, name = self.get_location(key_node), key_node.value
            if key_node.tag == _TAG + "merge":
                for merged_name, child in self.expand_merge(value_node, location, key, depth):
                    merged.setdefault(merged_name, child)
            elif key_node.tag != _TAG + "str" or not isinstance(name, str) or not name.isprintable():
                self.errors.append(
                    ConfigError(location, key, f"got the key {format_value(name)}; expected names as keys")
                )
            elif name in own:
                self.add_duplicate(join_key(key, name), location, own[name])
            else:
                self.num_dots += name.count(".")
                own[name] = self.convert(value_node, location, join_key(key, name), depth + 1 + name.count("."))
        return {**merged, **own}

    def expand_merge(
        self, node: yaml.Node, location: SourceLocation, key: str, depth: int
    ) -> Iterator[tuple[str, Entry]]:
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            entry = self.convert(part, location, key, depth + 1)
            if isinstance(entry.value, dict):
                yield from entry.value.items()
            else:
                self.errors.append(ConfigError.unexpected(entry, key, "a mapping to merge with <<"))

    def nest(self, entry: Entry, key: str = "") -> Entry:
        """Return an entry with `a.b: 1` as a part of `a`."""
        if isinstance(entry.value, list):
            return replace(entry, value=[self.nest(item, f"{key}[{i}]") for i, item in enumerate(entry.value)])
        if not isinstance(entry.value, dict):
            return entry
        members: dict[str, Entry] = {}
        for name, child in entry.value.items():
            first, *others = name.split(".")
            inner = self.nest(child, join_key(key, name))
            for part in reversed(others):
                inner = Entry({part: inner}, child.location)
            self.add_member(members, first, inner, key)
        return replace(entry, value=members)

    def add_member(self, members: dict[str, Entry], name: str, child: Entry, key: str) -> None:
        """Add a member, or those of a mapping to a mapping that is there already."""
        known = members.setdefault(name, child)
        if known is child:
            return
        if not isinstance(known.value, dict) or not isinstance(child.value, dict):
            return self.add_duplicate(join_key(key, name), child.location, known)
        for inner_name, inner in child.value.items():
            self.add_member(known.value, inner_name, inner, join_key(key, name))

    def add_duplicate(self, key: str, location: SourceLocation, first: Entry) -> None:
        first.is_valid = first.is_valid and isinstance(first.value, dict | list)  # nobody knows which was meant
        self.errors.append(ConfigError(location, key, f"duplicate key, first at {first.location}"))


def join_key(key: str, name: str) -> str:
    """Return the dotted key of a member of `key`, which is empty at the top."""
    return f"{key}.{name}" if key else name


def read_leading_comment(text: str) -> str:
    """Return the lines of a sweep's YAML up to the first that is no comment: the question that the sweep asks."""
    return "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def parse_question(text: str) -> str:
    """Return the paragraphs of a sweep's leading comment, each on one line with a blank line between them."""
    lines = [line.lstrip("#").strip() for line in read_leading_comment(text).splitlines()]
    return "\n\n".join(" ".join(part.split()) for part in "\n".join(lines).split("\n\n") if part.strip())
