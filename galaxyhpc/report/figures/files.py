"""Figures on disk, whole, and the same bytes from the same figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from galaxyhpc.storage.files import atomic_write

KINDS = ("png", "pdf")


def save(figure: Figure, path: Path, dots: float, kinds: Sequence[str] = KINDS) -> bytes:
    """Write a figure beside its name's endings, at so many dots per inch; return the PNG, which is among `kinds`."""
    for kind in kinds:
        with atomic_write(path.with_suffix(f".{kind}")) as aside:
            figure.savefig(aside, format=kind, dpi=dots, metadata={"CreationDate": None} if kind == "pdf" else {})
    return path.with_suffix(".png").read_bytes()
