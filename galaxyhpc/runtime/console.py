"""The console of the commands, on a terminal and in a log."""

from __future__ import annotations

from rich.console import Console

LOG_WIDTH = 170


def make_console() -> Console:
    """Return a console without markup, since paths and errors contain brackets; a log or a pipe gets a wide one."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console
