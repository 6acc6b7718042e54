"""The page of a dataset: correct contents, written atomically, with generated galaxies marked."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.data_files import write_file
from matplotlib import pyplot

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.data import simulate
from galaxyhpc.explore.__main__ import main, make_data_config
from galaxyhpc.report.figures.defaults import use_default_style

GALAXIES = 200  # with one duplicate under two labels, and two overlapping pairs


@dataclass
class ParsedPage(HTMLParser):
    """Parser of a page: its words, images, captions and tables."""

    words: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "img":
            self.images.append(named)
        if tag not in ("img", "meta", "link", "input", "br"):
            self.inside.append("json" if named.get("type") == "application/json" else tag)
        if tag == "h3":
            self.heading, self.heads = "", []
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside[-1:] == ["json"]:
            columns = json.loads(data)["columns"]
            self.tables[self.heading] = dict(zip(self.heads, map(values, columns), strict=True))
        elif self.inside and self.inside[-1] not in ("script", "style"):
            self.words.append(data)
        if self.inside[-1:] == ["h3"]:
            self.heading += data
        if self.inside[-1:] == ["button"] and "thead" in self.inside:
            self.heads.append(data)
        if "figcaption" in self.inside:
            self.captions[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def values(column: dict[str, Any]) -> list[Any]:
    if "codes" in column:
        return [column["words"][code] for code in column["codes"]]
    return list(column["numbers"][0])


def parse_page(page: Path) -> ParsedPage:
    parser = ParsedPage()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("explore") / "galaxies.h5"
    simulate.write_galaxies(path, GALAXIES, 32, 0)
    return path


@pytest.fixture(scope="module")
def page(galaxies: Path) -> ParsedPage:
    output = galaxies.with_name("page.html")
    assert main([str(galaxies), "--output", str(output), "--cache", str(galaxies.with_name("cache"))]) == 0
    assert sorted(path.name for path in galaxies.parent.iterdir()) == ["cache", "galaxies.h5", "page.html"]
    return parse_page(output)


def test_class_counts_and_split_are_those_of_the_file(page: ParsedPage, galaxies: Path) -> None:
    with h5py.File(galaxies) as file:
        counts = np.bincount(file["ans"][:], minlength=10).tolist()
    assert page.tables["Class counts"]["class"] == list(GALAXY10_CLASSES)
    assert page.tables["Class counts"]["galaxies"] == counts
    split = page.tables["Galaxies by class and split"]
    assert split["total"] == counts
    assert np.sum([split[name] for name in ("train", "validation", "test", "dropped")], axis=0).tolist() == counts
    assert sum(split["dropped"]) == 2


def test_the_duplicates_and_overlaps_of_the_catalogue_are_listed(page: ParsedPage) -> None:
    table = simulate.make_catalogue(GALAXIES, 0)
    twin = int(np.flatnonzero(table.shown_indices != np.arange(GALAXIES))[0])
    duplicates, overlaps = page.tables["Duplicates"], page.tables["Overlapping frames"]
    assert list(zip(duplicates["row"], duplicates["other row"], strict=True)) == [
        tuple(sorted((twin, int(table.shown_indices[twin]))))
    ]
    assert (duplicates["identical pixels"], duplicates["conflict"]) == (["yes"], ["yes"])
    assert duplicates["in the split"] == ["dropped"]
    planted = {tuple(sorted(pair)) for pair in table.overlapping_pairs.tolist()}
    assert set(zip(overlaps["row"], overlaps["other row"], strict=True)) == planted
    assert "1 pair of duplicates, 1 of them with conflicting labels (2 galaxies dropped" in page.text


def test_redshifts_that_are_missing_are_counted(page: ParsedPage, galaxies: Path) -> None:
    with h5py.File(galaxies) as file:
        missing = int(np.isnan(file["redshift"][:]).sum())
    assert missing and sum(page.tables["Redshift"]["missing"]) == missing
    assert f"{missing} without one (NaN) are left out" in page.text


def test_every_section_is_there_and_every_figure_can_be_read_aloud(page: ParsedPage) -> None:
    for name in ("Source", "Classes", "Examples", "Sky", "Redshift", "Brightness and noise", "Duplicates and overlaps"):
        assert name in page.words
    assert {"Split", "Opening", "Noise"} <= set(page.words)
    assert len(page.images) == 11
    for image in page.images:
        assert len(image["alt"] or "") > 20
        png = b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert png.startswith(b"\x89PNG") and min(struct.unpack(">II", png[16:24])) > 200


def test_a_browser_shows_the_page_sorts_it_and_asks_for_nothing(
    page: ParsedPage, galaxies: Path, open_page: Any
) -> None:
    file = galaxies.with_name("page.html")
    tab = open_page(file)
    table = tab.locator("figure.table").filter(has=tab.get_by_role("heading", name="Class counts", exact=True))
    for reverse in (True, False):
        table.get_by_role("button", name="galaxies").first.click()
        shown = [int(text) for text in table.locator("tbody tr > :nth-child(3)").all_inner_texts()]
        assert shown == sorted(page.tables["Class counts"]["galaxies"], reverse=reverse)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert [message for message in tab.messages if not message.startswith("data:")] == [file.as_uri()]


def test_generated_galaxies_are_called_so_everywhere(page: ParsedPage) -> None:
    assert GENERATED_NOTICE in page.words[0] or GENERATED_NOTICE in page.text[:200]
    assert all(GENERATED_NOTICE in caption for caption in page.captions)


WRONG = {
    "no such file": (["missing.h5"], "missing.h5: got no such file"),
    "no such user": (["~nosuch/x.h5"], "data.source: got '~nosuch/x.h5'; Could not determine home directory."),
    "not HDF5": (["text.h5"], "got text (no galaxies)"),
    "arrays missing": (["bare.h5"], "ra: got no such array among ans, dec, images"),
    "redshift of another length": (["shifted.h5"], "redshift: got shape (3,); expected (120,)"),
    "size": (["good.h5", "--size", "4"], "--size: got 4; expected 16 to 2048 px"),
    "output is data": (["good.h5", "--output", "good.h5"], "got good.h5; expected a name that ends in .html"),
    "output is a directory": (["good.h5", "--output", "folder.html"], "got folder.html, a directory"),
    "output below a file": (["good.h5", "--output", "text.h5/a.html"], "text.h5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.h5").write_text("no galaxies")
    Path("folder.html").mkdir()
    write_file(Path("good.h5"))
    write_file(Path("bare.h5"), ra=None, pxscale=None, redshift=None)
    write_file(Path("shifted.h5"), redshift=np.zeros(3))
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    arguments, message = WRONG[name]
    assert main([*arguments, "--cache", "cache"]) == 2
    error = capsys.readouterr().err
    assert message in error and len([line for line in error.splitlines() if "converting" not in line]) == 1
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_settings_of_the_data_are_tried_before_there_is_a_sweep(tmp_path: Path) -> None:
    overrides = ["data.columns.label=type", "data.crop=center", "data.image_size=33"]
    config = make_data_config("demo", None, tmp_path, [*overrides, "data.demo.size=50"])
    assert (config.columns.label, config.crop, config.demo.size) == ("type", "center", 50)
    assert make_data_config(str(write_file(tmp_path / "a.h5")), None, tmp_path, ["data.image_size=33"]).image_size == 33


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.colums.label=type", "--set: data.colums: unknown setting; did you mean columns?"),
        ("data.crop=middle", "--set: data.crop: got middle; expected "),
        ("train.epochs=3", "--set: train.epochs: got a setting without use here; expected those of data"),
        ("seeds=3", "--set: seeds: got a setting without use here"),
    ],
)
def test_a_setting_that_does_not_exist_or_is_not_of_the_data_is_refused(override, message, tmp_path, capsys) -> None:
    assert main(["demo", "--set", override, "--output", str(tmp_path / "a.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_name_that_the_font_cannot_write_is_drawn_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    with use_default_style():
        figure, axes = pyplot.subplots()
        axes.set_title("\N{CJK UNIFIED IDEOGRAPH-6C99}")
        figure.canvas.draw()
        pyplot.close(figure)
    assert not recwarn.list
