"""YAML with locations: how scalars are read, where values were written, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galaxyhpc.config import yaml_loader
from galaxyhpc.config.yaml_loader import (
    ConfigError,
    Entry,
    SourceLocation,
    dump_yaml,
    format_errors,
    format_value,
    parse_question,
    read_leading_comment,
    read_yaml,
    read_yaml_file,
)


def read(text: str, start: SourceLocation | None = None, key: str = "") -> tuple[Entry | None, list[str]]:
    """Read text as the file `x.yaml`; return the entry and the errors."""
    entry, errors = read_yaml(text, start or SourceLocation("x.yaml", 1), key)
    return entry, list(format_errors(errors))


def read_valid(text: str) -> Entry:
    entry, errors = read(text)
    assert entry is not None and not errors, errors
    return entry


def list_lines(entry: Entry, key: str = "") -> dict[str, int]:
    """Return the line of every value by its key."""
    lines = {key: entry.location.line}
    if isinstance(entry.value, dict):
        for name, child in entry.value.items():
            lines |= list_lines(child, f"{key}.{name}")
    elif isinstance(entry.value, list):
        for index, child in enumerate(entry.value):
            lines |= list_lines(child, f"{key}[{index}]")
    return lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("-7", -7), ("+7", 7), ("010", 10), ("1_000", "1_000")),
        *(("true", True), ("FALSE", False), ("yes", "yes"), ("on", "on"), ("null", None), ("~", None), ("", None)),
        *(("12:30", "12:30"), ("2020-01-01", "2020-01-01"), ("0x10", "0x10"), (".inf", ".inf"), ("1e", "1e")),
        *(("'7'", "7"), ('"true"', "true"), ("!!str 7", "7"), ("!!float 7", 7.0), ("٣", "٣")),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    entry = read_valid(f"a: {text}\n").to_python()
    assert entry == {"a": value} and type(entry["a"]) is type(value)


def test_a_value_has_the_line_of_its_key_and_an_item_has_its_own_line() -> None:
    entry = read_valid("a:\n  b:\n    - 1\n    -\n      2\nc: >\n  text\n  text\n")
    assert list_lines(entry) == {"": 1, ".a": 1, ".a.b": 2, ".a.b[0]": 3, ".a.b[1]": 5, ".c": 6}


def test_a_merged_value_keeps_the_line_where_it_was_written_and_yields_to_one_written_here() -> None:
    entry = read_valid("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n")
    assert entry.to_python()["b"] == {"x": 1, "y": 3}
    lines = list_lines(entry)
    assert (lines[".b.x"], lines[".b.y"]) == (2, 6)


def test_of_several_merged_mappings_the_first_wins() -> None:
    entry = read_valid("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\n")
    assert entry.to_python()["c"] == {"x": 1, "y": 2}


def test_text_without_lines_has_errors_without_lines() -> None:
    _, errors = read("\n\n{a: 1, a: 2}", SourceLocation("--set"))
    assert errors == ["--set: a: duplicate key, first at --set"]


def test_all_errors_of_a_document_are_reported_in_the_order_of_its_lines_and_the_rest_is_read() -> None:
    entry, errors = read("b: !!int x\na: 1\n7: 2\na: 3\nc: !secret {}\nd: {<<: [3]}\n")
    assert errors == [
        "x.yaml:1: b: got x; expected !!int, as its tag says",
        "x.yaml:3: got the key '7'; expected names as keys",
        "x.yaml:4: a: duplicate key, first at x.yaml:2",
        "x.yaml:5: c: got the tag !secret; expected plain values",
        "x.yaml:6: d: got 3; expected a mapping to merge with <<",
    ]
    assert entry is not None and isinstance(entry.value, dict)
    assert entry.to_python() == {"b": None, "a": 1, "c": None, "d": {}}
    assert [name for name, child in entry.value.items() if not child.is_valid] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\n--- \nb: 2\n", "x.yaml:2: not valid YAML: but found another document"),
        ("a:\n\t- 1", "x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("\n'a", "x.yaml:2: not valid YAML: found unexpected end of stream"),
        ("a: *b", "x.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: \x1b[2J", "x.yaml:1: not valid YAML: special characters are not allowed"),
        ("a: {b: ${HOME}}", "x.yaml:1: not valid YAML: expected ',' or '}', but got '{'; quote '${NAME}'"),
    ],
)
def test_text_that_is_no_yaml_is_one_error_with_its_line(text: str, error: str) -> None:
    entry, errors = read(text)
    assert entry is None and len(errors) == 1
    assert errors[0].startswith(error) and errors[0].isprintable()


def test_forty_levels_are_read_and_forty_one_are_refused() -> None:
    read_valid("[" * 40 + "1" + "]" * 40)
    assert read("[" * 41 + "1" + "]" * 41) == (
        None,
        ["x.yaml:1: got more than 40 levels, or an alias inside its own anchor"],
    )


def test_values_are_counted_as_often_as_aliases_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &a [1, 2]\nb:\n- *a\n- *a\n"  # the document, b, and three times a list of 2
    monkeypatch.setattr(yaml_loader, "MAX_VALUES", 11)
    read_valid(text)
    monkeypatch.setattr(yaml_loader, "MAX_VALUES", 10)
    assert read(text)[1] == ["x.yaml:1: got more than 10 values, aliases expanded; expected fewer"]
    assert read("a.b.c: 1\n" * 3)[1] and "more than 10 values" in read(f"a{'.b' * 21}: [1]")[1][0]


def test_a_file_has_as_many_bytes_as_allowed_or_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")  # a byte order mark counts
    start = SourceLocation(str(path), 1)
    monkeypatch.setattr(yaml_loader, "MAX_BYTES", 7)
    assert read_yaml_file(path) == (Entry({"a": Entry(1, start)}, start), [])
    monkeypatch.setattr(yaml_loader, "MAX_BYTES", 6)
    entry, errors = read_yaml_file(path)
    assert entry is None
    assert format_errors(errors) == (f"{path}: got more than 6 bytes; expected a YAML file of at most as many",)


def test_a_zero_byte_in_a_path_is_an_error_on_one_line() -> None:
    entry, (error,) = read_yaml_file(Path("a\0b"))
    assert entry is None and "cannot be read: embedded null byte" in str(error)


def test_a_dotted_key_is_a_part_of_a_part_beside_those_written_nested() -> None:
    entry = read_valid("a.b: 1\na:\n  c.d: 2\na.c: {e: 3}\nlist: [{x.y: 4}]\n")
    assert entry.to_python() == {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "list": [{"x": {"y": 4}}]}
    assert (list_lines(entry)[".a.c.d"], list_lines(entry)[".list[0].x.y"]) == (3, 5)
    assert read("a.b: 1\na: {b: 2}\na.b.c: 3\n")[1] == [
        "x.yaml:2: a.b: duplicate key, first at x.yaml:1",
        "x.yaml:3: a.b: duplicate key, first at x.yaml:1",
    ]


def test_a_merge_yields_to_the_key_that_is_written_and_nested_parts_are_joined_after_it() -> None:
    entry = read_valid("a: &a {x.y: 1, x.z: 2}\nb: {<<: *a, x.y: 3}\nc: {<<: *a, x: {w: 4}}\n")
    assert entry.to_python()["b"] == {"x": {"y": 3, "z": 2}}
    assert entry.to_python()["c"] == {"x": {"y": 1, "z": 2, "w": 4}}


def test_a_key_that_cannot_be_printed_is_refused_at_its_line_and_the_rest_is_read() -> None:
    entry, errors = read('a: 1\n"\\ud800": 2\n')
    assert entry is not None and entry.to_python() == {"a": 1}
    assert errors == [r"x.yaml:2: got the key '\ud800'; expected names as keys"]


def test_a_text_may_be_the_value_of_a_key() -> None:
    entry, errors = read("{c: 1}", SourceLocation("--set"), key="a.b")
    assert entry is not None and entry.to_python() == {"a": {"b": {"c": 1}}} and not errors


def test_forty_dots_in_a_key_are_read_and_more_are_refused() -> None:
    assert read("a" + ".a" * 39 + ": 1")[1] == []
    for _, (error,) in (
        read("a" + ".a" * 40 + ": 1"),
        read("a" + ".a" * 400 + ": 1"),
        read("1", key="a" + ".a" * 4000),
    ):
        assert "got more than 40 levels" in error


def test_a_path_leads_to_the_innermost_entry_that_exists() -> None:
    entry = read_valid("a:\n  - 1\n  - b: 2\n")
    for path, line in (((), 1), (("a", 1, "b"), 3), (("a", 1, "number", "b"), 3), (("a", 5), 1), (("x",), 1)):
        assert entry.find(path).location.line == line, path


def test_what_is_invalid_has_no_parts_and_makes_a_list_not_all_valid() -> None:
    entry = read_valid("a: {b: [1, [2]]}")
    inner = entry.find(["a", "b"])
    assert [item.value for item in inner.items][:1] == [1] and inner.is_all_valid
    entry.find(["a", "b", 1, 0]).is_valid = False
    assert inner.is_valid and not inner.is_all_valid
    inner.is_valid = entry.is_valid = False
    assert inner.items == [] and entry.members == {}


def test_errors_are_sorted_by_file_and_line_and_told_once() -> None:
    errors = [ConfigError(SourceLocation("x.yaml", line), "a.b", "wrong") for line in (12, 3, 12)]
    errors.append(ConfigError(SourceLocation("--set"), "", "wrong"))
    assert format_errors(errors) == ("--set: wrong", "x.yaml:3: a.b: wrong", "x.yaml:12: a.b: wrong")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(("C4", "C4"), ("yes", "yes"), ("null", "'null'"), ("7", "'7'"), ("", "''"), ("a b", "'a b'")),
        *((None, "null"), (True, "true"), (0.1, "0.1"), ([1, ["a"]], "[1, [a]]"), ({"a": None}, "{a: null}")),
        *(
            ("x" * 100, "x" * 57 + "..."),
            (list(range(99)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."),
        ),
        ("\x1b[2J", r"'\x1b[2J'"),
    ],
)
def test_a_value_is_shown_as_its_author_would_have_written_it_and_briefly(value: object, text: str) -> None:
    assert format_value(value) == text


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), inner),
    max_leaves=9,
)


@given(value=st.dictionaries(st.from_regex(r"[a-z]\w*", fullmatch=True), PLAIN, min_size=1))
def test_what_is_dumped_is_read_back_to_the_same(value: dict[str, Any]) -> None:
    entry, errors = read(dump_yaml(value))
    assert entry is not None and not errors
    assert entry.to_python() == value


def test_dumped_data_has_no_aliases() -> None:
    shared = ["clean", "flip"]
    assert "&" not in dump_yaml({"a": shared, "b": shared})


def test_the_leading_comment_ends_at_the_first_line_that_is_no_comment() -> None:
    text = "# Which group\n#\n# is best?\n\n# not this\nname: x # nor this\n"
    assert read_leading_comment(text) == "# Which group\n#\n# is best?\n"
    assert read_leading_comment("name: x\n# no") == read_leading_comment("") == ""
    assert read_leading_comment("# without an end") == "# without an end"


def test_a_question_is_the_paragraphs_of_the_leading_comment() -> None:
    assert parse_question("## Which   group\n#is best?\n#\n#\n# Costs 1 h.\nname: x\n") == (
        "Which group is best?\n\nCosts 1 h."
    )
    assert parse_question("#\n#\nname: x") == parse_question("name: x") == ""
