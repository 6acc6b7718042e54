"""report.html in a real browser: light and dark, on a phone, on paper, with hostile text in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.runs import make_run, record_epochs, record_event
from helpers.tables import make_tables

from galaxyhpc.analysis import misclassified
from galaxyhpc.analysis.misclassified import Misclassification
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.config import yaml_loader
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.metrics import compute_metrics
from galaxyhpc.evaluation.results import RunLogits
from galaxyhpc.report import html_report, page, run_pages
from galaxyhpc.report.run_pages import RunDetails

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>\u2028"
LABELS = ["CNN", "C4", "D4", f"D8 {HOSTILE}"]
CLASS_NAMES = (*GALAXY10_CLASSES[:2], HOSTILE, *GALAXY10_CLASSES[3:])
RUN = "C4-s1"


def make_image(row: int) -> np.ndarray:
    return np.full((8, 8, 3), 20 * (row % 10), dtype=np.uint8)


PNG = page.base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def make_report_tables() -> Tables:
    """Tables of four networks of two seeds; one run is missing, and a name and its reason are hostile."""
    tables = make_tables(LABELS, seeds=2, flaw="flattening head (not invariant)")
    runs = tables.training.drop_duplicates("run_id")[["run_id", "label", "seed"]].assign(fold=0)
    runs = runs.assign(reason="", accuracy=0.7, balanced_accuracy=0.6, macro_f1=0.6, parameters=400_000)
    lost = {
        "run_id": "lost-s1",
        "label": LABELS[3],
        "seed": 1,
        "fold": 0,
        "reason": f"failed: {HOSTILE}",
        "parameters": 1,
    }
    hardest = pd.DataFrame({"row": [5, 7], "truth": [1, 2], "predicted": [2, 3], "fraction_wrong": [1.0, 0.5]})
    return replace(tables, runs=pd.concat([runs, pd.DataFrame([lost])], ignore_index=True), hardest=hardest)


def make_details(run_id: str) -> RunDetails:
    metrics = pd.DataFrame({"condition": ["clean", "shot_noise"], "severity": [0.0, 3.0], "accuracy": [0.75, 0.5]})
    metrics = metrics.assign(balanced_accuracy=0.7, macro_f1=0.7, nll=1.0, brier=0.5, ece=[0.1, np.nan])
    events = (run_pages.HistoryEvent("2026-01-02 03:04:05", f"failed: {HOSTILE}", HOSTILE),)
    settings = {"model.group": HOSTILE, "seed": run_id[-1]}
    return RunDetails(
        run_id, settings, {"commit": "abc"}, events, metrics, np.eye(10, dtype=int), (Misclassification(5, 1, 2, 0.5),)
    )


def write(path: Path, tables: Tables, generated: bool = True) -> Path:
    info = ReportInfo(f"sweep {HOSTILE}", generated, 0.16, f"Why?\n\n{HOSTILE}", "f" * 64, 210, "65 px", CLASS_NAMES)
    run_details = [make_details(run_id) for run_id in tables.runs["run_id"][:-1]]
    images = {row: make_image(row) for row in html_report.select_galaxies(run_details, tables.hardest)}
    figures = {"accuracy_angle": PNG, f"x{HOSTILE}": PNG}
    html_report.write_html(path, tables, info, run_details, figures, images, [f"Bear in mind: {HOSTILE}"])
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report") / "report.html", make_report_tables())


@pytest.fixture(scope="module")
def tab(open_page: Any, file: Path) -> Any:
    """The report, opened once; its console messages and requests are in `messages`."""
    return open_page(file)


@pytest.fixture(autouse=True)
def as_opened(request: pytest.FixtureRequest) -> None:
    """Begin each test of the browser where the first began, without the cost of loading anew."""
    if "tab" in request.fixturenames:
        tab = request.getfixturevalue("tab")
        tab.set_viewport_size({"width": 1300, "height": 900})
        tab.emulate_media(media="screen", color_scheme="light")
        tab.evaluate("location.hash = ''")
        tab.wait_for_selector("#report:not([hidden])")


def table(tab: Any, title: str) -> Any:
    return tab.locator("figure.table").filter(has=tab.get_by_role("heading", name=title, exact=True))


def column(tab: Any, title: str, number: int) -> list[str]:
    return table(tab, title).locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def open_run(tab: Any, run_id: str = RUN) -> None:
    tab.evaluate("id => { location.hash = 'run-' + encodeURIComponent(id) }", run_id)
    tab.wait_for_selector("#run h1")


def test_the_page_logs_no_error_and_requests_only_itself(tab: Any, file: Path) -> None:
    open_run(tab)
    assert [message for message in tab.messages if not message.startswith("data:")] == [file.as_uri()]


def test_a_table_sorts_by_numbers_both_ways_and_says_so(tab: Any) -> None:
    head = table(tab, "All networks").get_by_role("button", name="accuracy (%)").first
    shown = []
    for order in ("descending", "ascending"):
        head.press("Enter")
        assert head.locator("..").get_attribute("aria-sort") == order
        shown.append([float(text.split()[0]) for text in column(tab, "All networks", 2)])
    assert shown[0] == sorted(shown[1], reverse=True) and shown[1] == sorted(shown[1]) and len(set(shown[0])) > 2


def test_severities_sort_as_numbers_and_missing_values_come_last(tab: Any) -> None:
    data_table = table(tab, "Every condition and severity")
    data_table.get_by_role("searchbox").fill("c4 shot_noise")
    data_table.get_by_role("button", name=re.compile("^severity")).click()
    assert column(tab, "Every condition and severity", 3)[:2] == ["5", "5"]
    data_table.get_by_role("searchbox").fill("c4 clean")
    assert column(tab, "Every condition and severity", 2) == ["clean"]
    data_table.get_by_role("searchbox").fill("")
    head = data_table.get_by_role("button", name="consistency with clean")
    for _ in range(2):
        head.click()
        assert "–" not in column(tab, "Every condition and severity", 8)


def test_the_filter_keeps_rows_with_all_words_and_counts_them(tab: Any) -> None:
    data_table = table(tab, "All pairs of networks")
    data_table.get_by_role("searchbox").fill("cnn D4")
    assert data_table.locator("output").inner_text() == "1 of 6 rows"
    data_table.get_by_role("searchbox").fill("")
    assert data_table.locator("output").inner_text() == "6 rows"


def test_the_better_network_is_named_first_with_the_interval_of_the_difference(tab: Any) -> None:
    ahead = column(tab, "All pairs of networks", 3)
    assert all(re.fullmatch(r"\+\d+\.\d \([+−]\d+\.\d to \+\d+\.\d\)", text) for text in ahead), ahead


def test_a_long_table_shows_its_first_rows_and_the_others_on_a_click(tab: Any) -> None:
    title = "Corruption error by condition"
    assert len(column(tab, title, 1)) == 25
    table(tab, title).get_by_role("button", name=re.compile("^Show all")).click()
    assert len(column(tab, title, 1)) == int(re.sub(r"\D", "", table(tab, title).locator("output").inner_text()))


def test_a_runs_page_opens_by_its_link_with_curves_images_and_numbers(tab: Any) -> None:
    table(tab, "All runs").get_by_role("link", name=RUN).click()
    tab.wait_for_selector("#run h1")
    assert tab.evaluate("document.activeElement.textContent") == RUN
    lines = tab.locator("#run svg .line").evaluate_all("lines => lines.map((line) => line.points.numberOfItems)")
    assert lines == [30] * 4
    sizes = tab.locator("#run .thumbnails img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    assert sizes == [8]
    assert f"predicted as {HOSTILE[:-1]}" in tab.locator("#run .thumbnails").inner_text()
    rows = tab.locator("#run figure.table").filter(has_text="shot_noise").locator("tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows][1] == [
        "shot_noise",
        "3",
        "0.1 of the exposure time",
        "50.0",
        "70.0",
        "70.0",
        "1.000",
        "–",
    ]
    tab.get_by_role("link", name="Next run").click()
    tab.wait_for_function("document.querySelector('#run h1').textContent != 'C4-s1'")
    tab.get_by_role("link", name="← Report").click()
    heading = tab.get_by_role("heading", name="Runs", exact=True)
    heading.wait_for()  # the page changes after the click
    assert heading.is_visible()


def test_an_incomplete_run_gives_its_reason_on_its_page(tab: Any) -> None:
    open_run(tab, "lost-s1")
    assert "Not complete: failed:" in tab.locator("#run").inner_text()


def test_hostile_text_is_shown_and_does_nothing(tab: Any) -> None:
    for run_id in (None, RUN, f"{LABELS[3]}-s0"):
        if run_id:
            open_run(tab, run_id)
        assert tab.locator("img[src='x']").count() == 0 and "owned" not in tab.title().partition("</script>")[0]
        assert "<img src=x onerror" in tab.locator("body").inner_text()
    assert tab.locator("script:not([type])").count() == 1


def test_nothing_scrolls_sideways_on_a_phone_but_tables_and_figures_in_their_boxes(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    for run_id in (None, RUN):
        if run_id:
            open_run(tab, run_id)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_on_paper_tables_are_whole_and_buttons_gone(tab: Any) -> None:
    data_table = table(tab, "Each class")
    rows = int(data_table.locator("output").inner_text().partition(" ")[0])
    assert data_table.locator("tbody tr").count() == 25 < rows
    tab.emulate_media(media="print")
    data_table.locator("tbody tr").nth(rows - 1).wait_for(state="attached")
    assert data_table.locator("tbody tr").count() == rows
    assert data_table.locator(".box").evaluate("box => getComputedStyle(box).overflow") == "visible"
    printed = "heads => heads.map((head) => getComputedStyle(head, '::before').content)"
    assert data_table.locator("thead th").evaluate_all(printed)[:2] == ['"network"', '"class"']
    assert not data_table.get_by_role("searchbox").is_visible() and not data_table.locator(".more button").is_visible()


CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((part) => part / (colour.startsWith("color(") ? 1 : 255))
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (element) => {
    const colour = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return parts(colour)[3] === 0 ? ground(element.parentElement) : colour;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let [worst, where] = [99, ""];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, script, .skip")) continue;
    if (!element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst) [worst, where] = [ratio, walker.currentNode.data.slice(0, 60)];
  }
  return [worst, where];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    grounds = []
    for run_id in (None, RUN):
        if run_id:
            open_run(tab, run_id)
        worst, where = tab.evaluate(CONTRAST)
        assert worst >= 4.5, where
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert set(grounds) == {"rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)"}


def test_headings_are_in_order_and_figures_have_alt_texts(tab: Any) -> None:
    for run_id in (None, RUN):
        if run_id:
            open_run(tab, run_id)
        script = "all => all.filter((one) => one.checkVisibility()).map((one) => Number(one.tagName[1]))"
        levels = tab.locator("h1, h2, h3, h4").evaluate_all(script)
        assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert tab.locator("figure.picture img").evaluate_all("images => images.every((image) => image.alt.length > 5)")


def text_of(file: Path) -> str:
    """What stands in the page as HTML, without scripts and tags."""
    return re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", file.read_text()))


def test_the_same_runs_give_the_same_bytes(file: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again.html", make_report_tables()).read_bytes() == file.read_bytes()


def test_warnings_are_at_the_top(file: Path) -> None:
    text = text_of(file).partition("Missing runs")[0]
    for words in (
        GENERATED_NOTICE,
        "7/8 runs complete",
        "flattening head (not invariant), by CNN",
        "not all planned runs are complete of D8",
        "Bear in mind",
    ):
        assert words in text


def test_every_table_and_figure_of_generated_galaxies_says_so(file: Path, tmp_path: Path) -> None:
    html = file.read_text()
    captions = re.findall(r"(?s)<figcaption.*?</figcaption>", html)
    assert len(captions) > 8 and all(GENERATED_NOTICE in caption for caption in captions)
    assert GENERATED_NOTICE not in write(tmp_path / "real.html", make_report_tables(), generated=False).read_text()


def test_a_networks_numbers_carry_its_flaw_and_its_missing_seeds(file: Path) -> None:
    tables = [
        json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', file.read_text())
    ]
    words = [set(data_table["columns"][0]["words"]) for data_table in tables if len(data_table["columns"]) > 5]
    assert sum("CNN, flattening head (not invariant)" in names for names in words) >= 3
    assert not any("CNN" in names for names in words[:-1])  # the last lists runs
    assert any(name.endswith(", 1/2 runs") for names in words for name in names)


def test_a_sweep_without_results_has_a_report(tmp_path: Path) -> None:
    tables = make_tables(["CNN", "C4"])
    absent = dict.fromkeys(("accuracy_mean", "ci_low", "ci_high", "mce", "mce_low", "mce_high"), np.nan)
    networks = tables.networks.assign(**absent, seeds_done=0)
    runs = pd.DataFrame({"run_id": ["a-s0"], "label": ["CNN"], "seed": [0], "fold": 0, "reason": ["never submitted"]})
    runs = runs.assign(accuracy=np.nan, balanced_accuracy=np.nan, macro_f1=np.nan, parameters=1)
    empty = Tables(tables.summary.iloc[:0], networks, runs=runs)
    html_report.write_html(tmp_path / "report.html", empty, ReportInfo("x", False, np.nan), [], {}, {}, [])
    text = text_of(tmp_path / "report.html")
    assert "0/1 runs complete" in text and "no measurements yet" in text


def test_a_page_is_made_from_the_runs_own_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    record_epochs(run, [0.3, 0.5])
    record_event(run, "failed", why="disk full", cause="disk", trace="Traceback\n  OSError")
    labels = np.array([0, 1, 2, 3], dtype=np.uint8)
    clean, noisy = (np.eye(10, dtype=np.float32)[classes] for classes in ([0, 2, 1, 3], [0, 1, 1, 4]))
    rows = np.array([10, 20, 30, 40], dtype=np.int32)
    logits = {("clean", 0.0): clean, ("shot_noise", 1.0): noisy}
    results.save(run, RunLogits(rows, labels, rows, logits, "w", "f", False))
    predictions, table = results.read_predictions(run), results.read_counts(run)
    assert predictions is not None and table is not None
    details = run_pages.read_details(
        run, table.assign(**compute_metrics(results.to_counts(table))), misclassified.find_misclassified(predictions)
    )
    assert details.misclassified == (Misclassification(30, 2, 1, 1.0), Misclassification(20, 1, 2, 0.5))
    assert details.settings["model.group"] == "C4" and details.metrics_table["accuracy"].tolist() == [0.5, 0.5]
    assert [event.text.partition(":")[0] for event in details.events] == ["2 epochs done", "failed on node1"]
    assert (
        details.events[1].traceback.endswith("OSError")
        and details.confusion is not None
        and details.confusion.sum() == 4
    )


def test_a_damaged_run_has_a_page_with_less_on_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.config_file.write_text("{")
    (run.path / "provenance.json").write_text("[1]")
    details = run_pages.read_details(run, None)
    assert (details.settings, details.provenance, details.events, details.misclassified) == ({}, {}, (), ())


def test_images_are_those_of_the_hardest_galaxies_then_of_most_pages() -> None:
    def with_mistakes(*rows: int) -> RunDetails:
        return replace(make_details(RUN), misclassified=tuple(Misclassification(row, 0, 1, 0.5) for row in rows))

    hardest = pd.DataFrame({"row": [9]})
    assert html_report.select_galaxies([with_mistakes(1, 2, 9), with_mistakes(2, 3)], hardest, max_images=3) == [
        9,
        2,
        1,
    ]


def test_a_sweeps_question_is_the_comment_it_begins_with() -> None:
    assert (
        yaml_loader.parse_question("# Which group\n# is best?\n#\n# Costs 1 h.\n\nname: x\n# no")
        == "Which group is best?\n\nCosts 1 h."
    )
    assert yaml_loader.parse_question("name: x\n") == ""


def test_a_table_of_very_many_rows_says_how_many_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_TABLE_ROWS", 3)
    many = page.Table("t", "c", pd.DataFrame({"x": range(5)}), (page.Column("x", "x", "number"),), "x.csv")
    html = page.render_page("t", [page.Section("s", tables=(many,))], generated=False)
    assert "The first 3 of 5 rows" in html and '"numbers":[[0.0,1.0,2.0]]' in html


def test_a_run_of_many_classes_lists_its_most_frequent_errors_instead_of_a_matrix() -> None:
    confusion = 5 * np.eye(300, dtype=np.int64)
    confusion[np.arange(299), np.arange(1, 300)] = np.arange(299)
    details = replace(make_details("a-s0"), confusion=confusion)
    runs = pd.DataFrame({"run_id": ["a-s0"], "label": ["C4"], "seed": [0], "fold": [0], "reason": [""]})
    names = [f"class {n}" for n in range(300)]
    pages = run_pages.make_run_pages(runs, pd.DataFrame(), [details], {}, names)
    assert pages["shared"]["classes"] == names
    assert pages["run-data-a-s0"]["confusion"] == [[n, n + 1, n] for n in range(298, 198, -1)]


def test_a_runs_page_has_the_names_of_its_own_galaxies() -> None:
    runs = pd.DataFrame({"run_id": ["a-s0"], "label": ["C4"], "seed": [0], "fold": [0], "reason": [""]})
    names = {5: "NGC 1300", 6: "shown on no page"}
    pages = run_pages.make_run_pages(runs, pd.DataFrame(), [make_details("a-s0")], {}, GALAXY10_CLASSES, names)
    assert pages["shared"]["names"] == {5: "NGC 1300"}
