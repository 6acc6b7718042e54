"""What runs are expected to take, and what they ask for because of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from galaxyhpc.analysis import run_cost
from galaxyhpc.analysis.run_cost import CostModel, CostModels, TimingRecord
from galaxyhpc.config.schema import DataConfig, ModelConfig, RequestedResources, ResourcesConfig, RunConfig, TrainConfig
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

AUTO = RequestedResources(gpus_per_node="auto", memory_gb="auto", time_minutes="auto", micro_batch=32)
ROUGH = CostModels(CostModel(), CostModel(), num_galaxies=17_736)


def config(resources: RequestedResources, seed: int = 0, **train: object) -> RunConfig:
    model, data = ModelConfig(group="C4"), DataConfig(image_size=65)
    return RunConfig(model=model, data=data, train=TrainConfig(**train), resources=resources, seed=seed)


def network(multiply_adds: float) -> NetworkProfile:
    return NetworkProfile(1_000_000, int(multiply_adds), saved_activations=400_000, largest_activation=50_000)


def resolved(
    run: RunConfig, multiply_adds: float, path: Path = Path("/nowhere"), of: CostModels = ROUGH
) -> ResourcesConfig:
    (found,) = run_cost.resolve_resources([run], {run.run_id: network(multiply_adds)}, of, path)
    return found.resources.resolved


def test_without_records_the_prior_predicts_with_a_wide_margin() -> None:
    assert (
        run_cost.fit_cost_model([]) == CostModel()
        and CostModel().safety_factor == 2.0
        and "prior" in CostModel().source
    )


def test_few_records_scale_the_prior() -> None:
    found = run_cost.fit_cost_model(
        [TimingRecord("cpu", 0.010, 0.031), TimingRecord("cpu", 0.010, 0.030), TimingRecord("cpu", 0.020, 0.060)]
    )
    assert (found.fixed_seconds, found.slope, found.num_runs, found.safety_factor) == (0.0, pytest.approx(3.0), 3, 1.5)


def test_many_records_give_a_line_that_a_run_on_a_busy_node_does_not_bend() -> None:
    records = [TimingRecord("cpu", x / 100, 0.004 + 2 * x / 100) for x in (1, 2, 3, 5, 8) for _ in range(3)]
    found = run_cost.fit_cost_model([*records, TimingRecord("cpu", 0.08, 50.0)])
    assert (found.fixed_seconds, found.slope) == (pytest.approx(0.004), pytest.approx(2.0))


def test_a_line_that_would_fall_is_not_believed() -> None:
    found = run_cost.fit_cost_model([TimingRecord("cpu", x / 100, 1 / x) for x in range(1, 8)])
    assert found.fixed_seconds == 0 and found.slope > 0


def test_of_several_gpus_the_one_with_the_most_runs_counts() -> None:
    records = [
        TimingRecord("A100", 1.0, 2.0),
        TimingRecord("H100", 1.0, 1.0),
        TimingRecord("H100", 1.0, 1.0),
        TimingRecord("cpu", 1.0, 9.0),
    ]
    found = run_cost.fit_cost_models(records, 100)
    assert (found.gpu.device, found.gpu.slope, found.cpu.slope) == ("H100", 1.0, 9.0)


def record(run: RunDir, plan: Path, *epochs: dict[str, object]) -> None:
    """Write what a finished run leaves."""
    made = config(ResourcesConfig())
    write_text(run.config_file, made.model_dump_json())
    for event in epochs:
        run.record("epoch", **event)
    with plan.open("w", newline="") as file:
        csv.writer(file).writerows([("run_id", "multiply_adds"), (run.run_id, 10**8)])


def test_records_are_the_median_epochs_of_all_sweeps_and_torn_ones_are_skipped(tmp_path: Path) -> None:
    whole = {"images": 1000, "world": 2, "device": "cpu"}
    for name in ("a", "b"):
        seconds = [{"seconds": 90.0}, {"seconds": 10.0}, {"seconds": 12.0}]
        run = RunDir(tmp_path / name / "run")
        record(run, tmp_path / name / "plan.csv", *(whole | one for one in seconds), {"images": 0, "seconds": 3.0})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "plan.csv").write_bytes(b"\xff\x00")
    found = run_cost.read_timing_records(tmp_path)
    prior = run_cost.estimate_prior_seconds(10**8, config(ResourcesConfig()), uses_gpu=False)
    assert found == [TimingRecord("cpu", prior, 12.0 * 2 / 1000)] * 2


def test_more_processes_share_a_run_and_more_images_lengthen_it() -> None:
    run, heavy = config(ResourcesConfig()), network(1e9)
    one, two = (run_cost.estimate_run_time(run, heavy, ROUGH, tasks) for tasks in (1, 2))
    assert (
        one.training_seconds == pytest.approx(2 * two.training_seconds)
        and one.evaluation_seconds == two.evaluation_seconds > 0
    )
    twice = run_cost.estimate_run_time(run, heavy, CostModels(CostModel(), CostModel(), 2 * ROUGH.num_galaxies))
    assert twice.training_seconds == pytest.approx(2 * one.training_seconds)


@pytest.mark.parametrize(
    ("seconds", "margin", "limit"),
    [(0, 2, 30), (749, 2, 30), (751, 2, 60), (3600, 1.5, 120), (1e4, 2, 480), (1e9, 2, 2880)],
)
def test_time_limits_come_in_few_classes(seconds: float, margin: float, limit: int) -> None:
    assert run_cost.choose_time_limit_minutes(seconds, margin) == limit


def test_numbers_win_over_auto() -> None:
    plain = ResourcesConfig(gpus_per_node=1, time_minutes=77, memory_gb=3.5)
    run = config(plain)
    assert run_cost.resolve_resources([run], {run.run_id: network(1e12)}, ROUGH, Path("/nowhere")) == [run]
    some = RequestedResources(gpus_per_node=1, time_minutes="auto", memory_gb=3.5)
    found = resolved(config(some), 1e9)
    assert (found.gpus_per_node, found.memory_gb) == (1, 3.5) and found.time_minutes in run_cost.TIME_LIMITS_MINUTES


def test_a_run_of_over_a_day_gets_more_gpus_with_one_process_each() -> None:
    small, large = resolved(config(AUTO), 1e10), resolved(config(AUTO), 3e11)
    assert (small.gpus_per_node, small.tasks_per_node) == (1, 1)
    assert (large.gpus_per_node, large.tasks_per_node) == (2, 2)
    assert large.memory_gb is not None and small.memory_gb is not None and large.memory_gb > small.memory_gb


def test_gpus_never_change_what_batch_normalisation_sees() -> None:
    assert resolved(config(AUTO, batch_size=128), 1e13).gpus_per_node == 4  # 8 would see 16 images, not 32
    alone = AUTO.model_copy(update={"micro_batch": None})
    assert resolved(config(alone), 1e13).gpus_per_node == 1
    assert resolved(config(alone, sync_batchnorm=True), 1e13).gpus_per_node == 8


def test_a_run_that_was_begun_keeps_its_gpus(tmp_path: Path) -> None:
    run = config(AUTO)
    begun = RunDir(tmp_path / run.run_id)
    begun.checkpoint_dir.mkdir(parents=True)
    had = run.model_copy(update={"resources": AUTO.model_copy(update={"gpus_per_node": 2, "tasks_per_node": 2})})
    write_text(begun.config_file, had.model_dump_json())
    assert resolved(run, 1e7, tmp_path).gpus_per_node == 2


def test_memory_is_a_power_of_two_that_holds_all_processes_of_a_node() -> None:
    wanted = RequestedResources(memory_gb="auto", tasks_per_node=4)
    found = resolved(config(wanted), 1e9).memory_gb
    assert found == 4.0
    # 4 x (0.5 GB + 1024 images x 550,000 values x 4 bytes) x 1.25 = 14 GB
    assert resolved(config(wanted, batch_size=4096), 1e9).memory_gb == 16.0
