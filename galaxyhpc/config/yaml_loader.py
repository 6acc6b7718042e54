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

MOST_BYTES = 20_000_000
MOST_VALUES = 200_000  # aliases counted as often as they are used
MOST_LEVELS = 40

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?\Z"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written; line 0 when there are no lines, as on the command line."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and its place: the line of its key in a mapping, its own line in a list."""

    value: bool | int | float | str | dict[str, Entry] | list[Entry] | None
    place: Place
    sound: bool = True  # false once a mistake was told, so that nothing is concluded from it

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass
class Mistakes:
    """The mistakes of the user found so far."""

    found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, key: str, text: str) -> None:
        """Note `text` about `key`, which may be empty."""
        self.found.append((place, f"{printable(key)}: {text}" if key else text))

    def lines(self) -> tuple[str, ...]:
        """Each distinct mistake once, `file:line: key: text`, in the order of the files' lines."""
        ordered = sorted(self.found, key=lambda mistake: mistake[0])
        return tuple(dict.fromkeys(f"{place}: {text}" for place, text in ordered))


def printable(text: str) -> str:
    """Return `text` such that it fits on one line of a terminal."""
    return text[:80] if text.isprintable() else repr(text[:80])


def shown(value: object) -> str:
    """Return a plain value as its author would have written it, shortened."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value) and _resolved(value) == "str":
        text = value
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value[:20]))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {shown(child)}' for key, child in list(value.items())[:20])}}}"
    else:
        text = repr(value)
    return printable(text if len(text) <= 60 else f"{text[:57]}...")


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
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT, re.ASCII), list("-+.0123456789"))
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<\Z"), ["<"])
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT, re.ASCII), list("-+.0123456789"))

_SCALARS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": float,
    "str": str,
}


def _resolved(text: str) -> str:
    """Return what a plain scalar is read as: null, bool, int, float, merge or str."""
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return str(tag).removeprefix(_TAG)
    return "str"


def dump_yaml(value: object) -> str:
    """Return plain data as YAML that `read_yaml` reads back to the same."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    return text


