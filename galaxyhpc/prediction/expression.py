"""Expressions of columns, such as "p_Merging > 0.9 and not blank", as conditions of pyarrow; no code is run.

An expression consists of columns, numbers, texts in quotes, True, False and None; of + - * / and comparisons, which may
be chained; of `in [...]`, `is None`, `and`, `or`, `not`, and parentheses. & | ~ are accepted for and, or, not. A column
whose name is no identifier stands in backticks: `p_Edge-on_with_Bulge`. Everything else is refused: calls, attributes,
indices. A comparison with a null is not true, nor is its negation; `error is None` asks for one.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import dataset

from galaxyhpc.storage.files import sanitize

MAX_EXPRESSION_LENGTH, MAX_SHOWN_LENGTH = 10_000, 200  # characters

# in texts nothing is replaced; `class` is a word of Python
_NAMES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]*)`|\b(class)\b""")
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_OPERATORS: dict[type[ast.operator | ast.unaryop | ast.boolop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.And: operator.and_,
    ast.Or: operator.or_,
    ast.Invert: operator.invert,
    ast.Not: operator.invert,
    ast.USub: pc.negate,
    ast.UAdd: lambda value: value,
}


class SelectionError(ValueError):
    """An expression, or an output, that a selection cannot have; one line."""


def parse_expression(text: str, schema: pa.Schema) -> pc.Expression:
    """Return an expression as a condition on the columns of a schema.

    Raises
    ------
    SelectionError
    """
    tree, columns = _parse(text)
    try:
        condition = _Translator(text, schema, columns).translate(tree.body)
        kind = dataset.dataset(schema.empty_table()).to_table(columns={"selected": condition}).schema[0].type
    except RecursionError:
        raise _make_error(text, "a deeply nested expression", "a simpler one") from None
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _make_error(text, reason, "numbers compared with numbers and texts with texts") from None
    if kind != pa.bool_():
        raise _make_error(text, f"values of type {kind}", "a condition, such as p_Merging > 0.9")
    return condition


def _parse(text: str) -> tuple[ast.Expression, dict[str, str]]:
    """Return the syntax tree of an expression, and the columns that names in it stand for.

    Raises
    ------
    SelectionError
    """
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]
        names.append(match[2] if match[2] is not None else match[3])
        return f" _{len(names) - 1}_column_ "

    if len(text) > MAX_EXPRESSION_LENGTH:
        raise _make_error(text, f"{len(text):,} characters", f"at most {MAX_EXPRESSION_LENGTH:,}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python, such as of "x" is None
            tree = ast.parse(_NAMES.sub(replace, text).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _make_error(text, "no expression", "one such as p_Merging > 0.9 and entropy < 0.5") from None
    return tree, {f"_{number}_column_": name for number, name in enumerate(names)}


def _make_error(text: str, got: str, expected: str) -> SelectionError:
    shown = text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."
    return SelectionError(sanitize(f"--select {shown!r}: got {got}; expected {expected}"))


class _Translator(NamedTuple):
    """Translates the nodes of an expression; all that is not named here is refused."""

    text: str
    schema: pa.Schema
    columns: dict[str, str]  # of the names that stand for columns in backticks

    def translate(self, node: ast.expr) -> Any:
        """Return a node as an expression of pyarrow."""
        match node:
            case ast.Name(id=name):
                return self._get_column(self.columns.get(name, name))
            case ast.Constant(value=bool() | int() | float() | str()):
                return pc.scalar(node.value)
            case ast.BoolOp(op=op, values=values):
                return reduce(_OPERATORS[type(op)], map(self.translate, values))
            case ast.UnaryOp(op=op, operand=operand):
                return _OPERATORS[type(op)](self.translate(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](self.translate(left), self.translate(right))
            case ast.Compare(left=left, ops=ops, comparators=others):
                pairs = zip(pairwise([left, *others]), ops, strict=True)
                return reduce(operator.and_, (self._compare(*pair, op) for pair, op in pairs))
        expected = "columns, numbers, texts, comparisons, + - * /, in, is None, and, or, not"
        raise _make_error(self.text, ast.unparse(node) if self._is_printable(node) else type(node).__name__, expected)

    def _is_printable(self, node: ast.expr) -> bool:
        """Whether a node has no placeholder of a column."""
        return not any(isinstance(part, ast.Name) and part.id in self.columns for part in ast.walk(node))

    def _compare(self, left: ast.expr, right: ast.expr, op: ast.cmpop) -> Any:
        match op, right:
            case ((ast.Is() | ast.IsNot()), ast.Constant(value=None)):
                is_null = self.translate(left).is_null()
                return is_null if isinstance(op, ast.Is) else ~is_null
            case ((ast.In() | ast.NotIn()), (ast.List(elts=values) | ast.Tuple(elts=values) | ast.Set(elts=values))):
                is_in = reduce(operator.or_, (self.translate(left) == self.translate(value) for value in values))
                return is_in if isinstance(op, ast.In) else ~is_in
        if type(op) not in _COMPARISONS:
            expected = "in [VALUE, ...], or is None"
            raise _make_error(self.text, f"{type(op).__name__} before something else", expected)
        return _COMPARISONS[type(op)](self.translate(left), self.translate(right))

    def _get_column(self, name: str) -> pc.Expression:
        known = [field.name for field in self.schema if not pa.types.is_fixed_size_list(field.type)]
        if name not in known:
            typed = ", ".join(text if text.isidentifier() else f"`{text}`" for text in known)
            raise _make_error(self.text, f"the unknown column {name!r}", f"one of {typed}")
        return pc.field(name)
