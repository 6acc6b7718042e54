"""The report of a sweep shows what was planned, what is complete, and nothing misleading."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binomtest

from galaxyhpc.aggregate import main
from galaxyhpc.analysis.statistics import bootstrap_accuracies, percentile_interval
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.results import Pair, RunLogits
from galaxyhpc.report.build import AggregateError, Report, aggregate
from galaxyhpc.storage.run_dir import RunDir

ANGLES = [("rotation", 7.5 * i) for i in range(48)]
PEDESTAL = [("pedestal_noise", snr) for snr in (0.75, 0.5, 0.25)]
SHOT = [("shot_noise", float(severity)) for severity in range(1, 6)]
PAIRS: list[Pair] = [("clean", 0.0), *ANGLES, *PEDESTAL, *SHOT]
CONDITIONS = ["clean", "rotation", "pedestal_noise", "shot_noise"]
N = 120


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest) -> None:
    """Leave out the figures unless a test is about them."""
    if "drawn" not in request.keywords:
        request.getfixturevalue("without_figures")


def configured(group: str | None, seed: int, **settings: Any) -> RunConfig:
    model = {"architecture": "steerable_cnn" if group else "cnn", "group": group, **settings.pop("model", {})}
    basic = {"data": {"source": "demo", "cache": "/nowhere"}, "evaluate": {"conditions": CONDITIONS}}
    return RunConfig.model_validate({"model": model, "seed": seed, **basic, **settings})


def plan(sweep: Path, configs: Iterable[RunConfig]) -> list[RunDir]:
    """Lay out a launched sweep: plan.csv and config.json of each run."""
    rows = []
    for config in configs:
        run, model = RunDir(sweep / config.run_id), config.model
        run.path.mkdir(parents=True)
        run.config_file.write_text(config.model_dump_json())
        network = (model.architecture, model.group or "", model.width, model.head, model.scale)
        data = "demo" if config.data.source == "demo" else "file"
        rows.append((run.run_id, *network, config.data.image_size, config.seed, 380000, 10**8, data))
    names = "run_id arch group width head scale image_size seed parameters multiply_adds data"
    pd.DataFrame(rows, columns=names.split()).to_csv(sweep / "plan.csv", index=False)
    return [RunDir(sweep / row[0]) for row in rows]


def measure(
    run: RunDir,
    accuracy: float = 0.8,
    pairs: Sequence[Pair] = PAIRS,
    generated: bool = True,
    fingerprint: str = "f" * 64,
) -> RunLogits:
    """Save results in which the run is right on about that fraction of N galaxies."""
    rng = np.random.default_rng(abs(hash_of(run.run_id)))
    labels = np.arange(N, dtype=np.uint8) % 10
    logits = {}
    for pair in pairs:
        right = rng.random(N) < accuracy
        predicted = np.where(right, labels, (labels + 1) % 10)
        logits[pair] = (4 * np.eye(10)[predicted] + rng.random((N, 10))).astype(np.float32)
    rows, groups = np.arange(N, dtype=np.int32), np.arange(N, dtype=np.int32) // 2
    measured = RunLogits(rows, labels, groups, logits, "a" * 64, fingerprint, generated)
    results.save(run, measured)
    run.record("evaluated")
    return measured


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-7:], "big")


def printed(report: Report) -> str:
    console = Console(width=170, file=io.StringIO())
    console.print(report.console_table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def bold(report: Report, column: int) -> dict[str, bool]:
    """Whether the number at the head of a column is bold, by network."""
    return {
        str(row[0]): any("bold" in str(span.style) for span in row[column].spans)  # type: ignore[union-attr]
        for row in report.console_table.rows
    }


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "groups"


@pytest.fixture
def finished(sweep: Path) -> list[RunDir]:
    """C1 and D4 with two seeds each, everything measured; D4 is far better."""
    runs = plan(sweep, [configured(group, seed) for group in ("C1", "D4") for seed in (0, 1)])
    for run, accuracy in zip(runs, (0.5, 0.52, 0.9, 0.92), strict=True):
        measure(run, accuracy)
    return runs


@pytest.mark.drawn
def test_the_report_of_a_finished_sweep_has_every_file(sweep: Path, finished: list[RunDir]) -> None:
    report = aggregate(sweep)
    written = {path.name for path in report.directory.iterdir() if not path.name.startswith(".")}
    tables = "results summary wide networks per_class confusion reliability comparisons missing hardest"
    drawn = "accuracy_angle accuracy_polar accuracy_severity comparison confusion consistency pareto reliability"
    figures = {f"{name}.{kind}" for name in drawn.split() for kind in ("png", "pdf")}
    assert written >= {"report.html", "tables.tex", *figures, *(f"{name}.csv" for name in tables.split())}
    table = pd.read_csv(report.directory / "results.csv")
    expected = "run_id arch group width seed parameters condition severity parameter unit n correct accuracy"
    assert list(table.columns)[:13] == expected.split()
    assert len(table) == 4 * len(PAIRS) and set(table["data"]) == {"demo"} and set(table["n"]) == {N}
    assert pd.read_csv(report.directory / "missing.csv").empty
    assert "4/4 runs complete" in printed(report)


def test_the_numbers_are_those_of_the_logits(sweep: Path, finished: list[RunDir]) -> None:
    summary = aggregate(sweep).summary.set_index(["group", "condition", "severity"])
    measured = [results.load(run) for run in finished[2:]]
    right = np.array([[m.logits[p].argmax(1) == m.labels for p in PAIRS] for m in measured if m])
    low, high = percentile_interval(bootstrap_accuracies(right, np.arange(N) // 2))
    for i, pair in enumerate(PAIRS):
        row, accuracies = summary.loc[("D4", *pair)], right[:, i].mean(axis=1)
        assert row["seeds_done"] == row["seeds_planned"] == 2
        assert [row["accuracy_mean"], row["accuracy_std"]] == pytest.approx([accuracies.mean(), accuracies.std(ddof=1)])
        assert [row["ci_low"], row["ci_high"]] == pytest.approx([low[i], high[i]], abs=1e-6)
    mean = summary.loc[("D4", "rotation_mean", 0.0)]
    assert mean["accuracy_mean"] == pytest.approx(right[:, 1:49].mean())
    assert mean["ci_low"] < mean["accuracy_mean"] < mean["ci_high"]


def test_the_report_is_the_same_file_for_file_when_made_again(sweep: Path, finished: list[RunDir]) -> None:
    directory = aggregate(sweep).directory
    first = {path.name: path.read_bytes() for path in directory.iterdir()}
    aggregate(sweep)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == first


def test_an_incomplete_sweep_names_every_missing_run_and_its_reason(sweep: Path) -> None:
    runs = plan(sweep, [configured("D4", seed) for seed in range(7)])
    measure(runs[0])
    runs[1].record("failed", why="loss is NaN at epoch 3, step 120")
    runs[2].record("started")
    runs[3].record("trained")
    measure(runs[5], pairs=PAIRS[:40])
    for path in runs[6].path.iterdir():
        path.unlink()
    runs[6].path.rmdir()
    report = aggregate(sweep)
    reasons = dict(report.missing_runs.itertuples(index=False, name=None))
    assert list(reasons) == [run.run_id for run in runs[1:]]
    assert list(reasons.values()) == [
        "failed: loss is NaN at epoch 3, step 120",
        "still running, or killed without a record",
        "trained but not evaluated",
        "never submitted",
        "partly evaluated, without rotation (9 of 48), pedestal_noise (3 of 3), shot_noise (5 of 5)",
        "its directory is missing",
    ]
    rows = report.summary.set_index(["condition", "severity"])
    assert rows.loc[("clean", 0.0), "seeds_done"] == 2 and rows.loc[("shot_noise", 5.0), "seeds_done"] == 1
    assert rows.loc[("rotation_mean", 0.0), "seeds_done"] == 1 and set(rows["seeds_planned"]) == {7}
    text = printed(report)
    for words in (
        "1/7†",
        "†: not all planned",
        "[2] (",
        "[k]: mean over k runs",
        "1/7 runs complete",
        "loss is NaN",
    ):
        assert words in text


def test_a_sweep_without_results_gives_an_empty_report(sweep: Path) -> None:
    plan(sweep, [configured(group, 0) for group in (None, "C4")])
    assert main([str(sweep)]) == 0
    report = aggregate(sweep)
    assert report.results.empty and len(report.missing_runs) == 2
    assert list(report.summary["seeds_done"].unique()) == [0] and report.summary["accuracy_mean"].isna().all()
    assert "0/2 runs complete" in printed(report)


def test_a_damaged_results_file_is_a_missing_run(sweep: Path, finished: list[RunDir]) -> None:
    finished[0].results_file.write_text("run_id,condition\nrubbish")
    reasons = aggregate(sweep).missing_runs.set_index("run_id")["reason"]
    assert reasons.to_dict() == {finished[0].run_id: "evaluated, but results.csv is missing or damaged"}


def test_without_readable_predictions_a_network_has_no_interval_and_the_report_says_so(
    sweep: Path, finished: list[RunDir]
) -> None:
    finished[0].predictions_file.write_bytes(b"rubbish")
    report = aggregate(sweep)
    with_interval = report.summary.groupby("group")["ci_low"].agg(lambda limits: limits.notna().all())
    assert with_interval.to_dict() == {"C1": False, "D4": True}
    assert f"C1 steerable_cnn: no intervals, because predictions.h5 of {finished[0].run_id}" in printed(report)


def test_runs_on_different_galaxies_are_refused(
    sweep: Path, finished: list[RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    measure(finished[1], fingerprint="0" * 64)
    assert main([str(sweep)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ffffffffffff" in error and f"000000000000 ({finished[1].run_id})" in error


def test_seeds_on_different_test_galaxies_are_refused(sweep: Path, finished: list[RunDir]) -> None:
    measured = results.load(finished[1])
    assert measured is not None
    measured.rows[0] = 4000
    results.save(finished[1], measured)
    with pytest.raises(
        AggregateError, match=f"{finished[0].run_id} and {finished[1].run_id} .* different test galaxies"
    ):
        aggregate(sweep)


def test_a_run_that_is_not_planned_is_left_out_and_named(sweep: Path, finished: list[RunDir]) -> None:
    table = pd.read_csv(sweep / "plan.csv", keep_default_na=False)
    table[:3].to_csv(sweep / "plan.csv", index=False)
    report = aggregate(sweep)
    assert finished[3].run_id not in set(report.results["run_id"])
    assert f"Not in the plan, ignored: {finished[3].run_id}" in printed(report)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: None, "not found; expected the directory of a launched sweep"),
        (lambda text: text.replace("seed,", "sede,"), "no column seed; expected run_id"),
        (lambda text: text + text.splitlines()[1] + "\n", " twice; expected each run once"),
        (lambda text: text.splitlines()[0] + "\n", "got no rows; expected one row"),
        (lambda text: text.replace("380000", "many"), "many"),
        (lambda text: "", "plan.csv"),
    ],
)
def test_a_directory_without_a_usable_plan_is_one_line_of_error(
    sweep: Path, finished: list[RunDir], spoil: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep / "plan.csv"
    text = spoil(path.read_text())
    path.unlink() if text is None else path.write_text(text)
    assert main([str(sweep)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: ") and error.count("\n") == 1 and message in error
    assert not (sweep / "report").exists()


def test_networks_that_differ_in_any_setting_are_never_averaged(sweep: Path) -> None:
    rates = [configured("C4", seed, train={"learning_rate": rate}) for rate in (0.001, 0.01) for seed in (0, 1)]
    wide = configured("C4", 0, train={"learning_rate": 0.01}, model={"scale": 2.0})
    runs = plan(sweep, [*rates, wide, configured("C4", 0, model={"head": "flatten"})])
    for run, accuracy in zip(runs, (0.9, 0.9, 0.3, 0.3, 0.6, 0.5), strict=True):
        measure(run, accuracy)
    report = aggregate(sweep, compute_intervals=False)
    clean = report.summary[report.summary["condition"] == "clean"].set_index("label")
    assert clean["seeds_planned"].to_dict() == {
        "C4 steerable_cnn, train.learning_rate 0.001": 2,
        "C4 steerable_cnn, train.learning_rate 0.01": 2,
        "C4 steerable_cnn, fields x 2, train.learning_rate 0.01": 1,
        "C4 steerable_cnn, flattening head (not invariant), train.learning_rate 0.001": 1,
    }
    assert clean["accuracy_mean"].round(1).tolist() == [0.9, 0.3, 0.6, 0.5]


def test_one_seed_of_one_network_planned_twice_is_refused(sweep: Path, finished: list[RunDir]) -> None:
    twin = RunDir(sweep / "C1-steerable_cnn-s0-copied")
    twin.path.mkdir()
    twin.config_file.write_bytes(finished[0].config_file.read_bytes())
    table = pd.read_csv(sweep / "plan.csv", keep_default_na=False)
    pd.concat([table, table[:1].assign(run_id=twin.run_id)]).to_csv(sweep / "plan.csv", index=False)
    with pytest.raises(AggregateError, match=f"{finished[0].run_id} and {twin.run_id} are both seed 0 of C1"):
        aggregate(sweep)


def test_the_best_is_bold_only_with_all_whose_intervals_overlap_its_own(sweep: Path) -> None:
    runs = plan(sweep, [configured(group, seed) for group in ("C1", "C4", "D4") for seed in (0, 1)])
    for run, accuracy in zip(runs, (0.4, 0.4, 0.85, 0.85, 0.88, 0.88), strict=True):
        measure(run, accuracy)
    report = aggregate(sweep)
    assert bold(report, 3) == {"C1 steerable_cnn": False, "C4 steerable_cnn": True, "D4 steerable_cnn": True}
    assert not any(bold(aggregate(sweep, compute_intervals=False), 3).values())


def test_the_best_on_clean_galaxies_is_the_first_row(sweep: Path, finished: list[RunDir]) -> None:
    rows = aggregate(sweep, compute_intervals=False).console_table.rows
    assert [str(row[0]) for row in rows] == ["D4 steerable_cnn", "C1 steerable_cnn"]


@pytest.mark.parametrize("generated", [True, False])
def test_generated_galaxies_are_named_beside_the_numbers(sweep: Path, generated: bool) -> None:
    source = "demo" if generated else "/data/Galaxy10_DECals.h5"
    (run,) = plan(sweep, [configured("C4", 0, data={"source": source})])
    measure(run, generated=generated, fingerprint="12ab34cd56ef" + "0" * 52)
    report = aggregate(sweep, compute_intervals=False)
    assert ("GENERATED galaxies (demo)" in printed(report)) is generated
    assert set(report.results["data"]) == set(report.summary["data"]) == {"demo" if generated else "12ab34cd56ef"}


def test_conditions_no_longer_planned_are_left_out(sweep: Path) -> None:
    (run,) = plan(sweep, [configured("C4", 0, evaluate={"conditions": ["clean", "shot_noise"]})])
    measure(run)
    report = aggregate(sweep)
    assert report.missing_runs.empty and set(report.results["condition"]) == {"clean", "shot_noise"}
    assert " - " in printed(report)


def test_a_run_with_an_unusable_config_is_missing(sweep: Path, finished: list[RunDir]) -> None:
    settings = json.loads(finished[0].config_file.read_text())
    settings["train"]["epochs"] = "many"
    finished[0].config_file.write_text(json.dumps(settings))
    (reason,) = aggregate(sweep).missing_runs["reason"]
    assert reason.startswith("its config.json cannot be used: ") and "epochs" in reason and "\n" not in reason


@pytest.mark.slow
def test_reports_made_by_several_processes_at_once_are_complete(sweep: Path, finished: list[RunDir]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "galaxyhpc.aggregate", str(sweep), "--no-intervals"]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert texts[0] == texts[1] and "D4 steerable_cnn" in texts[0]
    hidden = [path.name for path in (sweep / "report").iterdir() if path.name.startswith(".")]
    assert set(hidden) <= {".lock"} and len(pd.read_csv(sweep / "report" / "results.csv")) == 4 * len(PAIRS)


def test_pairs_of_networks_are_tested_seed_by_seed_on_the_same_galaxies(sweep: Path, finished: list[RunDir]) -> None:
    (pair,) = aggregate(sweep).tables.comparisons.to_dict("records")
    right = []
    for run in finished:
        measured = results.load(run)
        assert measured is not None
        right.append(measured.logits[("clean", 0.0)].argmax(1) == measured.labels)
    p = [
        binomtest(int((one & ~other).sum()), int((one ^ other).sum())).pvalue
        for one, other in zip(right[:2], right[2:], strict=True)
    ]
    assert (pair["a"], pair["b"], pair["seeds"]) == ("C1 steerable_cnn", "D4 steerable_cnn", 2)
    assert pair["p"] == pair["p_holm"] == pytest.approx(min(1.0, 2 * np.median(p)))
    assert pair["difference"] == pytest.approx(np.mean(right[:2]) - np.mean(right[2:]))
    assert pair["ci_low"] < pair["difference"] < pair["ci_high"] < 0 and pair["significant"]


def test_corruption_errors_are_relative_to_the_cnn_of_the_same_sweep(sweep: Path) -> None:
    runs = plan(sweep, [configured(group, seed) for group in (None, "C4") for seed in (0, 1)])
    for run, accuracy in zip(runs, (0.5, 0.5, 0.8, 0.8), strict=True):
        measure(run, accuracy)
    tables = aggregate(sweep).tables
    errors = 1 - tables.summary.set_index(["label", "condition", "severity"])["accuracy_mean"]
    sums = errors.groupby(level=["label", "condition"]).sum()
    expected = {name: sums["C4 steerable_cnn", name] / sums["cnn", name] for name in CONDITIONS[1:]}
    errors_by_network = tables.corruption_error.set_index(["label", "condition"])["ce"]
    assert errors_by_network["C4 steerable_cnn"].to_dict() == pytest.approx(expected)
    networks = tables.networks.set_index("label")
    assert networks.loc["cnn", "mce"] == 1.0
    low, mean, high = networks.loc["C4 steerable_cnn", ["mce_low", "mce", "mce_high"]]
    assert mean == pytest.approx(np.mean(list(expected.values()))) and low < mean < high < 1


def test_without_one_cnn_to_compare_with_there_is_no_corruption_error_and_the_report_says_so(
    sweep: Path, finished: list[RunDir]
) -> None:
    report = aggregate(sweep)
    assert report.tables.networks["mce"].isna().all() and "No mean corruption error" in printed(report)


def test_the_hardest_galaxies_are_those_that_most_runs_get_wrong(sweep: Path, finished: list[RunDir]) -> None:
    table = aggregate(sweep).tables.hardest
    wrong = np.zeros(N)
    for run in finished:
        measured = results.load(run)
        assert measured is not None
        wrong += measured.logits[("clean", 0.0)].argmax(1) != measured.labels
    assert table["fraction_wrong"].tolist() == sorted(wrong / 4, reverse=True)[: len(table)]
    assert all(wrong[row] / 4 == share for row, share in zip(table["row"], table["fraction_wrong"], strict=True))
    assert (table["predicted"] == (table["truth"] + 1) % 10).all()


def test_a_split_that_may_share_sky_is_named_beside_the_numbers(sweep: Path) -> None:
    data = {"source": "demo", "link_arcsec": 0.0, "conflicting_duplicates": "keep"}
    (run,) = plan(sweep, [configured("C4", 0, data=data)])
    measure(run)
    text, page = printed(aggregate(sweep)), (sweep / "report" / "report.html").read_text()
    for words in ("training and test galaxies may share sky", "twice under different labels were kept"):
        assert words in text and words in page


@pytest.mark.drawn
def test_a_report_without_intervals_removes_the_figures_of_an_earlier_one(sweep: Path) -> None:
    (run,) = plan(sweep, [configured("C4", 0)])
    measure(run)
    for name in ("accuracy_angle.png", "accuracy_angle.pdf", "report.html"):
        (sweep / "report").mkdir(exist_ok=True)
        (sweep / "report" / name).write_text("earlier")
    aggregate(sweep, compute_intervals=False)
    assert not list((sweep / "report").glob("*.p[nd]*")) and not (sweep / "report" / "report.html").exists()


def test_a_network_that_lacks_a_condition_has_no_mean_corruption_error(sweep: Path) -> None:
    runs = plan(sweep, [configured(group, 0) for group in (None, "C4", "D4")])
    for run, pairs in zip(runs, (PAIRS, PAIRS, PAIRS[:-1]), strict=True):
        measure(run, pairs=pairs)
    mce = aggregate(sweep).tables.networks.set_index("group")["mce"]
    assert mce[""] == 1.0 and mce["C4"] > 0 and np.isnan(mce["D4"])
