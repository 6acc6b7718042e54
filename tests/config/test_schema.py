"""Settings of a run: the values that are refused, and the settings that change the run id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from galaxyhpc.config.schema import RunConfig, find_nearest_image_sizes, is_exact_image_size
from galaxyhpc.config.settings import DEFAULTS
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

BASE: dict[str, Any] = {"data.source": "demo", "model.group": "C4", "seed": 0}

CHANGED_VALUES: dict[str, Any] = {
    "data.source": "galaxies.h5",
    "data.cache": "/scratch",
    "data.image_size": 33,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.3,
    "data.split_seed": 1,
    "data.classes": ["spiral", "elliptical"],
    "data.columns.file": "picture",
    "data.columns.label": "type",
    "data.columns.id": "objid",
    "data.columns.ra": "alpha",
    "data.columns.dec": "delta",
    "data.columns.group": "field",
    "data.columns.split": "",
    "data.columns.redshift": "z",
    "data.images": "/images",
    "data.crop": "center",
    "data.fits.bands": "rrr",
    "data.fits.stretch": "lupton",
    "data.fits.scale": 2.0,
    "data.fits.Q": 5.0,
    "data.field_arcsec": 40.0,
    "data.fold": 1,
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
    "resources.sbatch": {"reservation": "night", "nice": 100, "exclusive": True},
    "resources.srun": ["--cpu-bind=cores"],
    "resources.requeue": "expedite",
    "resources.setup": ["module load cuda"],
    "resources.micro_batch": 4,
    "resources.convolution": "dense",
    "resources.checkpoint_minutes": 2.0,
}
RESNET = {"model.architecture": "e2resnet", "model.depth": 18}
WIDE = {"model.architecture": "e2wrn", "model.depth": 16, "model.widen": 8}
REQUIRED_SETTINGS: dict[str, dict[str, Any]] = {  # that a setting can only be changed together with
    "model.architecture": {"model.group": None},
    "model.depth": RESNET,
    "model.blocks": RESNET,
    "model.base_width": RESNET,
    "model.widen": WIDE,
    "model.restriction": WIDE,
    "model.pretrained": {"model.architecture": "resnet18", "model.group": None},
    "train.body_learning_rate": {"model.architecture": "resnet18", "model.group": None, "model.pretrained": True},
}
OUTSIDE_IDENTITY = {key for key in CHANGED_VALUES if key.startswith(("evaluate.", "resources.", "data.columns."))}
OUTSIDE_IDENTITY |= {"data.cache", "data.images", "data.field_arcsec"}


def make_config(**changes: Any) -> RunConfig:
    """Return a run with these dotted settings."""
    values: dict[str, Any] = {}
    for key, value in (BASE | changes).items():
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return RunConfig.model_validate(values)


def make_changed(key: str) -> RunConfig:
    """Return a run in which this setting is not the default."""
    return make_config(**REQUIRED_SETTINGS.get(key, {}) | {key: CHANGED_VALUES[key]})


def test_every_setting_has_a_changed_value() -> None:
    assert CHANGED_VALUES.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("key", CHANGED_VALUES)
def test_the_settings_that_decide_the_weights_compare_equal_to_those_a_checkpoint_recorded(key: str) -> None:
    identity = make_changed(key).get_identity()
    assert json.loads(json.dumps(identity)) == identity  # lists, not tuples: a run would not resume


@pytest.mark.parametrize("key", sorted(CHANGED_VALUES.keys() - OUTSIDE_IDENTITY))
def test_a_setting_that_decides_the_weights_changes_the_run_id(key: str) -> None:
    required = {} if key == "model.architecture" else REQUIRED_SETTINGS.get(key, {})
    assert make_changed(key).run_id != make_config(**required).run_id


@pytest.mark.parametrize("key", sorted(OUTSIDE_IDENTITY))
def test_evaluation_and_resources_do_not_change_the_run_id(key: str) -> None:
    assert make_changed(key) != make_config()
    assert make_changed(key).run_id == make_config().run_id


def test_the_run_id_names_the_seed_and_depends_on_it() -> None:
    assert make_config(seed=3).run_id.startswith("C4-steerable_cnn-s3-")
    assert len({make_config(seed=seed).run_id.rpartition("-")[2] for seed in range(3)}) == 3


def test_neither_the_path_of_the_data_nor_unused_demo_settings_change_the_run_id() -> None:
    here = make_config(**{"data.source": "/here/galaxies.h5"})
    there = make_config(**{"data.source": "/there/galaxies.h5", "data.demo.galaxies": 500})
    assert here.run_id == there.run_id


def test_an_integer_for_a_float_is_the_same_run() -> None:
    assert make_config(**{"model.scale": 1, "augment.rotation": 180}).run_id == make_config().run_id


@pytest.mark.parametrize("key", sorted(CHANGED_VALUES))
def test_settings_are_read_back_from_config_json_unchanged(key: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    write_text(run.config_file, make_changed(key).model_dump_json(indent=2))
    assert run.load_config() == make_changed(key)
    assert run.load_config().run_id == make_changed(key).run_id


def test_settings_are_frozen() -> None:
    run = make_config()
    for owner, name in ((run, "seed"), (run.train, "epochs"), (run.data.demo, "size")):
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
def test_a_value_that_a_setting_cannot_have_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        make_config(**{key: value})


@pytest.mark.parametrize(
    ("size", "nearest"), [(1, [33]), (50, [33, 63]), (64, [63, 65]), (256, [255, 257]), (100, [65, 127])]
)
def test_the_nearest_image_sizes_are_exact(size: int, nearest: list[int]) -> None:
    assert find_nearest_image_sizes(size) == nearest
    assert all(map(is_exact_image_size, nearest))
    assert not is_exact_image_size(size)


def test_no_setting_is_checked_by_a_method_that_a_sweeps_file_would_not_know() -> None:
    models: list[Any] = [RunConfig]
    for model in models:
        assert not model.__pydantic_decorators__.field_validators, f"{model.__name__}: check it in the setting's type"
        models += [
            field.annotation for field in model.model_fields.values() if hasattr(field.annotation, "model_fields")
        ]
    assert len(models) > 8
