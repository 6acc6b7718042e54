"""Figures show each network once, in the same style everywhere, with a readable name, and note what they leave out."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from helpers.tables import make_tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.config.conditions import CONDITIONS, DEFAULT_CONDITIONS
from galaxyhpc.report.figures import FIGURES, assign_styles

ELEVEN = ["CNN", "C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16"]
ABOUT = ReportInfo("all_groups: equal parameters", generated=False, chance_accuracy=0.149)
SOME = ("CNN", "C4", "D4D4D1 e2wrn10-4", "C4 e2resnet18")
FEW = ("clean", "rotation", "rotation_control", "flip", "shot_noise", "psf_moffat+shot_noise")  # quick to draw
FLAW = "flattening head (not invariant)"
Draw = Callable[[Tables, ReportInfo], Figure | None]


@cache
def study(labels: tuple[str, ...], flaw: str = "", conditions: tuple[str, ...] = FEW) -> Tables:
    made = make_tables(list(labels), flaw=flaw)
    return replace(made, summary=made.summary[made.summary["condition"].isin(conditions)])


def draw(name: str, tables: Tables, info: ReportInfo = ABOUT) -> Figure:
    figure = FIGURES[name](tables, info)
    assert figure is not None
    return figure


def close(labels: list[str], base: float, interval: float = 0.02) -> Tables:
    """Make networks so similar that their names must be pushed apart."""
    made = make_tables(labels)
    place = made.summary["label"].map({label: 0.003 * n for n, label in enumerate(labels)})
    mean = base + place
    summary = made.summary.assign(accuracy_mean=mean, ci_low=mean - interval, ci_high=mean + interval, seeds_done=3)
    return replace(made, summary=summary, networks=made.networks.assign(seeds_done=3))


def extent(text: Text) -> Bbox:
    """Box of a text in pixels, without the line that leads to it."""
    return Text.get_window_extent(text)


def words(figure: Figure) -> str:
    """Return all texts of a figure."""
    texts = [t for axes in figure.axes for t in [*axes.texts, *axes.get_yticklabels(), axes.title]]
    texts += [axes._left_title for axes in figure.axes]  # type: ignore[attr-defined]
    legends = [of for of in [*figure.legends, *(axes.get_legend() for axes in figure.axes)] if of is not None]
    texts += [text for of in legends for text in of.get_texts()]
    strings = [figure.get_suptitle(), figure.get_supxlabel(), *(t.get_text() for t in texts)]
    return " ".join("\n".join(strings).split())


def names(axes: Axes, labels: list[str]) -> dict[str, float]:
    """Height in pixels of each text of a panel that names a curve."""
    return {t.get_text(): extent(t).y0 for t in axes.texts if t.get_text() in labels}


def test_all_eleven_networks_of_the_study_look_different() -> None:
    table = study(tuple(ELEVEN)).networks
    seen = {(style["color"], str(style["linestyle"]), style["marker"]) for style in assign_styles(table).values()}
    points = {(style["color"], style["markerfacecolor"], style["marker"]) for style in assign_styles(table).values()}
    assert len(seen) == len(points) == 11


def test_networks_of_one_group_differ_by_their_markers() -> None:
    table = pd.DataFrame({"label": ["C4 a", "C4 b", "D4 a"], "group": ["C4", "C4", "D4"]})
    styles = assign_styles(table)
    assert styles["C4 a"]["marker"] != styles["C4 b"]["marker"]
    assert styles["C4 a"]["color"] == styles["C4 b"]["color"] == styles["D4 a"]["color"]
    assert styles["C4 a"]["linestyle"] != styles["D4 a"]["linestyle"]


def test_a_network_has_the_same_colours_in_every_figure() -> None:
    expected = [matplotlib.colors.to_hex(style["color"]) for style in assign_styles(study(SOME).networks).values()]
    for name in ("accuracy_angle", "accuracy_polar", "accuracy_severity", "attack"):
        axes = draw(name, study(SOME)).axes[-1]
        curves = [line for line in axes.lines if line.get_linewidth() > 1 and len(line.get_xdata()) > 2]
        assert [matplotlib.colors.to_hex(line.get_color()) for line in curves] == expected, name


@pytest.mark.parametrize("base", [0.1, 0.8, 0.96])
def test_names_of_curves_that_meet_do_not_overlap_and_stay_on_the_sheet(base: float) -> None:
    figure = draw("accuracy_angle", close(ELEVEN, base))
    figure.draw_without_rendering()
    heights = names(figure.axes[0], ELEVEN)
    tall = extent(figure.axes[0].texts[-1]).height
    assert sorted(heights, key=heights.__getitem__) == ELEVEN  # in the order of the curves
    assert all(above - below > 0.85 * tall for below, above in pairwise(sorted(heights.values())))
    assert min(heights.values()) > 0 and max(heights.values()) + tall < figure.bbox.height


def test_a_long_name_is_folded_and_still_stands_apart() -> None:
    labels = [f"C{n} a network with many settings, label_fraction 0.{n}" for n in range(1, 9)]
    figure = draw("accuracy_angle", close(labels, 0.8))
    figure.draw_without_rendering()
    boxes = sorted((extent(t) for t in figure.axes[0].texts if "fraction" in t.get_text()), key=lambda box: box.y0)
    assert len(boxes) == 8 and all(above.y0 >= below.y1 - 1 for below, above in pairwise(boxes))
    assert max(box.x1 for box in boxes) < figure.bbox.width


@pytest.mark.parametrize("name", FIGURES)
def test_generated_galaxies_flaws_and_missing_seeds_are_named_and_no_text_is_cut_off(name: str) -> None:
    figure = draw(name, study(SOME, FLAW), replace(ABOUT, generated=True))
    text = words(figure)
    assert (
        GENERATED_NOTICE in text
        and f"CNN, {FLAW}" in text
        and "C4 e2resnet18, 2/3 runs" in text
        and ABOUT.title in text
    )
    figure.draw_without_rendering()
    edge = figure.get_tightbbox().padded(-0.02)
    assert edge.x0 >= 0 and edge.y0 >= 0
    assert edge.x1 <= figure.get_figwidth() and edge.y1 <= figure.get_figheight()


def test_complete_sweeps_of_real_galaxies_have_no_warnings() -> None:
    for name in ("accuracy_angle", "comparison"):
        made = study(("CNN", "C4"))
        summary, networks = (table.assign(seeds_done=3) for table in (made.summary, made.networks))
        text = words(draw(name, replace(made, summary=summary, networks=networks)))
        assert GENERATED_NOTICE not in text and FLAW not in text and "/3 runs" not in text


def test_figures_show_only_the_best_of_very_many_networks() -> None:
    many = study(tuple(f"C{n} net" for n in range(1, 41)))
    kept = many.networks.sort_values("accuracy_mean", ascending=False)["label"].tolist()
    for name, most in (
        ("accuracy_severity", 16),
        ("pareto", 16),
        ("confusion", 9),
        ("training", 12),
        ("comparison", 32),
    ):
        text = words(draw(name, many))
        assert f"Of 40 networks, the {most} best on clean galaxies" in text
        assert all(label in text for label in kept[:most]) and not any(f" {label} " in text for label in kept[most:])


def test_the_curve_closes_at_360_degrees() -> None:
    axes = draw("accuracy_angle", study(("C4",))).axes[0]
    x, y = (np.asarray(values) for values in axes.lines[0].get_data())
    assert x[-1] == 360 and y[-1] == y[0] and len(x) == 49
    assert list(axes.get_xticks()) == list(range(0, 361, 45))


def test_every_condition_has_its_panel_from_clean_to_worst_in_physical_parameters() -> None:
    panels = {
        axes.get_title(loc="left"): axes
        for axes in draw("accuracy_severity", study(("C4",), conditions=DEFAULT_CONDITIONS)).axes
    }
    ticks = {title: [label.get_text() for label in axes.get_xticklabels()] for title, axes in panels.items()}
    assert len(panels) == len(set(DEFAULT_CONDITIONS) - {"clean", "rotation", "rotation_control"})
    assert ticks["pedestal noise"] == ["clean", "0.75", "0.5", "0.25"]  # from much signal to little
    assert ticks["PSF moffat"][1:] == [f"{p:g}" for p in CONDITIONS["psf_moffat"].parameters.values()]
    assert ticks["rotation + shot noise"][1].split("\n") == ["7.5", "0.5"]
    assert panels["PSF moffat"].get_xlabel() == "arcsec FWHM"
    assert len({axes.get_ylim() for axes in panels.values()}) == 1


@pytest.mark.parametrize(("base", "line"), [(0.3, True), (0.9, False)])
def test_chance_is_drawn_where_it_fits_and_noted_where_it_does_not(base: float, line: bool) -> None:
    made = close(["C4", "D4"], base)
    made.summary.loc[made.summary["severity"] == 45.0, "accuracy_mean"] -= 0.15  # a span that chance is near to, or not
    figure = draw("accuracy_angle", made)
    low, high = figure.axes[0].get_ylim()
    assert bool(low < 14.9 < high) is line
    assert "always the majority class: 14.9 %" in words(figure) and ("↓" in words(figure)) is not line


def test_a_confusion_matrix_is_in_per_cent_of_the_true_class() -> None:
    figure = draw("confusion", study(("CNN", "C4")))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(shown.sum(1), 100)
    counted = study(("CNN", "C4")).confusion.query("label == 'CNN' and truth == 3")
    assert np.allclose(shown[3], 100 * counted["count"] / counted["count"].sum())


def test_bars_join_exactly_the_networks_without_significant_differences() -> None:
    made = make_tables(["C1", "C2", "C4", "C8"])
    networks = made.networks.assign(accuracy_mean=[0.9, 0.8, 0.79, 0.5])
    pairs = [("C1", "C2", True), ("C1", "C4", False), ("C1", "C8", True), ("C2", "C4", False), ("C2", "C8", True)]
    comparisons = pd.DataFrame([*pairs, ("C4", "C8", True)], columns=["a", "b", "significant"])
    figure = draw("comparison", replace(made, networks=networks, comparisons=comparisons))
    bars = [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert bars == [[1, 2]] and "Also not significant: C1 and C4." in words(figure)
    alone = draw("comparison", replace(made, networks=networks, comparisons=pd.DataFrame()))
    assert "not compared pair by pair" in words(alone)


def test_the_label_fraction_has_a_panel_if_it_varies() -> None:
    made = study(("CNN", "C1", "C4"))
    varied = replace(made, networks=made.networks.assign(label_fraction=[0.1, 0.5, 1.0]))
    assert len(draw("pareto", made).axes) == 2 and len(draw("pareto", varied).axes) == 3


def test_reliability_names_the_error_before_and_after_scaling() -> None:
    clean = study(("CNN", "C4")).summary.query("condition == 'clean' and label == 'CNN'").iloc[0]
    text = words(draw("reliability", study(("CNN", "C4"))))
    assert f"ECE {100 * clean['ece']:.1f} %" in text and f"ECE {100 * clean['ece_scaled']:.1f} %" in text


@pytest.mark.parametrize("name", FIGURES)
def test_a_sweep_without_results_has_figures_that_say_so_or_none(name: str) -> None:
    made = study(("CNN", "C4"))
    nothing = dict.fromkeys(("accuracy_mean", "ci_low", "ci_high", "mce", "mce_low", "mce_high"), np.nan)
    networks = made.networks.assign(**nothing, seeds_done=0)
    for summary in (made.summary[:0], made.summary.assign(**nothing, consistency=np.nan, seeds_done=0)):
        figure = FIGURES[name](Tables(summary, networks), ReportInfo("none", False, float("nan")))
        if figure is not None:
            figure.savefig(io.BytesIO(), format="pdf")
            assert "no runs complete yet" in words(figure) and "interval" not in words(figure)


@pytest.mark.parametrize("name", ["confusion", "reliability", "training"])
def test_a_network_without_results_has_a_panel_that_says_so(name: str) -> None:
    made = study(("CNN", "C4"))
    table = getattr(made, name)
    text = words(draw(name, replace(made, **{name: table[table["label"] == "CNN"]})))
    assert "C4" in text and ("not measured yet" in text or "not started yet" in text)


def test_a_figure_is_written_as_the_same_bytes_again() -> None:
    def written() -> bytes:
        file = io.BytesIO()
        draw("confusion", study(("CNN",))).savefig(file, format="pdf", metadata={"CreationDate": None})
        return file.getvalue()

    assert written() == written()


def make_tables_of_classes(names: list[str]) -> Tables:
    """Make tables of two networks that confuse each class with the next one, the later classes more often."""
    made, labels = study(("CNN", "C4")), np.arange(len(names))
    confusion = pd.concat(
        pd.DataFrame({"label": label, "truth": labels, "predicted": predicted, "count": count})
        for label in ("CNN", "C4")
        for predicted, count in ((labels, 100), ((labels + 1) % len(names), labels))
    )
    per_class = pd.DataFrame({"label": "CNN", "class": labels, "name": names, "support": 100})
    return replace(made, confusion=confusion[confusion["count"] > 0], per_class=per_class)


@pytest.mark.parametrize(("count", "shown"), [(2, 2), (8, 8), (40, 40), (1000, 40)])
def test_a_confusion_matrix_of_many_classes_shows_those_with_most_errors_and_says_so(count: int, shown: int) -> None:
    names = [f"class {n} $x$ & <b>, " + "long " * (n % 7) for n in range(count)]
    figure = draw("confusion", make_tables_of_classes(names))
    figure.canvas.draw()
    matrix = np.asarray(figure.axes[0].images[0].get_array())
    assert matrix.shape == (shown, shown)
    assert ("the 40 of 1,000 classes with the most errors" in words(figure)) is (count > shown)
    ticks = figure.axes[0].get_yticklabels()
    first = "class 0 $x$ & <b>," if count == shown else "class 960 $x$ & <b>, l"  # a dollar is no formula
    assert ticks[0].get_text().replace("\\$", "$").startswith(first)
    boxes = [extent(tick) for tick in ticks]
    assert all(box.x0 > 0 for box in boxes)
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    if count > shown:  # of all galaxies of the class: 100 correct, 998 as the next one
        assert matrix[38, 39] == pytest.approx(100 * 998 / 1098)


def test_a_network_none_of_whose_galaxies_were_attacked_has_no_curve() -> None:
    made = study(("CNN", "C4"))
    none = made.attack["label"] == "C4"
    attack = made.attack.assign(n=made.attack["n"].mask(none, 0), rate=made.attack["rate"].mask(none))
    figure = draw("attack", replace(made, attack=attack))
    assert "CNN" in words(figure) and "C4" not in words(figure)
    nothing = attack.assign(n=0, rate=np.nan, low=np.nan, high=np.nan)
    assert FIGURES["attack"](replace(made, attack=nothing), ABOUT) is None
