"""Averaged weights: what is averaged and saved, and that a resume changes no bit of it.

pytest -n0 tests/test_ema.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.tiers import slow
from helpers.warm_processes import start_python
from torch import nn

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import (
    BASELINES,
    AugmentConfig,
    DataConfig,
    DemoConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import load_device_dataset, predict
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.ema import Ema, make_ema
from galaxyhpc.training.trainer import train
from galaxyhpc.training.validation import validate
from galaxyhpc.verify_resume import find_first_difference, hash_outputs

NARROW = {"scale": 0.03}
NETWORKS = [
    *(pytest.param(PRESETS[name] | NARROW, id=name) for name in ("D4", "CNN", "WRN16d8d4d1", "d4resnet18")),
    *(pytest.param({"architecture": name}, id=name) for name in BASELINES),
]


def network(settings: dict[str, object]) -> nn.Module:
    return build_model(ModelConfig.model_validate(settings), 33)


def update(average: Ema, model: nn.Module, num_steps: int) -> None:
    for step in range(num_steps):
        average.set_weight(step)
        average.update(model)


@pytest.mark.parametrize("settings", NETWORKS)
def test_a_state_dict_holds_weights_and_statistics_alone_before_and_after_evaluation(settings) -> None:
    model = network(settings)
    names = list(model.state_dict())
    buffers = set(names) - {name for name, _ in model.named_parameters()}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in buffers)
    with torch.no_grad():
        model.eval()(torch.rand(2, 3, 33, 33))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("settings", NETWORKS)
def test_a_network_that_was_evaluated_is_averaged_and_its_average_is_a_network_of_the_same_kind(settings) -> None:
    model, images = network(settings), torch.rand(4, 3, 33, 33)
    with torch.no_grad():
        model(images)
        model.eval()(images)
        average = make_ema(model, 0.9)
        update(average, model, 3)
        assert list(average.module.state_dict()) == list(model.state_dict())
        integers = [(name, b) for name, b in model.named_buffers() if not b.is_floating_point()]
        assert all(torch.equal(dict(average.module.named_buffers())[name], b) for name, b in integers)
        torch.testing.assert_close(average.module.eval()(images), copy.deepcopy(model).eval()(images))


def test_an_average_forgets_as_fast_as_it_is_told_and_begins_as_a_plain_mean() -> None:
    model = nn.BatchNorm1d(1)
    average, expected, total = make_ema(model, 0.8), 0.0, 0.0
    for step in range(1, 12):
        average.set_weight(step - 1)
        for value in (model.weight.data, model.running_mean):
            value.fill_(step**2)
        average.update(model)
        total += step**2
        expected = total / step if step <= 5 else 0.8 * expected + 0.2 * step**2
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.module.running_mean.item() == pytest.approx(expected, rel=1e-5)


def test_whole_numbers_are_copied_and_not_averaged() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("order", torch.arange(100))
    average = make_ema(model, 0.9)
    update(average, model, 30)
    assert torch.equal(average.module.order, model.order)


# Training


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings_of(cache: Path, **changes: object) -> RunConfig:
    options = {"epochs": 2, "batch_size": 70, "learning_rate": 3e-3, "ema_decay": 0.7, **changes}
    return RunConfig(
        data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32)),
        model=ModelConfig(architecture="cnn", scale=0.1),
        train=TrainConfig.model_validate(options),
        augment=AugmentConfig(),
    )


def make_run(sweep: Path, config: RunConfig) -> RunDir:
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    return run


def last_state(run: RunDir) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(checkpoint.list_checkpoints(run)[-1] / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("unbroken"), settings_of(cache))
    assert train(run, StopSignal())
    return run


def test_the_averaged_weights_are_validated_and_kept(unbroken: RunDir, cache: Path, tmp_path: Path) -> None:
    state, best = last_state(unbroken), torch.load(unbroken.best_file, weights_only=True)
    assert list(state["average"]) == list(state["model"])
    config = unbroken.load_config()
    network = build_model(config.model, config.data.image_size)
    network.load_state_dict(best["model"])
    galaxies, split = open_dataset(config.data, unbroken.sweep_dir)
    held_out = torch.tensor(split.row[split.split == "validation"].to_numpy())
    process, dataset = Process(RankInfo(), torch.device("cpu")), load_device_dataset(galaxies, torch.device("cpu"))
    loss, accuracy, balanced = validate(network, dataset, held_out, process, config.evaluate.batch_size)
    record = unbroken.read_metrics()[best["epoch"]]
    names = ("validation_loss", "validation_accuracy", "validation_balanced_accuracy")
    assert (loss, accuracy, balanced) == tuple(record[name] for name in names)
    logits, labels = predict(network, dataset, held_out, config.evaluate.batch_size)
    is_correct = logits.argmax(1) == labels
    recalls = [is_correct[labels == label].double().mean().item() for label in labels.unique()]
    assert balanced == pytest.approx(sum(recalls) / len(recalls))
    plain = make_run(tmp_path, settings_of(cache, ema_decay=None))
    assert train(plain, StopSignal())
    assert [m["train_loss"] for m in plain.read_metrics()] == [m["train_loss"] for m in unbroken.read_metrics()]
    assert [m["validation_loss"] for m in plain.read_metrics()] != [
        m["validation_loss"] for m in unbroken.read_metrics()
    ]
    weights = last_state(plain)["model"]
    assert all(torch.equal(weights[name], value) for name, value in state["model"].items())
    assert list(last_state(plain)) == [name for name in state if name != "average"]


def test_a_run_without_an_average_is_the_run_that_it_was_before(cache: Path) -> None:
    without, of_0999 = settings_of(cache, ema_decay=None), settings_of(cache, ema_decay=0.999)
    assert (
        without.get_identity()["train"]["ema_decay"] is None and of_0999.get_identity()["train"]["ema_decay"] == 0.999
    )
    assert without.run_id != of_0999.run_id
    assert make_ema(nn.Linear(1, 1), None) is None


@pytest.mark.parametrize("step", [slow(2), 4])
def test_a_run_that_was_stopped_has_the_average_of_an_unbroken_one(
    step: int, unbroken: RunDir, cache: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path, settings_of(cache))
    assert not train(run, StopSignal(), max_steps=step)
    assert train(run, StopSignal())
    assert find_first_difference(hash_outputs(run), hash_outputs(unbroken)) == ""
    assert any(name.startswith("checkpoint.average.") for name in hash_outputs(run))


TWICE = """
import os, sys, torch
from pathlib import Path
from galaxyhpc.training import trainer
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.storage.run_dir import RunDir
validated, validate = [], trainer.validate
trainer.validate = lambda network, *more: (validated.append(network), validate(network, *more))[1]
unbroken, stopped = (RunDir(Path(path)) for path in sys.argv[1:])
assert trainer.train(unbroken, StopSignal())
torch.save(validated[-1].state_dict(), unbroken.path / f"validated{os.environ['RANK']}.pt")
assert not trainer.train(stopped, StopSignal(), max_steps=3)
assert trainer.train(stopped, StopSignal())
"""


def test_two_processes_hold_one_average_and_have_it_again_after_a_stop(cache: Path, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, settings_of(cache)) for name in ("unbroken", "stopped")]
    started = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
        arguments = [str(run.path) for run in runs]
        started.append(start_python("-c", TWICE, *arguments, TORCHELASTIC_RUN_ID="one-average", **ranks))
    assert [process.wait() for process in started] == [0, 0]
    first, second = (torch.load(runs[0].path / f"validated{rank}.pt", weights_only=True) for rank in range(2))
    saved = last_state(runs[0])["average"]
    for name, value in first.items():
        assert torch.equal(second[name], value) and torch.equal(saved[name], value)
    assert find_first_difference(hash_outputs(runs[1]), hash_outputs(runs[0])) == ""
