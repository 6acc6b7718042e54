"""Resources of the tasks of a survey's prediction, and what they are expected to cost."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.config.sweep import SweepError, load_resources
from galaxyhpc.launch.dispatch import LaunchError
from galaxyhpc.launch.slurm_executor import make_sbatch_script
from galaxyhpc.predict.__main__ import main
from galaxyhpc.predict.forecast import STARTUP_SECONDS, Forecast, Speed, choose_unit_size
from galaxyhpc.predict.submit import resolve_resources

PROFILES = Path(__file__).parents[2] / "slurm"


@pytest.mark.parametrize(("profile", "gpus", "processes", "memory_gb"), [("gpu", 1, 1, 13), ("cpu", 0, 4, 16)])
def test_the_resources_of_a_profile_are_those_of_a_task(
    profile: str, gpus: int, processes: int, memory_gb: float
) -> None:
    resources, num_tasks = resolve_resources(load_resources(PROFILES / f"{profile}.yaml"), "slurm", None)
    assert (resources.gpus_per_node, resources.num_tasks, num_tasks) == (gpus, processes, 0)
    assert resources.memory_gb == pytest.approx(memory_gb, abs=1)


def test_a_mistake_in_a_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: 4\n")
    with pytest.raises(SweepError, match=r"mine.yaml:1: .*tasks: unknown setting"):
        load_resources(tmp_path / "mine.yaml")
    assert load_resources(None).cpus_per_task == 1


def make_forecast(num_galaxies: int, num_units: int, **resources: int) -> Forecast:
    """Return a forecast of 100 galaxies per second and process."""
    size = -(-num_galaxies // num_units)
    return Forecast(Speed(0.01, "measured"), 100.0, num_galaxies, ResourcesConfig(**resources), num_units, size)


def test_tasks_take_an_hour_each_unless_told_otherwise_and_have_a_unit_for_each_process() -> None:
    assert make_forecast(360_000 * 5, 1000).choose_num_tasks(None) == 5
    assert make_forecast(360_000 * 5, 1000).choose_num_tasks(12) == 12
    assert make_forecast(360_000 * 5, 3).choose_num_tasks(None) == 3
    assert make_forecast(360_000 * 5, 1000, tasks_per_node=4).choose_num_tasks(None) == 1
    assert make_forecast(10**9, 10**6).choose_num_tasks(None) == 64
    assert make_forecast(100, 1).choose_num_tasks(None) == 1


def test_device_hours_are_those_of_the_gpus_or_else_of_the_cpus() -> None:
    gpu = make_forecast(10**6, 100, gpus_per_node=4, tasks_per_node=4, cpus_per_task=8)
    cpu = make_forecast(10**6, 100, tasks_per_node=4, cpus_per_task=8)
    assert (gpu.device, cpu.device) == ("GPU", "CPU")
    assert gpu.get_device_hours(360_000) == pytest.approx(1) and cpu.get_device_hours(360_000) == pytest.approx(8)
    assert gpu.get_seconds(2) == pytest.approx(STARTUP_SECONDS + 10**6 / 100 / 8)


def test_units_are_so_small_that_a_time_limit_is_enough_for_four() -> None:
    assert [choose_unit_size(None, Speed(0.01, ""), limit) for limit in (None, 720, 60)] == [20_000] * 3
    size = choose_unit_size(None, Speed(0.1, ""), 30)
    assert size == (30 * 60 - 120) / 4 / 0.1
    make_forecast(size, 1, time_minutes=30).check_time_limit("a.yaml")


def test_a_time_limit_that_ends_before_a_unit_is_refused_with_one_that_does_not() -> None:
    message = "^mine.yaml: time_minutes: got 5; expected 6 or more: two to start and stop, and 0:03:20 for a unit "
    with pytest.raises(LaunchError, match=message):
        make_forecast(60_000, 3, time_minutes=5).check_time_limit("mine.yaml")
    make_forecast(60_000, 3, time_minutes=6).check_time_limit("mine.yaml")


def test_a_directory_with_spaces_makes_no_other_options_of_sbatch() -> None:
    script = make_sbatch_script(Path("/data/my survey --hold"), ResourcesConfig(), num_runs=2, max_parallel=None)
    assert "#SBATCH --job-name=my_survey_--hold-train\n" in script


@pytest.mark.parametrize("package", ["pyarrow", "astropy_healpix"])
def test_a_survey_without_its_extra_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert main(["runs/none", "--input", "a.parquet", "--output", "out"]) == 2
    assert f"got no {package}; expected " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "got no FILE; expected files of galaxies, or --input"),
        (["run", "a.png", "--embeddings"], "--embeddings: is for a survey; expected --input with it"),
        (["run", "--input", "a"], "--input: got no --output; expected --output DIRECTORY"),
        (["run", "--input", "a", "--output", "b", "--skip-bad"], "--skip-bad: is for files"),
        (["out", "--select", "blank"], "--select and --to: expected both"),
        (
            ["out", "--select", "x", "--to", "a.csv", "--columns", "id=x"],
            "--columns: is for galaxies that are classified",
        ),
    ],
)
def test_options_of_another_form_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
