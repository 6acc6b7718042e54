"""Where each figure stands in a report, what it is called, and what is seen in it."""

from __future__ import annotations

from galaxyhpc.report.figures import caption
from galaxyhpc.report.page import Figure


def captioned(name: str, png: bytes) -> Figure:
    """Return a figure with its caption; NAME.pdf lies beside the page."""
    found = caption(name)
    return Figure(found.title, found.words, f"{found.title}. {found.words}".strip(), png, (f"{name}.pdf",))
