"""Estimates of run time and memory, and the resources requested because of them."""

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
PRIOR = CostModels(CostModel(), CostModel(), num_galaxies=17_736)


def make_config(resources: RequestedResources, seed: int = 0, **train: object) -> RunConfig:
    model, data = ModelConfig(group="C4"), DataConfig(image_size=65)
    return RunConfig(model=model, data=data, train=TrainConfig(**train), resources=resources, seed=seed)


def make_network(multiply_adds: float) -> NetworkProfile:
    return NetworkProfile(1_000_000, int(multiply_adds), saved_activations=400_000, largest_activation=50_000)


def resolve(
    run: RunConfig, multiply_adds: float, path: Path = Path("/nowhere"), cost_models: CostModels = PRIOR
) -> ResourcesConfig:
    (config,) = run_cost.resolve_resources([run], {run.run_id: make_network(multiply_adds)}, cost_models, path)
    return config.resources.resolved


def test_without_records_the_prior_has_a_large_safety_factor() -> None:
    assert (
        run_cost.fit_cost_model([]) == CostModel()
        and CostModel().safety_factor == 2.0
        and "rough built-in estimate" in CostModel().source
    )


def test_few_records_scale_the_prior() -> None:
    model = run_cost.fit_cost_model(
        [TimingRecord("cpu", 0.010, 0.031), TimingRecord("cpu", 0.010, 0.030), TimingRecord("cpu", 0.020, 0.060)]
    )
    assert (model.fixed_seconds, model.slope, model.num_runs, model.safety_factor) == (0.0, pytest.approx(3.0), 3, 1.5)


def test_many_records_give_a_line_that_is_robust_to_an_outlier() -> None:
    records = [TimingRecord("cpu", x / 100, 0.004 + 2 * x / 100) for x in (1, 2, 3, 5, 8) for _ in range(3)]
    model = run_cost.fit_cost_model([*records, TimingRecord("cpu", 0.08, 50.0)])
    assert (model.fixed_seconds, model.slope) == (pytest.approx(0.004), pytest.approx(2.0))


def test_a_line_with_a_negative_slope_is_not_used() -> None:
    model = run_cost.fit_cost_model([TimingRecord("cpu", x / 100, 1 / x) for x in range(1, 8)])
    assert model.fixed_seconds == 0 and model.slope > 0


def test_of_several_gpus_the_one_with_the_most_runs_is_used() -> None:
    records = [
        TimingRecord("A100", 1.0, 2.0),
        TimingRecord("H100", 1.0, 1.0),
        TimingRecord("H100", 1.0, 1.0),
        TimingRecord("cpu", 1.0, 9.0),
    ]
    models = run_cost.fit_cost_models(records, 100)
    assert (models.gpu.device, models.gpu.slope, models.cpu.slope) == ("H100", 1.0, 9.0)


def record(run: RunDir, plan: Path, *epochs: dict[str, object]) -> None:
    """Write the files of a finished run."""
    made = make_config(ResourcesConfig())
    write_text(run.config_file, made.model_dump_json())
    for event in epochs:
        run.record("epoch", **event)
    with plan.open("w", newline="") as file:
        csv.writer(file).writerows([("run_id", "multiply_adds"), (run.run_id, 10**8)])


def test_records_are_the_median_epochs_of_all_sweeps_and_damaged_ones_are_skipped(tmp_path: Path) -> None:
    whole = {"images": 1000, "world": 2, "device": "cpu"}
    for name in ("a", "b"):
        seconds = [{"seconds": 90.0}, {"seconds": 10.0}, {"seconds": 12.0}]
        run = RunDir(tmp_path / name / "run")
        record(run, tmp_path / name / "plan.csv", *(whole | one for one in seconds), {"images": 0, "seconds": 3.0})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "plan.csv").write_bytes(b"\xff\x00")
    records = run_cost.read_timing_records(tmp_path)
    prior = run_cost.estimate_prior_seconds(10**8, make_config(ResourcesConfig()), uses_gpu=False)
    assert records == [TimingRecord("cpu", prior, 12.0 * 2 / 1000)] * 2


