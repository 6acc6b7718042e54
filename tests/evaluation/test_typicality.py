"""Typicality: a p-value that galaxies of the same survey have evenly, and others hardly; made once per run."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import SIDE, make_untrained
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, RunConfig
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.evaluation.typicality import fit_typicality, get_typicality, get_typicality_file, load
from galaxyhpc.models.activations import compute_activations
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(6, 6))


def draw_features(count: int, shift: float = 0.0) -> np.ndarray:
    """Return correlated features, (count, 6)."""
    return RNG.normal(shift, 1.0, (count, 6)) @ MIXING


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A network with random weights and 120 demo galaxies, of which it needs nothing but its features."""
    folder = tmp_path_factory.mktemp("runs")
    demo = DemoConfig(galaxies=120, size=SIDE)
    data = DataConfig(
        cache=str(folder / "cache"), image_size=SIDE, demo=demo, validation_fraction=0.3, test_fraction=0.3
    )
    config = RunConfig(data=data, model=ModelConfig(architecture="cnn", scale=0.5))
    run = RunDir(folder / "sweep" / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    torch.save({"model": make_untrained(config.model).state_dict()}, run.best_file)
    return trained_model.load(run.path, torch.device("cpu"))


@torch.inference_mode()
def compute_typicality(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Return the typicality of (n, 3, S, S) uint8 images."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    return get_typicality(classifier).compute(compute_activations(classifier.network, pixels).pooled.numpy())


def test_blank_and_noisy_images_are_less_typical_than_test_galaxies(classifier: Classifier) -> None:
    galaxies, split = open_dataset(classifier.config.data, classifier.run.sweep_dir)
    test = compute_typicality(classifier, galaxies.images[split.split == "test"])
    assert 0.3 < test.mean() < 0.7  # even, but for the small number
    blank = np.stack([np.full((3, SIDE, SIDE), grey, np.uint8) for grey in range(0, 256, 8)])
    noise = RNG.integers(0, 256, blank.shape, np.uint8)
    for others in (blank, noise):
        typicality = compute_typicality(classifier, others)
        is_galaxy = np.arange(len(test) + len(others)) < len(test)
        assert roc_auc_score(is_galaxy, np.concatenate([test, typicality])) > 0.85


def test_galaxies_of_the_same_kind_have_all_values_alike() -> None:
    typicality = fit_typicality(draw_features(4000), draw_features(4000), "weights")
    values = typicality.compute(draw_features(4000))
    assert kstest(values, "uniform").pvalue > 0.01
    assert values.min() > 0.0 and values.max() <= 1.0


def test_the_farthest_galaxy_has_the_smallest_value_and_the_nearest_one() -> None:
    training = draw_features(500)
    typicality = fit_typicality(training, draw_features(99), "weights")
    assert typicality.compute(draw_features(5, shift=100.0)).tolist() == pytest.approx([1 / 100] * 5)
    assert typicality.compute(training.mean(0, keepdims=True)).tolist() == [1.0]


def test_distances_are_those_of_the_covariance_whatever_the_units_of_a_feature() -> None:
    units, others = np.array([1.0, 50.0, 1.0, 1e-3, 1.0, 1.0]), draw_features(20, shift=1.0)
    training = draw_features(20_000)
    distances = fit_typicality(training * units, training[:5], "w").compute_distances(others * units)
    shifts = others - training.mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", shifts, np.linalg.inv(np.cov(training.T)), shifts))
    np.testing.assert_allclose(distances, expected, rtol=0.02)  # with shrinkage


def test_dead_features_and_ones_that_are_not_finite_leave_a_value() -> None:
    training, validation = draw_features(200), draw_features(99)
    for features in (training, validation):
        features[:, 2] = 0.0
    typicality = fit_typicality(training, validation, "weights")
    others = draw_features(3)
    others[:, 2] = [0.0, 1e-3, np.inf]
    near, nearly_dead, infinite = typicality.compute(others)
    assert near > 0.01 and nearly_dead > 0.01 and infinite == pytest.approx(0.01)


def test_it_is_made_once_for_the_weights_of_a_run_and_again_where_its_file_is_damaged(classifier: Classifier) -> None:
    first, file = get_typicality(classifier), get_typicality_file(classifier.run)
    before = file.stat().st_mtime_ns
    again = get_typicality(classifier)
    assert file.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.distances, again.distances)
    file.write_bytes(file.read_bytes()[:3000])
    np.testing.assert_array_equal(get_typicality(classifier).whitening, first.whitening)
    other = replace(classifier, weights="of another training")
    assert get_typicality(other).weights == "of another training" and load(classifier.run, classifier.weights) is None


def test_two_processes_at_once_make_one_file(classifier: Classifier, tmp_path: Path) -> None:
    """The second waits for the first, and reads what that wrote."""
    get_typicality_file(classifier.run).unlink(missing_ok=True)
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(get_typicality, [classifier] * 2)
    np.testing.assert_array_equal(one.whitening, two.whitening)


def test_in_a_directory_without_write_permission_it_is_computed_and_not_kept(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = classifier.run.path, get_typicality(classifier)
    get_typicality_file(classifier.run).unlink()
    (path / ".lock-typicality").unlink()
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)  # root may write everywhere
    path.chmod(0o555)
    try:
        np.testing.assert_array_equal(get_typicality(classifier).whitening, expected.whitening)
    finally:
        path.chmod(0o755)
    assert not get_typicality_file(classifier.run).exists()
