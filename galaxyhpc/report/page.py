"""One self-contained HTML page: words, facts, figures and tables that sort and filter. Nothing is loaded from anywhere.

Tables travel as JSON and are drawn by page.js, the first rows of long ones; so a page of 100,000 rows opens at once.
Names, reasons and logs are other people's text: jinja escapes it in the page, `json_text` in the JSON, the scripts
only ever set textContent, and the page's own policy lets no other script run and nothing be fetched.

    network = page.Column("network", "label")
    accuracy = page.Column("accuracy (%)", ("accuracy_mean", "ci_low", "ci_high"), "interval", scale=100, digits=1)
    table = page.Table("Networks", "Clean test galaxies.", frame, (network, accuracy), file="networks.csv")
    figure = page.Figure("Rotation", "What is seen.", "For those who cannot see it.", png, ("accuracy_angle.pdf",))
    section = page.Section("Networks", words=("A paragraph.",), figures=(figure,), tables=(table,))
    html = page.render("A title", [section], generated=True)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from galaxyhpc.analysis.tables import GENERATED

MOST_ROWS = 20_000  # of a table on the page, so that it stays a few megabytes; the file beside it has all
SCRIPT_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def data_uri(kind: str, image: bytes) -> str:
    """Return a picture, `kind` png or jpeg, as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `source` names a column of the frame, of an interval those of value, lower and upper limit. Numbers are multiplied
    by `scale` and shown with `digits` decimals, None for as many as they have; what is not finite shows as a dash and
    sorts last. A `run` is a run id
    that leads to the run's page. `strong` names a column of truth values: where it is true the cell is bold.
    """

    head: str
    source: str | tuple[str, str, str]
    kind: Literal["text", "number", "interval", "p", "run"] = "text"
    scale: float = 1.0
    digits: int | None = 0
    signed: bool = False  # + before what is positive
    strong: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """A table, its rows in the order of the frame. `file` is what it is called beside the page, where it lies there."""

    title: str
    caption: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    file: str = ""

    @property
    def left_out(self) -> str:
        """Say so where not all rows are on the page; empty where they are."""
        if len(self.frame) <= MOST_ROWS:
            return ""
        return f"The first {MOST_ROWS:,} of {len(self.frame):,} rows are on this page."


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture in PNG; the caption says what is seen, `alt` the same to who cannot; `files` lie beside the page."""

    title: str
    caption: str
    alt: str
    png: bytes
    files: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in its pixels of 1/96 inch: two thirds of the picture's own."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width * 2 // 3, height * 2 // 3

    @property
    def uri(self) -> str:
        return data_uri("png", self.png)


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small picture in JPEG and what is said below it: a name, and more."""

    title: str
    words: str
    jpeg: bytes

    @property
    def uri(self) -> str:
        return data_uri("jpeg", self.jpeg)


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page with a heading: paragraphs, warnings, names with values, pictures, tables, in this order."""

    title: str
    words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[Figure, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def empty(self) -> bool:
        return not any((self.words, self.warnings, self.facts, self.figures, self.thumbnails, self.tables))

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(
    title: str,
    sections: Sequence[Section],
    generated: bool,
    lead: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    title : its heading
    sections : their titles are distinct
    generated : the galaxies are generated ones, which the page, each table and each figure then say
    lead : paragraphs below the title
    data : JSON for `scripts` by the id of the element it is found in
    scripts : files of this package, run after page.js
    """
    script = Markup("\n".join(map(_file, ["page.js", *scripts])))
    style = Markup(_file("page.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html")).render(
        title=title,
        sections=sections,
        generated=GENERATED if generated else "",
        lead=lead,
        data={name: Markup(json_text(value)) for name, value in (data or {}).items()},
        table_json=lambda table: Markup(json_text(_packed(table))),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


@cache
def _file(name: str) -> str:
    return (resources.files("galaxyhpc.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what the page's policy calls a script or a style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def json_text(value: Any) -> str:
    """Return JSON that no browser takes for the end of a script, in ASCII; what is not finite must be None before."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).translate(SCRIPT_SAFE)


def rounded(values: Any, digits: int) -> list[float | None]:
    """Return numbers as JSON takes them: rounded, those that are not finite as None."""
    found = np.round(np.asarray(values, dtype=float), digits)
    return [
        value if finite else None for value, finite in zip(found.tolist(), np.isfinite(found).tolist(), strict=True)
    ]


def _packed(table: Table) -> dict[str, Any]:
    """Return a table column by column, which is a third of its size row by row."""
    frame = table.frame[:MOST_ROWS]
    return {"rows": len(frame), "columns": [_packed_column(frame, column) for column in table.columns]}


def _packed_column(frame: pd.DataFrame, column: Column) -> dict[str, Any]:
    packed: dict[str, Any] = {"kind": column.kind, "digits": column.digits, "signed": column.signed}
    sources = (column.source,) if isinstance(column.source, str) else column.source
    if column.kind in ("text", "run"):
        codes, words = pd.factorize(frame[sources[0]].map(_words))
        packed |= {"codes": codes.tolist(), "words": list(words)}
    else:
        digits = 12 if column.kind == "p" else 6 if column.digits is None else column.digits + 2  # more than are shown
        packed["numbers"] = [rounded(column.scale * frame[name].astype(float), digits) for name in sources]
    if column.strong:
        packed["strong"] = np.flatnonzero(frame[column.strong]).tolist()
    return packed


def _words(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else ""
    return "" if pd.isna(value) else str(value)