def read_file(path: Path, mistakes: Mistakes) -> Entry | None:
    """Read a YAML file; none when it cannot be read, which is then among the mistakes."""
    place = Place(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) <= MOST_BYTES:
            return read_yaml(content.decode("utf-8-sig"), Place(str(path), 1), mistakes)
        mistakes.add(place, "", f"found more than {MOST_BYTES:,} bytes; allowed a YAML file of fewer")
    except UnicodeDecodeError as error:
        place = Place(str(path), content.count(b"\n", 0, error.start) + 1)
        mistakes.add(place, "", f"found byte 0x{content[error.start]:02x}; allowed UTF-8 text")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        mistakes.add(place, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    return None


def leading_comment(path: Path) -> str:
    """Return the lines of a readable file up to the first that is no comment, where a sweep asks its question."""
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


def read_yaml(text: str, start: Place, mistakes: Mistakes, key: str = "") -> Entry | None:
    """Read the one document in `text`; lines are counted when `start` has one. Empty text is null."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return Entry(None, start) if node is None else _Walk(start, mistakes).entry(node, start, key, 0)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two: "\UFFFFFFFF"
        line = _line(error, text)
        mistakes.add(Place(start.file, start.line and line), key, f"not valid YAML: {_problem(error, text, line)}")
    except _TooMuchError as error:
        mistakes.add(error.place, key, str(error))
    return None


def _line(error: Exception, text: str) -> int:
    """Return the line at which PyYAML gave up, from 1."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return int(mark.line) + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


def _problem(error: Exception, text: str, line: int) -> str:
    """Return what PyYAML says, on one line, with what helps in the most frequent case."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    unquoted = "${" in "".join(text.split("\n")[line - 1 : line])
    return printable(" ".join(said.split())) + ("; quote '${NAME}' inside {} and []" if unquoted else "")


class _TooMuchError(Exception):
    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place


class _Walk:
    """One pass over composed nodes; every use of an alias is a visit."""

    def __init__(self, start: Place, mistakes: Mistakes) -> None:
        self.start, self.mistakes, self.visits = start, mistakes, 0

    def place(self, node: yaml.Node) -> Place:
        return Place(self.start.file, self.start.line and node.start_mark.line + 1)

    def entry(self, node: yaml.Node, place: Place, key: str, level: int) -> Entry:
        self.visits += 1
        if self.visits > MOST_VALUES:
            raise _TooMuchError(place, f"found more than {MOST_VALUES:,} values, aliases expanded; allowed fewer")
        if level > MOST_LEVELS:
            raise _TooMuchError(place, f"found more than {MOST_LEVELS} levels, or an alias inside what it names")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Entry(self.mapping(node, key, level), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            found = [self.entry(n, self.place(n), f"{key}[{i}]", level + 1) for i, n in enumerate(node.value)]
            return Entry(found, place)
        return self.scalar(node, place, key)

    def scalar(self, node: yaml.Node, place: Place, key: str) -> Entry:
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and tag in _SCALARS:
            try:
                return Entry(_SCALARS[tag](node.value), place)
            except (ValueError, KeyError):  # only an explicit tag can lie
                self.mistakes.add(place, key, f"found {shown(node.value)}; allowed what !!{tag} says")
        else:
            self.mistakes.add(place, key, f"found the tag {printable(node.tag)}; allowed plain values")
        return Entry(None, place, sound=False)

    def mapping(self, node: yaml.MappingNode, key: str, level: int) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for name_node, value in node.value:
            place = self.place(name_node)
            if name_node.tag == _TAG + "merge":
                for name, child in self.merges(value, place, key, level):
                    merged.setdefault(name, child)
            elif name_node.tag != _TAG + "str" or not isinstance(name_node, yaml.ScalarNode):
                self.mistakes.add(place, key, f"found the key {shown(name_node.value)}; allowed names as keys")
            elif name_node.value in own:
                where = f"{key}.{name_node.value}".lstrip(".")
                self.mistakes.add(place, where, f"found twice, first at {own[name_node.value].place}; allowed once")
            else:
                where = f"{key}.{name_node.value}".lstrip(".")
                own[name_node.value] = self.entry(value, place, where, level + 1)
        return {**merged, **own}

    def merges(self, node: yaml.Node, place: Place, key: str, level: int) -> Iterator[tuple[str, Entry]]:
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            entry = self.entry(part, place, key, level + 1)
            if isinstance(entry.value, dict):
                yield from entry.value.items()
            else:
                self.mistakes.add(place, key, f"found << with {shown(entry.plain())}; allowed a mapping to merge")


def members(entry: Entry, label: str, allowed: tuple[str, ...], mistakes: Mistakes) -> dict[str, Entry]:
    """Return the known members of a mapping."""
    if not isinstance(entry.value, dict):
        if entry.sound:
            found = "nothing" if entry.value is None else shown(entry.plain())
            mistakes.add(entry.place, label, f"found {found}; allowed a mapping with {', '.join(allowed)}")
        return {}
    for key, child in entry.value.items():
        if key not in allowed:
            near = "".join(f" did you mean {name}?" for name in get_close_matches(key, allowed, 1))
            mistakes.add(child.place, f"{label}.{key}".lstrip("."), f"unknown;{near} known: {', '.join(allowed)}")
    return {key: child for key, child in entry.value.items() if key in allowed}


def items_of(entry: Entry | None, label: str, mistakes: Mistakes, least: int = 1) -> list[tuple[str, Entry]]:
    """Return the items of a list, each with its label; an absent list has none."""
    if entry is None or not entry.sound:
        return []
    if not isinstance(entry.value, list) or len(entry.value) < least:
        allowed = "a list with at least one item" if least else "a list"
        mistakes.add(entry.place, label, f"found {shown(entry.plain())}; allowed {allowed}")
        return []
    return [(f"{label}[{number}]", item) for number, item in enumerate(entry.value)]


def question(text: str) -> str:
    """Return the comment that a sweep's YAML begins with, which asks its question; empty where there is none."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n\n".join(" ".join(part.split()) for part in "\n".join(lines).split("\n\n") if part.strip())
