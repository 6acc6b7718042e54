"""Inspecting a run: features, latent distances, the files written, and one-line errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.networks import SIDE, make_untrained
from rich.console import Console

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, RunConfig
from galaxyhpc.evaluation.results import CLEAN
from galaxyhpc.inspect import embedding, features, figures
from galaxyhpc.inspect.__main__ import DEFAULT_CONDITIONS, main, parse_conditions, select_possible
from galaxyhpc.inspect.features import InspectError, RunFeatures
from galaxyhpc.inspect.gradcam import GradCamTarget
from galaxyhpc.inspect.inputs import load_context, load_or_compute_features
from galaxyhpc.inspect.page import disambiguate_labels, make_panels
from galaxyhpc.models.activations import Activations
from galaxyhpc.storage.files import sha256, write_text
from galaxyhpc.storage.run_dir import RunDir

D4 = ModelConfig(group="D4", scale=0.1)


def make_run(sweep: Path, model: ModelConfig = D4, seed: int = 0, split_seed: int = 0) -> RunDir:
    cache = sweep.parent / "cache"
    demo = DemoConfig(galaxies=150, size=32)
    data = DataConfig(cache=str(cache), image_size=SIDE, demo=demo, test_fraction=0.2, split_seed=split_seed)
    config = RunConfig(data=data, model=model, seed=seed)
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    torch.save({"model": make_untrained(model).state_dict()}, run.best_file)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("runs") / "sweep")


@pytest.fixture(scope="module")
def output(run: RunDir) -> Path:
    """Inspect one run with the default output directory."""
    assert main([str(run.path), "--conditions", "clean", "flip", "--galaxies", "3", "5"]) == 0
    return run.path / "inspect"


def seen(features: np.ndarray) -> Activations:
    return Activations(features, 2 * features, np.zeros((len(features), 10), np.float32))


def make_run_features(clean: np.ndarray, moved: np.ndarray) -> RunFeatures:
    columns = [np.arange(len(clean))] * 3
    return RunFeatures(*columns, {CLEAN: seen(clean), ("flip", 1.0): seen(moved)}, "a", "w", "f", False)


def test_distances_are_told_in_units_of_the_median_distance_between_two_galaxies() -> None:
    random = np.random.default_rng(0)
    clean, moved = random.normal(size=(2, 20, 5)).astype(np.float32)
    pairs = [np.linalg.norm(clean[i] - clean[j]) for i in range(20) for j in range(i)]
    expected = [np.linalg.norm(moved[i] - clean[i]) / np.median(pairs) for i in range(20)]
    np.testing.assert_allclose(features.compute_distances(clean, moved), expected, rtol=1e-5)
    table = features.compute_distance_table(make_run_features(clean, moved))
    assert list(table.features) == ["penultimate", "pooled"] and (table.condition == "flip").all()
    quartiles = np.quantile(expected, (0.25, 0.5, 0.75))
    np.testing.assert_allclose(table[["q25", "median", "q75"]], [quartiles] * 2, rtol=1e-5)
    np.testing.assert_allclose(table.typical, np.median(pairs) * np.array([1, 2]), rtol=1e-5)


def test_a_network_that_sees_no_difference_between_galaxies_is_named() -> None:
    with pytest.raises(InspectError, match="expected > 0: the network does not distinguish them"):
        features.compute_typical_distance(np.ones((5, 3), np.float32))


def test_the_features_file_holds_every_condition_and_where_it_comes_from(run: RunDir, output: Path) -> None:
    run_features = features.load(output / "features.h5")
    assert run_features is not None and list(run_features.activations) == [CLEAN, ("flip", 1.0), ("flip", 2.0)]
    with h5py.File(output / "features.h5") as file:
        assert file.attrs["run_id"] == run.run_id and file.attrs["weights"] == sha256(run.best_file)
        assert file.attrs["generated"] and len(file.attrs["fingerprint"]) == 64
        assert file["penultimate"].shape == (3, len(run_features.rows), 32)
    split = pd.read_csv(run.sweep_dir / "split.csv", comment="#")
    assert split.split[run_features.rows].eq("test").all()
    assert np.array_equal(split.label[run_features.rows], run_features.labels)
    assert not list(output.glob(".*"))


def test_everything_made_of_generated_galaxies_says_so(output: Path) -> None:
    page = (output / "inspect.html").read_text(encoding="utf-8")
    assert page.count(GENERATED_NOTICE) >= 5  # the page, three figures and a table
    assert pd.read_csv(output / "latent_distance.csv").generated.all()
    assert pd.read_csv(output / "embedding.csv").generated.all()
    places = {"t-SNE": np.random.default_rng(0).normal(size=(20, 2))}
    figure = figures.draw_embedding(figures.make_about("a", True, GALAXY10_CLASSES), places, np.arange(20) % 10, "")
    assert GENERATED_NOTICE in figure.get_suptitle()


def test_a_browser_shows_the_page_with_all_its_figures_and_asks_for_nothing(output: Path, open_page: Any) -> None:
    tab = open_page(output / "inspect.html")
    images = tab.locator("img")
    assert images.count() >= 3
    assert all(images.nth(n).evaluate("image => image.naturalWidth > 0") for n in range(images.count()))
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert [said for said in tab.messages if not said.startswith("data:")] == [(output / "inspect.html").as_uri()]


def test_the_coordinates_of_every_galaxy_are_kept(output: Path) -> None:
    table = pd.read_csv(output / "embedding.csv")
    assert {"row", "class", "name", "predicted", "isomap_1", "isomap_2", "tsne_1", "tsne_2"} <= set(table.columns)
    assert table[["isomap_1", "tsne_2"]].std().min() > 0 and table["row"].is_unique


def test_what_is_in_the_file_is_not_made_again_but_for_other_weights(run: RunDir, tmp_path: Path) -> None:
    context, file = load_context(run, torch.device("cpu")), tmp_path / "features.h5"
    first = load_or_compute_features(context, [("flip", 1.0)], file, Console())
    untouched = file.stat().st_mtime_ns
    again = load_or_compute_features(context, [("flip", 1.0)], file, Console())
    assert file.stat().st_mtime_ns == untouched and list(again.activations) == [CLEAN, ("flip", 1.0)]
    more = load_or_compute_features(context, [("flip", 2.0)], file, Console())
    kept = features.load(file)
    assert list(more.activations) == [CLEAN, ("flip", 2.0)] and kept is not None and len(kept.activations) == 3
    np.testing.assert_array_equal(kept.activations["flip", 1.0].logits, first.activations["flip", 1.0].logits)
    other = replace(context, classifier=replace(context.classifier, weights="other"))
    assert list(load_or_compute_features(other, [], file, Console()).activations) == [CLEAN]
    kept = features.load(file)
    assert kept is not None and (kept.weights, len(kept.activations)) == ("other", 1)


def test_several_runs_are_compared_on_the_same_galaxies(run: RunDir, tmp_path: Path) -> None:
    cnn = make_run(run.sweep_dir, ModelConfig(architecture="cnn", scale=0.1))
    assert main([str(run.path), str(cnn.path), "--output", str(tmp_path), "--conditions", "flip"]) == 0
    table = pd.read_csv(tmp_path / "latent_distance.csv")
    assert set(table.label) == {"D4 steerable_cnn", "cnn"} and set(table.run_id) == {run.run_id, cnn.run_id}
    moved = table[table.features == "penultimate"].groupby("label")["median"]
    assert moved.max()["D4 steerable_cnn"] < 1e-3 and moved.min()["cnn"] > 0.05
    assert (tmp_path / cnn.run_id / "features.h5").exists() and "cnn" in (tmp_path / "inspect.html").read_text()


def test_each_class_has_its_row_with_the_right_galaxy_left_and_the_wrong_one_right(run: RunDir) -> None:
    context = load_context(run, torch.device("cpu"))
    trained_on = int(context.split.loc[context.split.split == "train", "row"].iloc[0])
    sure, wrong = GradCamTarget(trained_on, 0, 0, 1, 0.9), GradCamTarget(5, 1, 4, 4, 0.5)
    panels, side = make_panels(context, [sure, None, None, wrong])
    assert [panel is None for panel in panels] == [False, True, True, False] and side == 3
    assert panels[3] is not None
    panels[3] = replace(panels[3], other_heat=0 * panels[3].other_heat)
    figure = figures.draw_grad_cam(figures.make_about("a", True, GALAXY10_CLASSES), panels, "")
    heads = [axes.get_title() for axes in figure.axes]
    assert heads[:3] == [f"row {trained_on} (train): correct, 90%", "true: Disturbed", "second: Merging"]
    assert not any(heads[3:9])
    assert heads[9:] == ["row 5 (train): WRONG, 50%", "true: Merging", "predicted: Cigar Shaped Smooth (no heat)"]
    for axes, panel in zip((figure.axes[1], figure.axes[10]), (panels[0], panels[3]), strict=True):
        assert panel is not None and panel.truth_heat.shape == (SIDE, SIDE) and len(axes.images) == 2
        np.testing.assert_array_equal(axes.images[1].get_array(), panel.truth_heat)


def test_networks_called_alike_are_told_apart_by_their_runs() -> None:
    table = pd.DataFrame({"run_id": ["a", "b", "c", "d"], "label": ["x", "x", "x", "y"], "seed": [0, 0, 1, 0]})
    assert list(disambiguate_labels(table)["label"]) == ["a", "b", "c", "y"]
    assert list(disambiguate_labels(table[1:])["label"]) == ["x", "x", "y"]  # seeds of one network


def test_isomap_takes_as_many_neighbours_as_connect_all_galaxies() -> None:
    near = np.random.default_rng(0).normal(size=(60, 4))
    apart = np.concatenate([near[:30], near[30:] + 100])  # a graph of 10 neighbours falls in two
    assert embedding.find_num_neighbours(near) == 10 and embedding.find_num_neighbours(apart) == 30
    placed = embedding.isomap(apart)
    assert np.array_equal(placed, embedding.isomap(apart))
    assert np.ptp(placed[:30, 0]) < 0.3 * abs(placed[:30, 0].mean() - placed[30:, 0].mean())


def test_bad_input_is_one_line_and_nothing_is_written(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained_run = RunDir(tmp_path / "sweep" / run.run_id)
    write_text(untrained_run.config_file, run.config_file.read_text())
    write_text(tmp_path / "sweep" / "plan.csv", f"run_id\n{run.run_id}\n")
    other = make_run(run.sweep_dir.parent / "other", split_seed=1)
    bad = {
        "rows": ([run.path, "--galaxies", "0", "150"], "got row 150; expected rows of the data file, 0 to 149"),
        "negative": ([run.path, "--galaxies", "-1"], "got row -1"),
        "condition": ([run.path, "--conditions", "snow"], "--conditions: got 'snow'; expected one of clean, rotation"),
        "untrained": ([untrained_run.path], "training is not finished"),
        "sweep": ([untrained_run.sweep_dir], "training is not finished"),
        "nothing": ([tmp_path], "neither config.json nor plan.csv"),
        "others": ([run.path, other.path, "--conditions", "clean"], "different test galaxies"),
        "rows of two": ([run.path, other.path, "--galaxies", "1"], "--galaxies: got 2 runs; expected one run"),
    }
    for arguments, message in bad.values():
        out = tmp_path / "out"
        assert main([*map(str, arguments), "--output", str(out)]) == 2
        stderr = capsys.readouterr().err
        assert stderr.count("\n") == 1 and message in stderr and not (out / "inspect.html").exists()


def test_only_features_of_the_same_weights_and_galaxies_are_one_source() -> None:
    one = make_run_features(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    assert features.is_same_source(one, replace(one, run_id="b"))
    for change in ({"weights": "v"}, {"fingerprint": "g"}, {"rows": np.array([0, 1, 5])}):
        assert not features.is_same_source(one, replace(one, **change))


@pytest.mark.parametrize(("count", "named"), [(2, 2), (16, 16), (1000, 17)])
def test_classes_are_told_apart_and_of_many_the_largest_are_named(count: int, named: int) -> None:
    labels = np.concatenate([np.arange(count), np.arange(count // 2)])
    places = {"t-SNE": np.random.default_rng(0).normal(size=(len(labels), 2))}
    names = tuple(f"class {n} $x$" for n in range(count))
    figure = figures.draw_embedding(figures.make_about("a", False, names), places, labels, "")
    (legend,) = figure.legends
    figure.canvas.draw()
    assert len(legend.get_texts()) == named
    assert (legend.get_texts()[0].get_text() == "984 other classes (1468)") is (count == 1000)
    box = legend.get_window_extent()
    assert box.y0 > 0 and not box.overlaps(figure.axes[0].get_window_extent())
    drawn = [points for points in figure.axes[0].collections if "other" not in str(points.get_label())]
    looks = {(tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()) for points in drawn}
    assert len(looks) == min(count, 16)


def test_images_of_unknown_scale_are_inspected_without_the_conditions_in_arcsec(run: RunDir) -> None:
    context, pairs = load_context(run, torch.device("cpu")), parse_conditions(DEFAULT_CONDITIONS)
    unscaled = replace(context, survey=replace(context.survey, pixel_scale_arcsec=np.nan))
    possible = select_possible(pairs, unscaled, is_default=True)
    assert possible == parse_conditions([name for name in DEFAULT_CONDITIONS if name != "psf_moffat"])
    assert select_possible(pairs, context, is_default=True) == pairs
    with pytest.raises(InspectError, match=r"--conditions: got psf_moffat, whose lengths are in arcsec.*expected"):
        select_possible(pairs, unscaled, is_default=False)
