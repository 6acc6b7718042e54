"""The console prints paths and errors unchanged."""

from __future__ import annotations

import pytest

from galaxyhpc.runtime.console import LOG_WIDTH, make_console


def test_brackets_are_not_markup_and_a_pipe_is_as_wide_as_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    line = "node[1-2] [red] " + "x" * (LOG_WIDTH - 16)
    make_console().print(line)
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("0", LOG_WIDTH), ("many", LOG_WIDTH), ("", LOG_WIDTH)])
def test_columns_sets_the_width_of_a_log_if_it_is_a_width(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert make_console().width == width
