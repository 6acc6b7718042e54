"""YAML whose every value knows its file and line, so that mistakes can be told with their place.

Plain values are read as YAML 1.2 reads them: `1e-3` is a number, `yes` and `12:30` are text. The decision
that is not obvious: nothing is ever constructed from a tag, and what aliases multiply is counted, so that any
text whatever ends as an `Entry` or as a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
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
    """Where something was written; line 0 when there are no lines, as on the command line."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and its place: the line of its key in a mapping, its own line in a list."""

    value: bool | int | float | str | dict[str, Entry] | list[Entry] | None
    location: SourceLocation
    is_valid: bool = True  # false once a mistake was told, so that nothing is concluded from it

    def to_python(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: child.to_python() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.to_python() for child in self.value]
        return self.value


@dataclass
class ErrorCollector:
    """The mistakes of the user found so far."""

    errors: list[tuple[SourceLocation, str]] = field(default_factory=list)

    def add(self, location: SourceLocation, key: str, message: str) -> None:
        """Note `text` about `key`, which may be empty."""
        self.errors.append((location, f"{make_printable(key)}: {message}" if key else message))

    def format_lines(self) -> tuple[str, ...]:
        """Each distinct mistake once, `file:line: key: text`, in the order of the files' lines."""
        ordered = sorted(self.errors, key=lambda mistake: mistake[0])
        return tuple(dict.fromkeys(f"{place}: {text}" for place, text in ordered))


def make_printable(text: str) -> str:
    """Return `text` such that it fits on one line of a terminal."""
    return text[:80] if text.isprintable() else repr(text[:80])


def format_value(value: object) -> str:
    """Return a plain value as its author would have written it, shortened."""
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
    """Quotes text that either version of YAML would read as something else; writes no aliases."""

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
    """Return what a plain scalar is read as: null, bool, int, float, merge or str."""
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return str(tag).removeprefix(_TAG)
    return "str"


def dump_yaml(value: object) -> str:
    """Return plain data as YAML that `read_yaml` reads back to the same."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    return text


def read_yaml_file(path: Path, collector: ErrorCollector) -> Entry | None:
    """Read a YAML file; none when it cannot be read, which is then among the mistakes."""
    place = SourceLocation(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return read_yaml(content.decode("utf-8-sig"), SourceLocation(str(path), 1), collector)
        collector.add(place, "", f"found more than {MAX_BYTES:,} bytes; allowed a YAML file of fewer")
    except UnicodeDecodeError as error:
        place = SourceLocation(str(path), content.count(b"\n", 0, error.start) + 1)
        collector.add(place, "", f"found byte 0x{content[error.start]:02x}; allowed UTF-8 text")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        collector.add(place, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    return None


def read_leading_comment(path: Path) -> str:
    """Return the lines of a readable file up to the first that is no comment, where a sweep asks its question."""
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


def read_yaml(text: str, start: SourceLocation, collector: ErrorCollector, key: str = "") -> Entry | None:
    """Read the one document in `text`; lines are counted when `start` has one. Empty text is null."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return Entry(None, start) if node is None else _NodeConverter(start, collector).convert(node, start, key, 0)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two: "\UFFFFFFFF"
        line = _find_error_line(error, text)
        collector.add(
            SourceLocation(start.file, start.line and line),
            key,
            f"not valid YAML: {_describe_yaml_error(error, text, line)}",
        )
    except _TooLargeError as error:
        collector.add(error.location, key, str(error))
    return None


