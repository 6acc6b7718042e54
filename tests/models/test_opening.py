"""Morphological opening in front of a network: equal to scikit-image's, and part of training, evaluation and export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.morphology import disk, opening
from torch.nn.functional import cross_entropy

from galaxyhpc.analysis.collect import CollectedSweep, RunResults, label_networks
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.evaluation.trained_model import load
from galaxyhpc.export import convert_to_torch, export_program
from galaxyhpc.launch.smoke_test import INVARIANCE_TOLERANCE, check_tiny_model
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.equivariance import invariance_error
from galaxyhpc.models.opening import Opening
from galaxyhpc.models.profile import profile_network
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.optimizer import make_optimizer

C4 = ModelConfig(group="C4", scale=0.05)
ARCHITECTURES: list[dict[str, Any]] = [
    {"group": "D4", "scale": 0.05},
    {"architecture": "cnn", "scale": 0.05},
    {"architecture": "resnet18"},
    {"architecture": "squeezenet1_1"},
    {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 2},
    {"architecture": "e2wrn", "group": "D4", "depth": 10, "widen": 1},
]


def reference(images: torch.Tensor, radius: int) -> torch.Tensor:
    footprint = disk(radius)  # type: ignore[no-untyped-call]
    opened = [[opening(channel, footprint) for channel in image] for image in images.numpy()]
    return torch.from_numpy(np.array(opened))


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 5, 9])
def test_it_is_scikit_images_opening_to_the_last_bit_borders_included(radius: int) -> None:
    for height, width in ((33, 33), (7, 40), (64, 21)):
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(radius))
        assert torch.equal(Opening(radius)(images), reference(images, radius))
        stars = (images > 0.97).float()  # and where most values are equal
        assert torch.equal(Opening(radius)(1 - stars), reference(1 - stars, radius))


def test_what_is_smaller_than_the_disk_goes_and_what_is_larger_stays() -> None:
    images = torch.zeros(1, 3, 33, 33)
    images[..., 5, 5] = 1.0
    images[..., 15:26, 15:26] = 0.5
    opened = Opening(2)(images)
    assert opened[..., 5, 5].max() == 0.0 and opened[..., 20, 20].min() == 0.5
    assert torch.equal(Opening(2)(opened), opened)  # once is enough


def test_it_is_a_setting_of_every_architecture_and_changes_the_identity_only_where_it_is_set() -> None:
    for settings in ARCHITECTURES:
        without, opened = (RunConfig(model=ModelConfig(**settings, opening=r)) for r in (0, 4))
        assert without.get_identity()["model"]["opening"] == 0 and opened.get_identity()["model"]["opening"] == 4
        assert without.run_id != opened.run_id


def test_runs_with_and_without_it_are_two_networks_of_a_report() -> None:
    configs = [RunConfig(model=ModelConfig(group="C4", opening=radius)) for radius in (0, 4)]
    common = {"arch": "steerable_cnn", "group": "C4", "width": "fields", "head": "pool", "scale": 1.0}
    plan = pd.DataFrame([{**common, "image_size": 65, "seed": 0, "run_id": c.run_id} for c in configs])
    sweep = CollectedSweep(plan, [RunResults(RunDir(Path(c.run_id)), c) for c in configs])
    labels = label_networks(sweep).plan.label.tolist()
    assert labels == ["C4 steerable_cnn", "C4 steerable_cnn, opening 4"]


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=lambda s: s.get("architecture", "steerable_cnn"))
def test_every_architecture_opens_what_comes_in_and_keeps_its_weights_names(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(**settings), 33).eval()
    opened = build_model(ModelConfig(**settings, opening=2), 33).eval()
    opened.load_state_dict(network.state_dict())
    images = torch.rand(3, 3, 33, 33)
    with torch.inference_mode():
        expected = network(reference(images, 2))
        torch.testing.assert_close(opened(images), expected)
        torch.testing.assert_close(convert_to_torch(opened)(images), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(network(images), expected)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_an_invariant_network_stays_invariant(group: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 33, 33)
    for radius in (1, 4):
        layer, network = Opening(radius), build_model(ModelConfig(group=group, scale=0.05, opening=radius), 33)
        assert invariance_error(network, group, 33) < INVARIANCE_TOLERANCE
        assert torch.equal(layer(images.rot90(1, (2, 3))), layer(images).rot90(1, (2, 3)))  # it only compares
        assert torch.equal(layer(images.mT), layer(images).mT)


def test_preflights_twin_and_one_step_of_training_go_through_it() -> None:
    opened = C4.model_copy(update={"opening": 1})
    symmetry, problem = check_tiny_model(opened, TrainConfig())
    assert problem == "" and symmetry.exact_error is not None and symmetry.exact_error < INVARIANCE_TOLERANCE
    assert profile_network(opened, 33).parameters == profile_network(C4, 33).parameters
    network = build_model(opened, 33).train()
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = make_optimizer(network, TrainConfig(precision="bfloat16"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(4, 3, 33, 33))
    cross_entropy(logits.float(), torch.arange(4)).backward()
    optimizer.step()
    assert any(not torch.equal(before[name], value) for name, value in network.named_parameters())


def test_a_trained_run_is_exported_with_it(tmp_path: Path) -> None:
    settings = RunConfig(data=DataConfig(image_size=33), model=C4.model_copy(update={"opening": 3}))
    run = RunDir(tmp_path / settings.run_id)
    write_text(run.config_file, settings.model_dump_json())
    torch.save({"model": build_model(settings.model, 33).state_dict()}, run.best_file)
    network, images = load(run.path, torch.device("cpu")).network, torch.rand(3, 3, 33, 33)
    program = export_program(convert_to_torch(network), images[:2]).module()
    with torch.inference_mode():
        assert torch.allclose(program(images), network(images), atol=1e-5)


@pytest.mark.parametrize("radius", [-1, 33, 1.5, math.inf])
def test_radii_that_are_none_are_refused(radius: float) -> None:
    with pytest.raises(ValueError, match="opening"):
        ModelConfig.model_validate({"group": "C4", "opening": radius})
