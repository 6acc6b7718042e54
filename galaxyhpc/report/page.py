"""One self-contained HTML page: text, facts, figures and tables that sort and filter. The page loads no other file.

Tables are stored as JSON and drawn by page.js, first rows only if long, so a page of 100,000 rows opens at once.
Names, reasons and logs are untrusted text: jinja escapes it in the page, `format_json` in the JSON, the scripts only
set textContent, and the page's content security policy lets no other script run and nothing be fetched.

    network = page.Column("network", "label")
    accuracy = page.Column("accuracy (%)", ("accuracy_mean", "ci_low", "ci_high"), "interval", scale=100, digits=1)
    table = page.Table("Networks", "Clean test galaxies.", frame, (network, accuracy), file="networks.csv")
    figure = page.PageFigure("Rotation", "A caption.", "The same for screen readers.", png, ("accuracy_angle.pdf",))
    section = page.Section("Networks", paragraphs=("A paragraph.",), figures=(figure,), tables=(table,))
    html = page.render_page("A title", [section], generated=True)
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

from galaxyhpc.analysis.tables import GENERATED_NOTICE

MAX_TABLE_ROWS = 20_000  # of a table on the page, which so stays a few megabytes; the CSV file has all
SCRIPT_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def make_data_uri(image_format: str, image: bytes) -> str:
    """Return an image, `image_format` png or jpeg, as a data URI."""
    return f"data:image/{image_format};base64,{base64.b64encode(image).decode()}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `source` names a column of the frame; for an interval those of value, lower and upper limit. Numbers are multiplied
    by `scale` and shown with `digits` decimals, None for as many as they have; a value that is not finite shows as a
    dash and sorts last. A `run` is a run id with a link to the run's page. `bold_source` names a boolean column: where
    it is true the cell is bold.
    """

    heading: str
    source: str | tuple[str, str, str]
    kind: Literal["text", "number", "interval", "p", "run"] = "text"
    scale: float = 1.0
    digits: int | None = 0
    signed: bool = False  # + before positive numbers
    bold_source: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """A table, its rows in the order of the frame. `file` is the name of its CSV file beside the page, if any."""

    title: str
    caption: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    file: str = ""

    @property
    def truncation_note(self) -> str:
        """A note that not all rows are on the page; empty if they are."""
        if len(self.frame) <= MAX_TABLE_ROWS:
            return ""
        return f"The first {MAX_TABLE_ROWS:,} of {len(self.frame):,} rows are on this page."


@dataclass(frozen=True, eq=False)
class PageFigure:
    """A figure in PNG with its caption and `alt` text; `files` lie beside the page."""

    title: str
    caption: str
    alt: str
    png: bytes
    files: tuple[str, ...] = ()

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels: two thirds of the image's own."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width * 2 // 3, height * 2 // 3

    @property
    def uri(self) -> str:
        return make_data_uri("png", self.png)


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small image in JPEG, with a title and a caption below it."""

    title: str
    caption: str
    jpeg: bytes

    @property
    def uri(self) -> str:
        return make_data_uri("jpeg", self.jpeg)


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page with a heading: paragraphs, warnings, facts, figures, thumbnails, tables, in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[PageFigure, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not any((self.paragraphs, self.warnings, self.facts, self.figures, self.thumbnails, self.tables))

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_page(
    title: str,
    sections: Sequence[Section],
    generated: bool,
    lead: Sequence[str] = (),
    json_data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    title : heading of the page
    sections : parts of the page, with distinct titles
    generated : whether the galaxies are simulated, which the page, each table and each figure then say
    lead : paragraphs below the title
    json_data : data for `scripts`, by the id of the script element that holds it
    scripts : files of this package, run after page.js
    """
    script = Markup("\n".join(map(_read_resource, ["page.js", *scripts])))
    style = Markup(_read_resource("page.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read_resource("page.html")).render(
        title=title,
        sections=sections,
        generated=GENERATED_NOTICE if generated else "",
        lead=lead,
        data={name: Markup(format_json(value)) for name, value in (json_data or {}).items()},
        table_json=lambda table: Markup(format_json(_pack_table(table))),
        script=script,
        style=style,
        script_hash=_compute_csp_hash(script),
        style_hash=_compute_csp_hash(style),
    )


@cache
def _read_resource(name: str) -> str:
    return (resources.files("galaxyhpc.report") / name).read_text(encoding="utf-8")


def _compute_csp_hash(text: str) -> str:
    """Return the hash of a script or style for the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def format_json(value: Any) -> str:
    """Return ASCII JSON that is safe inside a script element; non-finite numbers must be None already."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).translate(SCRIPT_ESCAPES)


def round_for_json(values: Any, digits: int) -> list[float | None]:
    """Round numbers for JSON; non-finite ones become None."""
    rounded = np.round(np.asarray(values, dtype=float), digits)
    return [
        value if finite else None for value, finite in zip(rounded.tolist(), np.isfinite(rounded).tolist(), strict=True)
    ]


def _pack_table(table: Table) -> dict[str, Any]:
    """Return a table column by column, a third of its size row by row."""
    frame = table.frame[:MAX_TABLE_ROWS]
    return {"rows": len(frame), "columns": [_pack_column(frame, column) for column in table.columns]}


def _pack_column(frame: pd.DataFrame, column: Column) -> dict[str, Any]:
    packed: dict[str, Any] = {"kind": column.kind, "digits": column.digits, "signed": column.signed}
    sources = (column.source,) if isinstance(column.source, str) else column.source
    if column.kind in ("text", "run"):
        codes, texts = pd.factorize(frame[sources[0]].map(_format_value))
        packed |= {"codes": codes.tolist(), "words": list(texts)}
    else:
        digits = 12 if column.kind == "p" else 6 if column.digits is None else column.digits + 2  # two more than shown
        packed["numbers"] = [round_for_json(column.scale * frame[name].astype(float), digits) for name in sources]
    if column.bold_source:
        packed["bold"] = np.flatnonzero(frame[column.bold_source]).tolist()
    return packed


def _format_value(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return "" if pd.isna(value) else str(value)
