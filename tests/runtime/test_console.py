"""The console prints paths and errors unchanged."""

from __future__ import annotations

import pytest

from galaxyhpc.runtime.console import LOG_WIDTH, make_console


def test_brackets_are_not_markup_and_a_pipe_is_as_wide_as_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    line = "node[1-2] [red] " + "x" * (LOG_WIDTH - 16)
    make_console().print(line)
    assert capsys.readouterr().out == f"{line}\n"
