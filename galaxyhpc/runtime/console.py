"""The terminal: one width for people, another for logs."""

from __future__ import annotations

from rich.console import Console

LOG_WIDTH = 170


def make_console() -> Console:
    """Return a console that prints text as it is: paths and errors hold brackets. A log or a pipe gets a wide one."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console
