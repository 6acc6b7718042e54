"""No name in the code is one that says nothing about its value."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]

BANNED = {
    *("found", "told", "said", "mine", "given", "wanted", "beside", "together", "borne_out", "at_hand", "looked"),
    *("judged", "turned", "pictures", "foretold", "several", "sound", "whole"),
}


def iterate_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of everything that is defined: functions, classes, parameters, attributes, locals."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.MatchMapping(rest=str(name)):
                yield node.lineno, name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((node.lineno, alias.asname) for alias in names if alias.asname)


def test_no_name_is_a_banned_word() -> None:
    """Underscores do not matter at the ends: `_found` is `found`."""
    files = sorted(path for folder in ("galaxyhpc", "jobs") for path in (PROJECT / folder).rglob("*.py"))
    assert files
    mistakes = [
        f"{path.relative_to(PROJECT)}:{line}: {name}"
        for path in files
        for line, name in iterate_names(ast.parse(path.read_text()))
        if name.strip("_").lower() in BANNED
    ]
    assert not mistakes, "\n" + "\n".join(mistakes)


def test_every_kind_of_name_is_checked() -> None:
    code = """
import x as found
def told(said, *mine, given=1, **wanted): pass
class Beside:
    together: int = 0
    def f(self): self.looked = 1
with a as judged: [turned for turned in b]
try: pass
except E as sound: pass
match c:
    case [several, *whole]: pass
lambda pictures: (foretold := 1)
"""
    assert {name.lower() for _, name in iterate_names(ast.parse(code))} == BANNED - {"borne_out", "at_hand"} | {
        "f",
        "self",
    }
