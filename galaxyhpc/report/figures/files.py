"""Write figures atomically; the same figure gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from galaxyhpc.storage.files import atomic_write

FORMATS = ("png", "pdf")


def save_figure(figure: Figure, path: Path, dpi: float, formats: Sequence[str] = FORMATS) -> bytes:
    """Write a figure as `path` with the suffix of each format; return the PNG, which is among `formats`."""
    for kind in formats:
        with atomic_write(path.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else {})
    return path.with_suffix(".png").read_bytes()
