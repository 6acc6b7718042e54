"""LaTeX tables bold the best together with all not significantly different, and LaTeX can read them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.tables import STUDY_LABELS, make_tables

from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.report import latex

ABOUT = ReportInfo("all_groups: 50 % of $\\mu$_x {y} & #1 ~^<>", generated=False, chance_accuracy=0.148)
FLAW = "flattening head (not invariant)"


def rows(text: str) -> list[list[str]]:
    """Cells of each line of a tabular, heads first."""
    inside = re.search(r"\\begin{tabular}{.*?}\n(.*)\\end{tabular}", text, re.DOTALL)
    assert inside is not None
    lines = [line for line in inside[1].splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
    assert all(line.endswith(r" \\") for line in lines)
    return [re.split(r"(?<!\\) & ", line[:-3]) for line in lines]


def bold(text: str, head: str) -> set[str]:
    """Names of the rows that are bold in a column."""
    heads, *body = rows(text)
    return {re.sub(r"\$.*", "", row[0]) for row in body if "textbf" in row[heads.index(head)]}


STUDIED, THREE = make_tables(flaw=FLAW), make_tables(["a", "b", "c"])


def three(means: tuple[float, float, float], half: float, significant: dict[str, bool]) -> Tables:
    """Networks a, b and c; `significant` of the pairs ab, ac and bc that were compared."""
    tables = THREE
    low, high = np.array(means) - half, np.array(means) + half
    networks = tables.networks.assign(accuracy_mean=means, ci_low=low, ci_high=high)
    numbers = networks.set_index("label")[["accuracy_mean", "ci_low", "ci_high"]]
    clean = tables.summary["condition"] == "clean"
    summary = tables.summary.copy()
    summary.loc[clean, numbers.columns] = numbers.loc[summary.loc[clean, "label"]].to_numpy()
    pairs = [(a, b, flag) for (a, b), flag in significant.items()]
    return replace(
        tables, summary=summary, networks=networks, comparisons=pd.DataFrame(pairs, columns=["a", "b", "significant"])
    )


@pytest.mark.parametrize(
    ("means", "half", "significant", "expected"),
    [
        ((0.80, 0.79, 0.60), 0.02, {"ab": False, "ac": True, "bc": True}, {"a", "b"}),  # joined by the comparison
        ((0.79, 0.80, 0.60), 0.02, {"ab": False, "ac": True, "bc": True}, {"a", "b"}),  # whichever is named first
        ((0.90, 0.70, 0.60), 0.02, {"ab": True, "ac": True, "bc": True}, {"a"}),  # far from all others
        ((0.80, 0.79, 0.60), 0.02, {"ab": True, "ac": True, "bc": True}, {"a", "b"}),  # never alone in its error bar
        ((0.90, 0.70, 0.60), 0.02, {"ab": False, "ac": True, "bc": True}, {"a", "b"}),  # few galaxies differ
        ((0.80, 0.77, 0.60), 0.02, {"ac": True, "bc": True}, {"a", "b"}),  # never compared: by their intervals
        ((0.90, 0.70, 0.60), 0.02, {}, {"a"}),
        ((0.80, 0.79, 0.60), float("nan"), {}, set()),  # no intervals
    ],
)
def test_the_best_is_bold_with_all_not_significantly_different(
    means: tuple[float, float, float], half: float, significant: dict[str, bool], expected: set[str]
) -> None:
    text = latex.format_main_table(three(means, half, significant), ABOUT)
    assert bold(text, r"Clean (\%)") == expected
    assert ("Bold:" in text) is bool(re.search("textbf", text))


def test_where_only_intervals_are_known_overlapping_ones_are_bold_together() -> None:
    cells = {"a": (0.9, 0.88, 0.92), "b": (0.87, 0.85, 0.881), "c": (0.8, 0.78, 0.82), "d": (np.nan, np.nan, np.nan)}
    assert latex.select_overlapping(cells) == {"a", "b"}
    assert latex.select_overlapping({"a": cells["a"], "d": cells["d"]}) == set()  # there is nothing to be better than


def test_a_small_corruption_error_is_the_best() -> None:
    text = latex.format_main_table(STUDIED, ABOUT)
    heads, *body = rows(text)
    errors = [float(re.sub(r"[^0-9.]", "", row[heads.index("mCE")])) for row in body]
    assert "textbf" in body[int(np.argmin(errors))][heads.index("mCE")]
    assert "textbf" not in body[int(np.argmax(errors))][heads.index("mCE")]


@pytest.mark.parametrize("labels", [STUDY_LABELS, [f"C{n} net_{n}" for n in range(1, 43)]])
def test_environments_are_balanced_and_rows_have_all_columns(labels: list[str]) -> None:
    text = latex.format_document(make_tables(labels, flaw=FLAW), ABOUT)
    opened, closed = re.findall(r"\\begin{(.*?)}", text), re.findall(r"\\end{(.*?)}", text)
    assert sorted(opened) == sorted(closed) == sorted(["table*", "tabular"] * 2)
    for part in re.findall(r"\\begin{table\*}.*?\\end{table\*}", text, re.DOTALL):
        columns = re.search(r"\\begin{tabular}{(.*?)}", part)
        assert columns is not None and {len(row) for row in rows(part)} == {len(columns[1])}
        depth = np.cumsum([{"{": 1, "}": -1}.get(c, 0) for c in re.sub(r"\\[{}]", "", part)])
        assert depth.min() == 0 and depth[-1] == 0
    if len(labels) > 40:
        assert "Of 42 networks, the 40 best" in text and "Of 42 networks, the 8 best" in text


def test_special_characters_are_escaped() -> None:
    assert latex.escape("50% & #1_{x}$") == r"50\% \& \#1\_\{x\}\$"
    assert latex.escape("a\\b~c^d") == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"
    assert r"net\_1" in latex.format_main_table(make_tables(["net_1", "net_2"]), ABOUT)


def test_flaws_missing_seeds_and_generated_galaxies_are_named() -> None:
    plain = latex.format_document(make_tables(STUDY_LABELS[:3]), ABOUT)
    assert GENERATED_NOTICE not in plain and "FLAW" not in plain
    tables = latex.format_document(make_tables(STUDY_LABELS[:3], flaw=FLAW), replace(ABOUT, generated=True))
    for part in tables.split(r"\end{table*}")[:2]:
        assert f"FLAW (a): {FLAW}." in part and "CNN$^{a}$" in part
        assert (
            r"C4$^\dagger$" in part
            and r"$^\dagger$: not all planned runs are complete" in part
            and GENERATED_NOTICE in part
        )


def test_the_highest_severity_of_each_condition_is_named_by_its_physical_value() -> None:
    names = [row[0] for row in rows(latex.format_robustness_table(make_tables(STUDY_LABELS[:2]), ABOUT))]
    assert "psf moffat, 2 arcsec FWHM" in names and "pedestal noise, SNR 0.25" in names
    assert len(names) == len(set(names)) and not any("rotation control" in name for name in names)


def test_tables_without_results_say_so() -> None:
    tables = make_tables(STUDY_LABELS[:2])
    absent = ["accuracy_mean", "ci_low", "ci_high", "mce", "mce_low", "mce_high"]
    networks = tables.networks.assign(**dict.fromkeys(absent, np.nan), seeds_done=0)
    text = latex.format_document(Tables(tables.summary[:0], networks), ReportInfo("none", False, float("nan")))
    assert "no runs complete yet" in text and "textbf" not in text and "nan" not in text