def _find_error_line(error: Exception, text: str) -> int:
    """Return the line at which PyYAML gave up, from 1."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return int(mark.line) + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


def _describe_yaml_error(error: Exception, text: str, line: int) -> str:
    """Return what PyYAML says, on one line, with what helps in the most frequent case."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    unquoted = "${" in "".join(text.split("\n")[line - 1 : line])
    return make_printable(" ".join(said.split())) + ("; quote '${NAME}' inside {} and []" if unquoted else "")


class _TooLargeError(Exception):
    def __init__(self, location: SourceLocation, message: str) -> None:
        super().__init__(message)
        self.location = location


class _NodeConverter:
    """One pass over composed nodes; every use of an alias is a visit."""

    def __init__(self, start: SourceLocation, collector: ErrorCollector) -> None:
        self.start, self.collector, self.num_visits = start, collector, 0

    def get_location(self, node: yaml.Node) -> SourceLocation:
        return SourceLocation(self.start.file, self.start.line and node.start_mark.line + 1)

    def convert(self, node: yaml.Node, location: SourceLocation, key: str, depth: int) -> Entry:
        self.num_visits += 1
        if self.num_visits > MAX_VALUES:
            raise _TooLargeError(location, f"found more than {MAX_VALUES:,} values, aliases expanded; allowed fewer")
        if depth > MAX_DEPTH:
            raise _TooLargeError(location, f"found more than {MAX_DEPTH} levels, or an alias inside what it names")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Entry(self.convert_mapping(node, key, depth), location)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            found = [self.convert(n, self.get_location(n), f"{key}[{i}]", depth + 1) for i, n in enumerate(node.value)]
            return Entry(found, location)
        return self.convert_scalar(node, location, key)

    def convert_scalar(self, node: yaml.Node, location: SourceLocation, key: str) -> Entry:
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and tag in _SCALAR_PARSERS:
            try:
                return Entry(_SCALAR_PARSERS[tag](node.value), location)
            except (ValueError, KeyError):  # only an explicit tag can lie
                self.collector.add(location, key, f"found {format_value(node.value)}; allowed what !!{tag} says")
        else:
            self.collector.add(location, key, f"found the tag {make_printable(node.tag)}; allowed plain values")
        return Entry(None, location, is_valid=False)

    def convert_mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for name_node, value in node.value:
            place = self.get_location(name_node)
            if name_node.tag == _TAG + "merge":
                for name, child in self.expand_merge(value, place, key, depth):
                    merged.setdefault(name, child)
            elif name_node.tag != _TAG + "str" or not isinstance(name_node, yaml.ScalarNode):
                self.collector.add(place, key, f"found the key {format_value(name_node.value)}; allowed names as keys")
            elif name_node.value in own:
                where = f"{key}.{name_node.value}".lstrip(".")
                self.collector.add(place, where, f"found twice, first at {own[name_node.value].location}; allowed once")
            else:
                where = f"{key}.{name_node.value}".lstrip(".")
                own[name_node.value] = self.convert(value, place, where, depth + 1)
        return {**merged, **own}

    def expand_merge(
        self, node: yaml.Node, location: SourceLocation, key: str, depth: int
    ) -> Iterator[tuple[str, Entry]]:
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            entry = self.convert(part, location, key, depth + 1)
            if isinstance(entry.value, dict):
                yield from entry.value.items()
            else:
                self.collector.add(
                    location, key, f"found << with {format_value(entry.to_python())}; allowed a mapping to merge"
                )


def read_mapping(entry: Entry, label: str, allowed: tuple[str, ...], collector: ErrorCollector) -> dict[str, Entry]:
    """Return the known members of a mapping."""
    if not isinstance(entry.value, dict):
        if entry.is_valid:
            found = "nothing" if entry.value is None else format_value(entry.to_python())
            collector.add(entry.location, label, f"found {found}; allowed a mapping with {', '.join(allowed)}")
        return {}
    for key, child in entry.value.items():
        if key not in allowed:
            near = "".join(f" did you mean {name}?" for name in get_close_matches(key, allowed, 1))
            collector.add(child.location, f"{label}.{key}".lstrip("."), f"unknown;{near} known: {', '.join(allowed)}")
    return {key: child for key, child in entry.value.items() if key in allowed}


def read_list(
    entry: Entry | None, label: str, collector: ErrorCollector, min_items: int = 1
) -> list[tuple[str, Entry]]:
    """Return the items of a list, each with its label; an absent list has none."""
    if entry is None or not entry.is_valid:
        return []
    if not isinstance(entry.value, list) or len(entry.value) < min_items:
        allowed = "a list with at least one item" if min_items else "a list"
        collector.add(entry.location, label, f"found {format_value(entry.to_python())}; allowed {allowed}")
        return []
    return [(f"{label}[{number}]", item) for number, item in enumerate(entry.value)]


def parse_question(text: str) -> str:
    """Return the comment that a sweep's YAML begins with, which asks its question; empty where there is none."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n\n".join(" ".join(part.split()) for part in "\n".join(lines).split("\n\n") if part.strip())
