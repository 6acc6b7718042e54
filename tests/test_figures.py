"""Figures show each network once, alike everywhere, with its name readable."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from galaxyhpc.figures import GENERATED, About, accuracy_angle, accuracy_noise, looks

STUDY = ["", "C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16"]
ABOUT = About("all_groups: equal parameters", generated=False, chance=0.149)


def summary(groups: list[str], done: int = 5, base: float = 0.8, interval: float = 0.02) -> pd.DataFrame:
    """Networks that lie as near to one another as those of a good sweep do."""
    pairs = [("clean", 0.0), *(("rotation", 7.5 * i) for i in range(48))]
    pairs += [("pedestal_noise", snr) for snr in (0.75, 0.5, 0.25)] + [("shot_noise", float(s)) for s in range(1, 6)]
    rows = []
    for i, group in enumerate(groups):
        for condition, severity in pairs:
            mean = base + 0.003 * i - (0.05 * severity if condition == "shot_noise" else 0.0)
            rows.append(
                (
                    f"{group} steerable_cnn".strip(),
                    group,
                    condition,
                    severity,
                    done,
                    5,
                    mean,
                    mean - interval,
                    mean + interval,
                )
            )
    names = "label group condition severity seeds_done seeds_planned accuracy_mean ci_low ci_high"
    return pd.DataFrame(rows, columns=names.split())


def extent(text: Text) -> Bbox:
    """Box of a text in pixels, without the line that leads to it."""
    return Text.get_window_extent(text)


def names(figure: Figure, panel: int = 0) -> dict[str, float]:
    """Height in pixels of each text of a panel that names a curve."""
    figure.savefig(io.BytesIO(), format="png")
    return {t.get_text(): extent(t).y0 for t in figure.axes[panel].texts if "cnn" in t.get_text()}


def words(figure: Figure) -> str:
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    return "\n".join([figure.get_suptitle(), figure.get_supxlabel(), *texts])


def test_all_eleven_networks_of_the_study_look_different() -> None:
    table = summary(STUDY)[["label", "group"]].drop_duplicates()
    seen = {(look["color"], str(look["linestyle"]), look["marker"]) for look in looks(table).values()}
    assert len(seen) == 11


def test_networks_of_one_group_differ_by_their_markers() -> None:
    table = pd.DataFrame({"label": ["C4 a", "C4 b", "D4 a"], "group": ["C4", "C4", "D4"]})
    found = looks(table)
    assert found["C4 a"]["marker"] != found["C4 b"]["marker"]
    assert found["C4 a"]["color"] == found["C4 b"]["color"] == found["D4 a"]["color"]
    assert found["C4 a"]["linestyle"] != found["D4 a"]["linestyle"]


def test_a_network_looks_the_same_in_every_panel_of_every_figure() -> None:
    table = summary(STUDY)
    panels = [*accuracy_angle(table, ABOUT).axes, *accuracy_noise(table, ABOUT).axes]
    curves = [[line for line in axes.lines if len(line.get_xdata()) > 2] for axes in panels]
    colours = [[matplotlib.colors.to_hex(line.get_color()) for line in of_panel] for of_panel in curves]
    assert len(colours[0]) == 11 and colours[0] == colours[1] == colours[2]


@pytest.mark.parametrize("base", [0.1, 0.8, 0.96])
def test_names_of_curves_that_meet_do_not_overlap_and_stay_on_the_sheet(base: float) -> None:
    for draw, panel in ((accuracy_angle, 0), (accuracy_noise, 0), (accuracy_noise, 1)):
        figure = draw(summary(STUDY, base=base, interval=0.0), ABOUT)
        heights = sorted(names(figure, panel).values())
        tall = extent(figure.axes[panel].texts[-1]).height
        assert len(heights) == 11
        assert all(above - below > 0.85 * tall for below, above in pairwise(heights))
        assert heights[0] > 0 and heights[-1] + tall < figure.bbox.height


def test_more_networks_than_can_be_told_apart_are_not_drawn_over_one_another() -> None:
    figure = accuracy_noise(summary([f"C{n}" for n in range(1, 41)]), ABOUT)
    assert [*names(figure)] == [f"C{n} steerable_cnn" for n in range(25, 41)]
    assert "Of 40 networks, the 16 best on clean galaxies" in words(figure)


def test_names_stand_in_the_order_of_the_curves() -> None:
    heights = names(accuracy_angle(summary(STUDY), ABOUT))
    assert sorted(heights, key=heights.__getitem__) == [f"{group} steerable_cnn".strip() for group in STUDY]


def test_the_curve_closes_at_360_degrees() -> None:
    axes = accuracy_angle(summary(["C4"]), ABOUT).axes[0]
    x, y = axes.lines[0].get_data()
    assert np.asarray(x)[-1] == 360 and np.asarray(y)[-1] == np.asarray(y)[0] and len(np.asarray(x)) == 49
    assert list(axes.get_xticks()) == list(range(0, 361, 45))


def test_noise_begins_with_none_and_grows_to_the_right() -> None:
    panels = accuracy_noise(summary(["C4"]), ABOUT).axes
    ticks = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]
    assert ticks == [["clean", "0.75", "0.5", "0.25"], ["clean", "1", "2", "3", "4", "5"]]


@pytest.mark.parametrize(("base", "line"), [(0.3, True), (0.9, False)])
def test_chance_is_drawn_where_it_fits_and_told_where_it_does_not(base: float, line: bool) -> None:
    table = summary(["C4", "D4"], base=base)
    table.loc[(table["severity"] == 45.0), "accuracy_mean"] -= 0.15  # a span that chance is near to, or far from
    figure = accuracy_angle(table, ABOUT)
    low, high = figure.axes[0].get_ylim()
    assert bool(low < 14.9 < high) is line
    assert "always the commonest class: 14.9 %" in words(figure) and ("↓" in words(figure)) is not line


@pytest.mark.parametrize("draw", [accuracy_angle, accuracy_noise])
def test_generated_galaxies_and_missing_seeds_are_said_in_the_figure(draw: type) -> None:
    whole = words(draw(summary(["C4"]), ABOUT))
    assert GENERATED not in whole and "seeds" not in whole.replace("Mean over seeds", "").replace("over seeds and", "")
    partial = words(draw(summary(["C4"], done=3), About("demo", True, float("nan"))))
    assert GENERATED in partial and "C4 steerable_cnn, 3/5 seeds" in partial and "commonest" not in partial


@pytest.mark.parametrize("draw", [accuracy_angle, accuracy_noise])
@pytest.mark.parametrize("empty", [True, False])
def test_a_sweep_of_which_nothing_is_in_has_figures_that_say_so(draw: type, empty: bool) -> None:
    table = summary(["C4"]).assign(accuracy_mean=np.nan, ci_low=np.nan, ci_high=np.nan, seeds_done=0)
    figure = draw(table[:0] if empty else table, About("none", False, float("nan")))
    figure.savefig(io.BytesIO(), format="pdf")
    assert "no planned run is in yet" in words(figure) and "interval" not in words(figure)
