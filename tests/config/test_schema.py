"""A run's settings: what is refused, what they are called by, and what makes a run another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from galaxyhpc.config.schema import RunConfig, find_nearest_image_sizes, is_exact_image_size
from galaxyhpc.config.setting_parser import DEFAULTS
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

BASE: dict[str, Any] = {"data.source": "demo", "model.group": "C4", "seed": 0}

OTHER: dict[str, Any] = {
    "data.source": "galaxies.h5",
    "data.cache": "/scratch",
    "data.image_size": 33,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.3,
    "data.split_seed": 1,
    "data.label_fraction": 0.5,
    "data.link_arcsec": 0.0,
    "data.conflicting_duplicates": "keep",
    "data.demo.galaxies": 500,
    "data.demo.size": 32,
    "data.demo.seed": 1,
    "model.architecture": "cnn",
    "model.group": "D4",
    "model.width": "parameters",
    "model.scale": 0.5,
    "model.head": "flatten",
    "model.depth": 50,
    "model.widen": 4,
    "model.restriction": ["C2", "C1"],
    "model.blocks": [1, 1, 1, 1],
    "model.base_width": 5,
    "model.pretrained": True,
    "model.opening": 4,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.1,
    "train.body_learning_rate": 0.01,
    "train.weight_decay": 0.0,
    "train.momentum": 0.5,
    "train.schedule": "cosine",
    "train.milestones": [0.5],
    "train.decay": 0.5,
    "train.warmup": 0.1,
    "train.clip_norm": 1.0,
    "train.ema_decay": 0.999,
    "train.label_smoothing": 0.1,
    "train.class_weights": "balanced",
    "train.early_stopping": 3,
    "train.precision": "bfloat16",
    "train.sync_batchnorm": True,
    "augment.rotation": 90.0,
    "augment.shift": 0.0,
    "augment.flip": 0.5,
    "evaluate.conditions": ["clean"],
    "evaluate.batch_size": 1,
    "evaluate.attack.galaxies": 100,
    "evaluate.attack.population": 10,
    "evaluate.attack.iterations": 5,
    "resources.nodes": 2,
    "resources.tasks_per_node": 2,
    "resources.gpus_per_node": 2,
    "resources.cpus_per_task": 2,
    "resources.memory_gb": 2.0,
    "resources.time_minutes": 2,
    "resources.partition": "gpu",
    "resources.account": "astro",
    "resources.qos": "long",
    "resources.constraint": "a100",
    "resources.exclude_nodes": ["node3"],
    "resources.setup": ["module load cuda"],
    "resources.micro_batch": 4,
    "resources.convolution": "dense",
    "resources.checkpoint_minutes": 2.0,
}
RESNET = {"model.architecture": "e2resnet", "model.depth": 18}
WIDE = {"model.architecture": "e2wrn", "model.depth": 16, "model.widen": 8}
BESIDE: dict[str, dict[str, Any]] = {  # what has to be set with a setting
    "model.architecture": {"model.group": None},
    "model.depth": RESNET,
    "model.blocks": RESNET,
    "model.base_width": RESNET,
    "model.widen": WIDE,
    "model.restriction": WIDE,
    "model.pretrained": {"model.architecture": "resnet18", "model.group": None},
    "train.body_learning_rate": {"model.architecture": "resnet18", "model.group": None, "model.pretrained": True},
}
NOT_THE_WEIGHTS = {key for key in OTHER if key.startswith(("evaluate.", "resources."))} | {"data.cache"}


def config(**changes: Any) -> RunConfig:
    """Make a run of dotted settings."""
    values: dict[str, Any] = {}
    for key, value in (BASE | changes).items():
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return RunConfig.model_validate(values)


def changed(key: str) -> RunConfig:
    """Make a run that differs in one setting from one of those that go with it."""
    return config(**BESIDE.get(key, {}) | {key: OTHER[key]})


def test_every_setting_is_tried_below() -> None:
    assert OTHER.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("key", sorted(OTHER.keys() - NOT_THE_WEIGHTS))
def test_what_decides_the_weights_makes_another_run(key: str) -> None:
    beside = {} if key == "model.architecture" else BESIDE.get(key, {})
    assert changed(key).run_id != config(**beside).run_id


@pytest.mark.parametrize("key", sorted(NOT_THE_WEIGHTS))
def test_how_a_run_is_evaluated_and_where_it_runs_does_not_make_another(key: str) -> None:
    assert changed(key) != config()
    assert changed(key).run_id == config().run_id


def test_another_seed_is_another_run_that_says_so() -> None:
    assert config(seed=3).run_id.startswith("C4-steerable_cnn-s3-")
    assert len({config(seed=seed).run_id.rpartition("-")[2] for seed in range(3)}) == 3


def test_where_the_same_file_lies_does_not_make_another_run_nor_do_demo_galaxies_beside_it() -> None:
    here = config(**{"data.source": "/here/galaxies.h5"})
    there = config(**{"data.source": "/there/galaxies.h5", "data.demo.galaxies": 500})
    assert here.run_id == there.run_id


def test_a_whole_number_for_a_real_one_is_the_same_run() -> None:
    assert config(**{"model.scale": 1, "augment.rotation": 180}).run_id == config().run_id


@pytest.mark.parametrize("key", sorted(OTHER))
def test_settings_come_back_from_config_json_as_they_were(key: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    write_text(run.config_file, changed(key).model_dump_json(indent=2))
    assert run.load_config() == changed(key)
    assert run.load_config().run_id == changed(key).run_id


def test_settings_are_frozen() -> None:
    made = config()
    for owner, name in ((made, "seed"), (made.train, "epochs"), (made.data.demo, "size")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, name, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("extra", 1),
        ("train.lr", 0.1),
        ("train.epochs", "3"),
        ("train.epochs", 3.0),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", float("nan")),
        ("train.milestones", ["0.5"]),
        ("model.group", "C0"),
        ("model.group", "C65"),
        ("model.group", "c4"),
        ("model.group", "C4\n"),
        ("model.group", None),
        ("model.architecture", "cnn"),
        ("data.test_fraction", 0.85),
        ("data.image_size", 64),
        ("data.image_size", 32),
        ("evaluate.conditions", []),
        ("resources.time_minutes", 1),
    ],
)
def test_what_no_run_can_have_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        config(**{key: value})


@pytest.mark.parametrize(
    ("size", "near"), [(1, [33]), (50, [33, 63]), (64, [63, 65]), (256, [255, 257]), (100, [65, 127])]
)
def test_the_nearest_image_sizes_are_good_ones(size: int, near: list[int]) -> None:
    assert find_nearest_image_sizes(size) == near
    assert all(map(is_exact_image_size, near))
    assert not is_exact_image_size(size)
