"""Real training processes on generated galaxies: killed, resumed, compared bit by bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.device import capture_on_cpu
from helpers.tiers import slow
from helpers.warm_processes import WarmProcess, start_python

from galaxyhpc.config.schema import (
    AugmentConfig,
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.data import augment
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.job import catch_stop_signals
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.steerable.layers import SteerableConv
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.training import trainer
from galaxyhpc.training.optimizer import compute_learning_rate
from galaxyhpc.training.state import Progress
from galaxyhpc.training.trainer import train

EPOCHS, STEPS = 3, 3 * 5  # 210 training galaxies in batches of 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_run(sweep: Path, cache: Path, **changes: object) -> RunDir:
    """Write the directory of a small run."""
    train: dict[str, object] = {"epochs": EPOCHS, "batch_size": 40, "learning_rate": 3e-3, "schedule": "cosine"}
    resources = {
        name: changes.pop(name) for name in ("checkpoint_minutes", "micro_batch", "convolution") if name in changes
    }
    model = (
        ModelConfig(group="C4", scale=0.1)
        if not changes.pop("cnn", False)
        else ModelConfig(architecture="cnn", scale=0.2)
    )
    config = RunConfig(
        data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32)),
        model=model,
        train=TrainConfig(**{**train, **changes}),
        augment=AugmentConfig(),
        evaluate=EvaluateConfig(conditions=("clean", "shot_noise")),
        resources=ResourcesConfig(**resources),
    )
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    return run


def start(run: RunDir, processes: int = 1) -> list[WarmProcess]:
    """Start the processes of a job with the environment that torchrun sets."""
    job = {"TORCHELASTIC_RUN_ID": f"test-{time.time_ns()}", "WORLD_SIZE": str(processes), "GROUP_WORLD_SIZE": "1"}
    ranks = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    return [start_python("-m", "jobs.train", str(run.path), log=run.path / "output.txt", **rank) for rank in ranks]


def wait(processes: list[WarmProcess]) -> set[int]:
    return {process.wait() for process in processes}


def finish(run: RunDir, processes: int = 1) -> RunDir:
    assert wait(start(run, processes)) == {0}, (run.path / "output.txt").read_text()[-3000:]
    return run


def kill_at(run: RunDir, step: int, number: int = signal.SIGKILL, processes: int = 1) -> set[int]:
    """Start a run and send its processes a signal when its newest checkpoint has reached a step."""
    started = start(run, processes)
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in checkpoint.list_checkpoints(run)):
        assert started[0].poll() is None, (run.path / "output.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.Random(step).uniform(0, 0.1))
    for process in started:
        os.kill(process.pid, number)
    return wait(started)


def last_state(run: RunDir) -> dict[str, object]:
    path = checkpoint.list_checkpoints(run)[-1]
    checkpoint.verify(path, run.run_id)
    return torch.load(path / "state.pt", weights_only=True)


def assert_same(value: object, expected: object, where: str = "") -> None:
    """Demand equal bits in nested containers of tensors and numbers."""
    assert type(value) is type(expected), where
    if isinstance(expected, dict):
        assert list(value) == list(expected), where
        for name, item in expected.items():
            assert_same(value[name], item, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for number, item in enumerate(expected):
            assert_same(value[number], item, f"{where}[{number}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected), where
    else:
        assert value == expected, where


def assert_same_end(run: RunDir, other: RunDir) -> None:
    assert_same(last_state(run), last_state(other))
    assert run.metrics_file.read_text() == other.metrics_file.read_text()
    best, expected = (torch.load(r.best_file, weights_only=True) for r in (run, other))
    assert_same(best, expected)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDir:
    return finish(make_run(tmp_path_factory.mktemp("unbroken"), cache, checkpoint_minutes=0.0))


def test_an_unbroken_run_leaves_metrics_two_checkpoints_and_the_best_weights(unbroken: RunDir) -> None:
    records = unbroken.read_metrics()
    assert [record["epoch"] for record in records] == list(range(EPOCHS))
    assert [path.name for path in checkpoint.list_checkpoints(unbroken)] == ["step_00000014", "step_00000015"]
    best = torch.load(unbroken.best_file, weights_only=True)
    assert records[best["epoch"]]["validation_accuracy"] == max(r["validation_accuracy"] for r in records)
    assert read_state(unbroken).name == "trained"


def test_a_finished_run_started_again_changes_nothing(unbroken: RunDir) -> None:
    before = {path: path.read_bytes() for path in (unbroken.best_file, unbroken.metrics_file)}
    finish(unbroken)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("step", [1, 13])
def test_a_run_killed_at_a_step_ends_where_an_unbroken_one_does(
    step: int, tmp_path: Path, cache: Path, unbroken: RunDir
) -> None:
    run = make_run(tmp_path, cache, checkpoint_minutes=0.0)
    assert kill_at(run, step) == {-signal.SIGKILL}
    assert not run.best_file.exists()
    finish(run)
    starts = [event for event in run.read_events() if event["event"] == "started"]
    assert len(starts) == 2 and starts[1]["step"] >= step
    assert_same_end(run, unbroken)


@pytest.mark.parametrize("number", [signal.SIGUSR2, slow(signal.SIGINT)])  # TERM below and on Slurm
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_from_there(
    number: int, tmp_path: Path, cache: Path, unbroken: RunDir
) -> None:
    run = make_run(tmp_path, cache)  # saves once per epoch, so what is saved in between is the signal's doing
    assert kill_at(run, 5, number) == {75}
    saved = last_state(run)["progress"]["step"]
    assert read_state(run).name == "stopped" and saved >= 5
    finish(run)
    assert next(e["step"] for e in reversed(run.read_events()) if e["event"] == "started") == saved
    assert_same_end(run, unbroken)


@pytest.mark.slow
def test_three_processes_killed_and_resumed_end_with_the_same_bits(tmp_path: Path, cache: Path) -> None:
    unbroken = finish(make_run(tmp_path / "whole", cache, checkpoint_minutes=0.0), processes=3)
    run = make_run(tmp_path / "broken", cache, checkpoint_minutes=0.0)
    kill_at(run, 6, processes=3)
    finish(run, processes=3)
    assert_same_end(run, unbroken)


def test_without_dense_filters_a_killed_run_ends_with_the_same_bits_too(tmp_path: Path, cache: Path) -> None:
    options = {"convolution": "harmonic", "micro_batch": 20, "checkpoint_minutes": 0.0, "epochs": 1}
    unbroken = finish(make_run(tmp_path / "whole", cache, **options))
    assert set(kernel_choice.read_choice(unbroken)["training"].values()) == {True}
    run = make_run(tmp_path / "broken", cache, **options)
    kill_at(run, 2)
    config = run.load_config()
    resources = config.resources.model_copy(update={"convolution": "dense"})  # comes too late
    write_text(run.config_file, config.model_copy(update={"resources": resources}).model_dump_json())
    assert_same_end(finish(run), unbroken)


@pytest.mark.compiler
def test_without_dense_filters_the_losses_are_the_same_to_rounding(tmp_path: Path, cache: Path) -> None:
    options = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-2, "schedule": "constant"}
    runs = [make_run(tmp_path / name, cache, convolution=name, **options) for name in ("dense", "harmonic")]
    with catch_stop_signals() as stop:
        assert all(train(run, stop) for run in runs)
    dense, harmonic = (run.read_metrics()[0]["train_loss"] for run in runs)
    assert harmonic == pytest.approx(dense, rel=1e-4)  # the loss itself may even have the same bits
    first, second = (torch.load(run.best_file, weights_only=True)["model"] for run in runs)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_run_from_before_there_was_a_choice_stays_dense(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, convolution="dense", epochs=1)
    with catch_stop_signals() as stop:
        assert not train(run, stop, max_steps=2)
        kernel_choice.get_choice_path(run).unlink()
        config = run.load_config()
        resources = config.resources.model_copy(update={"convolution": "harmonic"})
        write_text(run.config_file, config.model_copy(update={"resources": resources}).model_dump_json())
        assert train(run, stop)
    assert not kernel_choice.get_choice_path(run).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("starter", "parts"), [("warm", 1), ("torchrun", 2)])
def test_two_processes_with_sync_batchnorm_take_the_step_that_one_takes(
    starter: str, parts: int, tmp_path: Path, cache: Path
) -> None:
    # one step of plain gradient descent: more of them, or Adam, would blow rounding up
    options = {"sync_batchnorm": True, "epochs": 1, "batch_size": 200, "optimizer": "sgd", "learning_rate": 1.0}
    one = finish(make_run(tmp_path / "one", cache, micro_batch=200 // parts, **options))
    two = make_run(tmp_path / "two", cache, micro_batch=100 // parts, **options)
    if starter == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        result = subprocess.run([*torchrun, "-m", "jobs.train", str(two.path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    else:
        finish(two, 2)
    assert next(event for event in two.read_events() if event["event"] == "started")["world"] == 2
    for name, value in last_state(one)["model"].items():
        torch.testing.assert_close(last_state(two)["model"][name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert one.read_metrics()[0]["train_loss"] == pytest.approx(two.read_metrics()[0]["train_loss"], rel=1e-4)


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_previous_one_taken(
    tmp_path: Path, cache: Path, unbroken: RunDir
) -> None:
    run = make_run(tmp_path, cache, checkpoint_minutes=0.0)
    kill_at(run, 8)
    newest = checkpoint.list_checkpoints(run)[-1]
    damaged = bytearray((newest / "state.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "state.pt").write_bytes(damaged)
    finish(run)
    assert f"checkpoint {newest.name} is damaged (state.pt does not have" in (run.path / "output.txt").read_text()
    assert_same_end(run, unbroken)


def test_a_run_stops_and_saves_when_its_jobs_time_is_nearly_over_and_goes_on_from_there(
    tmp_path: Path, cache: Path, unbroken: RunDir
) -> None:
    run = make_run(tmp_path, cache)
    with catch_stop_signals() as stop:
        stop.end_time = time.time() + 5.0  # nearer than the notice that training needs
        assert not train(run, stop)
    assert stop.should_requeue and not stop.should_exit
    assert last_state(run)["progress"]["step"] == 1
    assert_same_end(finish(run), unbroken)


def test_settings_changed_after_the_run_was_begun_are_refused_by_name(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, cnn=True)
    with catch_stop_signals() as stop:
        assert not train(run, stop, max_steps=2)
        config = run.load_config()
        changed = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 0.5})})
        write_text(run.config_file, changed.model_dump_json())
        with pytest.raises(
            checkpoint.ConfigChangedError, match=r"train\.learning_rate: got 0\.5; expected 0\.003, as in"
        ):
            train(run, stop)
        for path in checkpoint.list_checkpoints(run):
            shutil.rmtree(path)
        with pytest.raises(checkpoint.ConfigChangedError, match="these are the settings of cnn-s0-"):
            train(run, stop)


def test_settings_that_do_not_decide_the_weights_may_change(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, cnn=True)
    with catch_stop_signals() as stop:
        assert not train(run, stop, max_steps=2)
        config = run.load_config()
        resources = config.resources.model_copy(update={"time_minutes": 7, "micro_batch": 20})
        evaluate = config.evaluate.model_copy(update={"batch_size": 7})
        write_text(
            run.config_file,
            config.model_copy(update={"resources": resources, "evaluate": evaluate}).model_dump_json(),
        )
        assert train(run, stop)


def test_a_retry_with_half_the_micro_batch_keeps_the_global_batch_and_its_galaxies(tmp_path: Path, cache: Path) -> None:
    whole, halved = (make_run(tmp_path / name, cache, cnn=True, epochs=1) for name in ("whole", "halved"))
    halved.record("retried", why="out of memory", micro_batch=20)
    sizes: list[int] = []
    with catch_stop_signals() as stop:
        assert train(whole, stop)
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: sizes.append(len(inputs[0])) if type(module).__name__ == "StudyCNN" else None
        )
        assert train(halved, stop)
        hook.remove()
    assert set(sizes[:10]) == {20}
    assert whole.read_metrics()[0]["samples"] == halved.read_metrics()[0]["samples"]


@pytest.mark.parametrize("processes", [1, slow(2)])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(processes: int, tmp_path: Path, cache: Path) -> None:
    options = {"learning_rate": 1e30, "optimizer": "sgd", "schedule": "constant", "checkpoint_minutes": 0.0}
    run = make_run(tmp_path, cache, cnn=True, **options)
    assert wait(start(run, processes)) == {1}
    state = read_state(run)
    assert state.name == "failed"
    assert state.reason.startswith("TrainingError: the loss is nan in epoch 0, step 1")  # the first is step 0
    assert last_state(run)["progress"]["step"] == 1  # the step whose loss was finite
    assert all(value.isfinite().all() for value in last_state(run)["model"].values())


def test_a_loss_that_is_not_finite_in_an_epochs_last_step_leaves_no_metrics_and_no_checkpoint(
    tmp_path: Path, cache: Path
) -> None:
    run = make_run(tmp_path, cache, cnn=True, learning_rate=1e30, optimizer="sgd", schedule="constant", batch_size=100)
    with catch_stop_signals() as stop, pytest.raises(trainer.TrainingError, match=r"is nan in epoch 0, step 1$"):
        train(run, stop)
    assert not checkpoint.list_checkpoints(run) and not run.metrics_file.exists()


def test_a_run_with_replayed_steps_that_was_stopped_has_the_bits_of_an_unbroken_one_with_eager_steps(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # learning rates and numbers of steps are on the host here, so they have to be constant
    options = {"optimizer": "sgd", "schedule": "constant", "ema_decay": 0.9, "convolution": "dense", "epochs": 2}
    unbroken, stopped = (make_run(tmp_path / name, cache, cnn=True, **options) for name in ("unbroken", "stopped"))
    monkeypatch.setattr(augment, "_can_use_cpp", lambda images, maps: False)  # not an operation of torch
    with catch_stop_signals() as stop:
        assert train(unbroken, stop)
        monkeypatch.setattr(trainer, "prepare_capture", lambda process: capture_on_cpu)
        assert not train(stopped, stop, max_steps=4)
        assert train(stopped, stop)
    assert_same_end(stopped, unbroken)
    epochs = [
        [event["graph"] for event in run.read_events() if event["event"] == "epoch"] for run in (unbroken, stopped)
    ]
    assert epochs == [[False, False], [True]]  # an epoch that is resumed is not timed
    provenance = json.loads((stopped.path / "provenance.json").read_text())
    assert provenance["determinism"]["cudnn_deterministic"] and not provenance["determinism"]["bfloat16_sums"]
    assert provenance["determinism"]["cublas_workspaces"] == ":4096:8"


def test_every_training_option_makes_a_step(tmp_path: Path, cache: Path) -> None:
    options = {"precision": "bfloat16", "clip_norm": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"}
    more = {"optimizer": "sgd", "schedule": "multistep", "warmup": 0.2, "early_stopping": 1, "epochs": 2}
    run = finish(make_run(tmp_path, cache, cnn=True, micro_batch=16, **options, **more))
    assert all(0 < record["train_loss"] < 10 for record in run.read_metrics())


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path, cache: Path) -> None:
    run = finish(make_run(tmp_path, cache, cnn=True, epochs=40, early_stopping=1, learning_rate=1e-9))
    records = run.read_metrics()
    assert len(records) < 40 and not records[-1]["best"]
    assert json.loads(run.events_file.read_text().splitlines()[-1])["epochs"] == len(records)


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "expected"),
    [
        ("constant", 0.0, 99, 1.0),
        ("cosine", 0.0, 0, 1.0),
        ("cosine", 0.0, 50, 0.5),
        ("cosine", 0.1, 10, 1.0),
        ("multistep", 0.0, 24, 1.0),
        ("multistep", 0.0, 25, 0.1),
        ("multistep", 0.0, 75, 0.001),
    ],
)
def test_the_learning_rate_is_a_function_of_the_step(schedule: str, warmup: float, step: int, expected: float) -> None:
    config = TrainConfig(learning_rate=1.0, schedule=schedule, warmup=warmup)
    assert compute_learning_rate(step, 100, config) == pytest.approx(expected)


def test_warm_up_rises_to_the_full_learning_rate() -> None:
    config = TrainConfig(learning_rate=1.0, schedule="constant", warmup=0.1)
    rates = [compute_learning_rate(step, 100, config) for step in range(11)]
    assert rates == sorted(rates) and 0 < rates[0] < 0.2 and rates[10] == 1.0


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_after_the_processes_agreed_counts_at_the_next_step(
    number: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, cache, cnn=True)
    add_step = Progress.add_step

    def interrupted(self: Progress, *arguments: object) -> None:
        add_step(self, *arguments)
        if self.step == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "add_step", interrupted)
    with catch_stop_signals() as stop:
        assert not train(run, stop)
    assert last_state(run)["progress"]["step"] == 2


def test_the_pass_that_warms_up_ddp_has_the_precision_of_the_training() -> None:
    """In another one a GPU would compile every kernel twice, and convolutions would run in a type of no later use."""
    network = build_model(ModelConfig(group="C1", scale=0.1), 33)
    half, small = TrainConfig(precision="bfloat16"), DataConfig(image_size=33)
    config = RunConfig(model=ModelConfig(group="C1"), data=small, train=half)
    training = SimpleNamespace(
        config=config,
        process=Process(RankInfo(world_size=2), torch.device("cpu")),
        model=network,
        network=network,
        optimizer=torch.optim.SGD(network.parameters()),
    )
    dtypes = set()
    for layer in network.modules():
        if isinstance(layer, SteerableConv):
            layer.register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
    trainer._warm_up_ddp(training)  # type: ignore[arg-type]
    assert dtypes == {torch.bfloat16}
