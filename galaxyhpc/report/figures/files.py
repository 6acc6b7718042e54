"""Figures on disk, whole, and the same bytes from the same figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from galaxyhpc.storage.files import atomic_write

FORMATS = ("png", "pdf")


def save_figure(figure: Figure, path: Path, dpi: float, formats: Sequence[str] = FORMATS) -> bytes:
    """Write a figure beside its name's endings, at so many dots per inch; return the PNG, which is among `kinds`."""
    for kind in formats:
        with atomic_write(path.with_suffix(f".{kind}")) as aside:
            figure.savefig(aside, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else {})
    return path.with_suffix(".png").read_bytes()
