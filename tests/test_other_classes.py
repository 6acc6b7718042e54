"""A file with classes of its own goes through every command."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.data_files import write_file

from galaxyhpc import export, fsck
from galaxyhpc.evaluation import results
from galaxyhpc.explore import __main__ as explore
from galaxyhpc.inspect import __main__ as inspect
from galaxyhpc.launch import __main__ as launch
from galaxyhpc.predict import __main__ as predict
from galaxyhpc.report.latex import escape
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.sweep_dir import find_runs

HOSTILE_NAMES = ('Sa, Sab & "Sb" 100 %', "E_0 <b>bold</b>", "Spirale à bras $x$ #1 ~ ^ \\ {}")
SWEEP = """
name: kinds
base:
  data: {{source: {file}, image_size: 33}}
  model: {{scale: 0.1}}
  train: {{epochs: 1, batch_size: 64, class_weights: balanced}}
  resources: {{convolution: dense}}
  evaluate: {{conditions: [clean, flip], attack: {{galaxies: 2, population: 4, iterations: 1}}}}
blocks:
  - points: [{{model.architecture: cnn}}, {{model.group: C2}}]
"""


def write_galaxies(path: Path, names: Sequence[str], counts: Sequence[int]) -> Path:
    """Write galaxies of noise whose mean brightness is that of their class."""
    labels, rng = np.repeat(np.arange(len(names)), counts), np.random.default_rng(0)
    noise = rng.integers(0, 60, (len(labels), 33, 33, 3), np.uint8)
    images = (noise + (190 * labels / len(names)).astype(np.uint8)[:, None, None, None]).astype(np.uint8)
    return write_file(path, n=len(labels), side=33, classes=names, images=images, ans=labels)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 40])
def test_a_file_with_classes_of_its_own_goes_through_every_command(tmp_path: Path, num_classes: int) -> None:
    names = [*HOSTILE_NAMES, *(f"kind {n}" for n in range(3, num_classes))]
    file = write_galaxies(tmp_path / "a.h5", names, [40, *[20] * (num_classes - 2), 120])  # the last one is commonest
    (tmp_path / "kinds.yaml").write_text(SWEEP.format(file=file))
    arguments = [str(tmp_path / "kinds.yaml"), "--runs", str(tmp_path / "runs"), "--executor", "debug"]
    assert launch.main(arguments) == 0
    sweep = tmp_path / "runs/kinds"
    runs = find_runs(sweep)
    for run in runs:
        assert run.load_config().data.class_names == tuple(names)
        counts = results.read_counts(run)
        assert counts is not None and results.to_counts(counts).confusion.shape == (3, num_classes, num_classes)
    check_report(sweep / "report", names)
    check_outputs_of_a_run(runs[0].path, file, tmp_path, names)
    assert status.main([str(sweep)]) == 0 and fsck.main([str(sweep)]) == 0


def check_report(report: Path, names: Sequence[str]) -> None:
    per_class, summary = pd.read_csv(report / "per_class.csv"), pd.read_csv(report / "summary.csv")
    assert per_class.groupby("label")["name"].apply(list).tolist() == [list(names)] * 2
    assert summary[["balanced_accuracy", "macro_f1"]].notna().all(axis=None)
    page = html.unescape((report / "report.html").read_text())
    assert f"Always predicting the most frequent class, {names[-1]}: " in page
    assert f"most frequent class, {escape(names[-1])}: " in (report / "tables.tex").read_text()
    assert "<b>bold" not in (report / "report.html").read_text()


def check_outputs_of_a_run(run: Path, file: Path, tmp_path: Path, names: Sequence[str]) -> None:
    assert predict.main([str(run), str(file), "--output", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    columns = ["p_" + name.replace(" ", "_") for name in names]
    probabilities = np.array([[float(row[column]) for column in columns] for row in rows])
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert [row["name"] for row in rows] == [names[label] for label in probabilities.argmax(axis=1)]
    if len(names) == 3:  # takes seconds, and is the same for any number
        assert export.main([str(run), str(tmp_path / "exported"), "--formats", "export"]) == 0
        assert list(json.loads((tmp_path / "exported/model.json").read_text())["classes"].values()) == list(names)
    assert inspect.main([str(run), "--conditions", "flip"]) == 0
    assert set(pd.read_csv(run / "inspect/embedding.csv")["name"]) == set(names)
    explored, cache = tmp_path / "explore.html", str(tmp_path / "runs/.cache")
    assert explore.main([str(file), "--output", str(explored), "--cache", cache]) == 0
    assert all(name in html.unescape(explored.read_text()) for name in names[:2])
