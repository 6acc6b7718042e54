"""Expressions of columns select as numpy does, refuse everything else, and run no code."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pytest
from helpers.tiers import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import dataset

from galaxyhpc.prediction.expression import SelectionError, parse_expression

TABLE = pa.table(
    {
        "class": pa.array([0, 1, 2, None], pa.int16()),
        "name": ["E", "it's", "E", None],
        "p_E": pa.array([0.95, 0.5, 0.2, None], pa.float32()),
        "p_In-between (a.b)": pa.array([0.1, 0.2, 0.7, math.nan], pa.float32()),
        "blank": [True, False, False, None],
        "error": [None, None, None, "no image"],
        "row": [0, 1, 2, 3],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8), pa.float32()), 2),
    }
)


def find_rows(expression: str) -> list[int]:
    """Return the rows that an expression selects."""
    condition = parse_expression(expression, TABLE.schema)
    rows: list[int] = dataset.dataset(TABLE).to_table(filter=condition).column("row").to_pylist()
    return rows


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("p_E > 0.4", [0, 1]),
        ("p_E > 0.4 and not blank", [1]),
        ("(p_E > 0.4) & ~blank | (class == 2)", [1, 2]),
        ("0.3 < p_E <= 0.5", [1]),
        ("p_E + `p_In-between (a.b)` * 2 - 1 >= -0.2", [0, 1, 2]),
        ("-p_E < -0.9", [0]),
        ("`p_In-between (a.b)` > 0.5 or class == 0", [0, 2]),
        ("class in [0, 1]", [0, 1]),
        ("class not in (0, 1)", [2]),
        ('name == "it\'s"', [1]),
        ("name == '`class`'", []),
        ("name != 'E'", [1]),
        ("error is not None", [3]),
        ("error is None and row / 2 == 1.0", [2]),
        ("p_E > 0.4 or error is not None", [0, 1, 3]),
        ("not p_E > 0.4", [2]),
        ("blank == True", [0]),
    ],
)
def test_an_expression_selects_the_rows_that_it_is_true_for(expression: str, rows: list[int]) -> None:
    assert find_rows(expression) == rows


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "name.upper() == 'E'",
        "p_E.__class__ == 1",
        "(lambda: 1)() == 1",
        "[row for row in (1, 2)] == 1",
        "row[0] == 1",
        "row ** 99999999 > 1",
        "f'{row}' == '1'",
        "(row := 3) > 1",
        "row if blank else row",
        "row @ row > 1",
        "b'x' == name",
        "row << 5 > 1",
        "class in name",
        "row is blank",
        "1j == row",
        "print",
    ],
)
def test_everything_else_is_refused_in_one_line(expression: str) -> None:
    with pytest.raises(SelectionError, match=r"^--select .*: got .*; expected [^\n]*$"):
        parse_expression(expression, TABLE.schema)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("p_Merging > 0.9", "the unknown column 'p_Merging'; expected one of class, name, p_E, `p_In-between (a.b)`"),
        ("`p Merging` > 0.9", "the unknown column 'p Merging'"),
        ("embedding > 0.9", "the unknown column 'embedding'"),
        ("p_In-between > 0.9", "the unknown column 'p_In'"),
        ("p_E", "values of type float; expected a condition"),
        ("p_E > 'high'", "expected numbers compared with numbers and texts with texts"),
        ("not p_E", "expected numbers compared with numbers and texts with texts"),
        ("row == 10000000000000000000000000", "expected numbers compared with numbers"),
        ("p_E >", "no expression; expected one such as"),
        ("", "no expression; expected one such as"),
        ("p_E > 0.9; row", "no expression; expected one such as"),
        ("(" * 4000 + "row" + ")" * 4000 + " == 1", "no expression; expected one such as"),
        ("not " * 2000 + "blank", "a deeply nested expression; expected a simpler one"),
        ("row == 1 and " * 2000 + "row == 1", "26,008 characters; expected at most 10,000"),
    ],
)
def test_what_is_wrong_is_said(expression: str, message: str) -> None:
    with pytest.raises(SelectionError, match=re.escape(message)):
        parse_expression(expression, TABLE.schema)


TOKENS = (
    "row p_E blank name class error `p_In-between (a.b)` `x` embedding 0 -1 1e400 0.5 'E' \"it\" None True () [] [1,2] "
    "( ) [ ] and or not in is < <= == != + - * / & | ~ . , : := lambda if else ** @ # \\ ` ' { } \x00 é"
)


@given(tokens=st.lists(st.sampled_from(TOKENS.split(" ")), max_size=9))
@settings(max_examples=num_examples(500))
def test_any_text_selects_or_is_refused_in_one_line(tokens: list[str]) -> None:
    try:
        find_rows(" ".join(tokens))
    except SelectionError as error:
        assert re.fullmatch(r"--select .*: got .*; expected [^\n]*", str(error))