def test_more_processes_share_a_run_and_more_images_lengthen_it() -> None:
    run, heavy = make_config(ResourcesConfig()), make_network(1e9)
    one, two = (run_cost.estimate_run_time(run, heavy, PRIOR, tasks) for tasks in (1, 2))
    assert (
        one.training_seconds == pytest.approx(2 * two.training_seconds)
        and one.evaluation_seconds == two.evaluation_seconds > 0
    )
    twice = run_cost.estimate_run_time(run, heavy, CostModels(CostModel(), CostModel(), 2 * PRIOR.num_galaxies))
    assert twice.training_seconds == pytest.approx(2 * one.training_seconds)


@pytest.mark.parametrize(
    ("seconds", "margin", "limit"),
    [(0, 2, 30), (749, 2, 30), (751, 2, 60), (3600, 1.5, 120), (1e4, 2, 480), (1e9, 2, 2880)],
)
def test_time_limits_come_in_few_classes(seconds: float, margin: float, limit: int) -> None:
    assert run_cost.choose_time_limit_minutes(seconds, margin) == limit


def test_numbers_win_over_auto() -> None:
    plain = ResourcesConfig(gpus_per_node=1, time_minutes=77, memory_gb=3.5)
    run = make_config(plain)
    assert run_cost.resolve_resources([run], {run.run_id: make_network(1e12)}, PRIOR, Path("/nowhere")) == [run]
    some = RequestedResources(gpus_per_node=1, time_minutes="auto", memory_gb=3.5)
    resources = resolve(make_config(some), 1e9)
    assert (resources.gpus_per_node, resources.memory_gb) == (
        1,
        3.5,
    ) and resources.time_minutes in run_cost.TIME_LIMITS_MINUTES


def test_a_run_of_over_a_day_gets_more_gpus_with_one_process_each() -> None:
    small, large = resolve(make_config(AUTO), 1e10), resolve(make_config(AUTO), 5e11)
    assert (small.gpus_per_node, small.tasks_per_node) == (1, 1)
    assert (large.gpus_per_node, large.tasks_per_node) == (2, 2)
    assert large.memory_gb is not None and small.memory_gb is not None and large.memory_gb > small.memory_gb


def test_gpus_never_change_what_batch_normalisation_sees() -> None:
    assert resolve(make_config(AUTO, batch_size=128), 1e13).gpus_per_node == 4  # 8 would see 16 images, not 32
    alone = AUTO.model_copy(update={"micro_batch": None})
    assert resolve(make_config(alone), 1e13).gpus_per_node == 1
    assert resolve(make_config(alone, sync_batchnorm=True), 1e13).gpus_per_node == 8


def test_a_run_with_checkpoints_keeps_its_gpus(tmp_path: Path) -> None:
    run = make_config(AUTO)
    begun = RunDir(tmp_path / run.run_id)
    begun.checkpoint_dir.mkdir(parents=True)
    had = run.model_copy(update={"resources": AUTO.model_copy(update={"gpus_per_node": 2, "tasks_per_node": 2})})
    write_text(begun.config_file, had.model_dump_json())
    assert resolve(run, 1e7, tmp_path).gpus_per_node == 2


def test_memory_is_a_power_of_two_that_holds_all_processes_of_a_node() -> None:
    requested = RequestedResources(memory_gb="auto", tasks_per_node=4)
    memory_gb = resolve(make_config(requested), 1e9).memory_gb
    assert memory_gb == 4.0
    # 4 x (0.5 GB + 1024 images x 550,000 values x 4 bytes) x 1.25 = 14 GB
    assert resolve(make_config(requested, batch_size=4096), 1e9).memory_gb == 16.0
