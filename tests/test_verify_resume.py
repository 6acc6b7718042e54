"""verify_resume with real processes: they are interrupted and resumed, and a resume that is not exact is detected.

pytest tests/test_verify_resume.py
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from galaxyhpc import verify_resume
from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, ResourcesConfig, RunConfig, TrainConfig
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.split import select_training_indices
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.verify_resume import find_first_difference, hash_outputs, main, make_short_config


def make_config(cache: Path, tasks: int = 1, group: str | None = "C4", **train: object) -> RunConfig:
    options: dict[str, object] = {"epochs": 30, "batch_size": 40, "learning_rate": 3e-3, **train}
    return RunConfig(
        data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32)),
        model=ModelConfig(architecture="steerable_cnn" if group else "cnn", group=group, scale=0.1),
        train=TrainConfig.model_validate(options),
        resources=ResourcesConfig(tasks_per_node=tasks),
    )


def make_run(runs: Path, config: RunConfig) -> RunDir:
    run = RunDir(runs / "sweep" / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
def test_two_interrupted_processes_end_with_the_bits_of_an_uninterrupted_training(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify_resume, "FAULTS", ("KILL in a save",))  # the Slurm tests have the others
    run = make_run(tmp_path, make_config(cache, tasks=2, group=None))  # without e2cnn a process starts in half the time
    status = main([str(run.path)])
    output = capsys.readouterr().out
    assert status == 0, output
    lines = [line for line in output.splitlines() if line.startswith(verify_resume.FAULTS)]
    rows = [re.split(" {2,}", line.strip()) for line in lines]
    assert [row[0] for row in rows] == list(verify_resume.FAULTS)
    for _, fault_step, resumed, lost, seconds, equal in rows:
        assert int(lost) == int(fault_step) - int(resumed)
        assert int(lost) == 1
        assert float(seconds) > 0 and equal == "yes"
    assert "processes: 2" in output and "the resume is exact" in output
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # nothing is left behind
    assert [path.name for path in run.path.iterdir()] == ["config.json"]  # and the run is as it was


FORGETFUL = """
import torch
torch.optim.Optimizer.load_state_dict = lambda self, state: None  # a resume that forgets the moments
"""


@pytest.mark.slow
def test_a_resume_that_forgets_the_optimizer_is_detected(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(FORGETFUL)  # read by every Python that is started
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.setattr(verify_resume, "FAULTS", ("USR2",))
    run = make_run(tmp_path, make_config(cache, group=None))
    assert main([str(run.path)]) == 1
    output = capsys.readouterr().out
    assert "no: checkpoint.model." in output and "NOT exact" in output
    (folder,) = tmp_path.glob("verify_resume-*")
    assert str(folder) in output and (folder / "USR2").is_dir()


def finish_run(run: RunDir, state: dict[str, object], best: dict[str, object]) -> RunDir:
    """Write the outputs of a finished training."""
    checkpoint.save(run, 7, 1, state)
    torch.save(best, run.best_file)
    run.metrics_file.write_text('{"epoch": 0}\n')
    return run


def make_states() -> tuple[dict[str, object], dict[str, object]]:
    weights = torch.arange(6.0).reshape(2, 3)
    moments = {"state": {0: {"step": torch.tensor(7.0), "exp_avg": weights / 3}}, "param_groups": [{"lr": 1e-3}]}
    progress = {"step": 7, "history": [{"loss": 0.5}], "best_loss": float("nan")}
    state = {"model": {"weight": weights, "count": torch.tensor(3)}, "optimizer": moments, "progress": progress}
    return {**state, "best": {}}, {"model": {"weight": weights.clone()}, "epoch": 0}


def test_hashes_name_every_tensor_and_number_and_depend_on_its_bits(tmp_path: Path) -> None:
    run, other = (finish_run(RunDir(tmp_path / name / "C4"), *make_states()) for name in ("one", "two"))
    hashes = hash_outputs(run)
    assert hashes == hash_outputs(other)
    assert find_first_difference(hashes, hash_outputs(other)) == ""  # NaN equals itself
    assert {"checkpoint.model.weight", "checkpoint.optimizer.state.0.exp_avg", "checkpoint.progress.history.0.loss"} < {
        *hashes
    }
    assert {"metrics.jsonl", "best.pt.model.weight", "checkpoint.best"} < {*hashes}


def flip_bit(value: torch.Tensor) -> None:
    value.view(torch.int32).view(-1)[-1] ^= 1


CHANGES = {
    "checkpoint.model.weight": lambda state, best: flip_bit(state["model"]["weight"]),
    "checkpoint.model.count": lambda state, best: state["model"].update(count=torch.tensor(3, dtype=torch.int32)),
    "checkpoint.optimizer.state.0.exp_avg": lambda state, best: flip_bit(state["optimizer"]["state"][0]["exp_avg"]),
    "checkpoint.optimizer.param_groups.0.lr": lambda state, best: state["optimizer"]["param_groups"][0].update(
        lr=1e-3 + 1e-18
    ),
    "checkpoint.progress.history.0.loss": lambda state, best: state["progress"]["history"][0].update(loss=-0.5),
    "checkpoint.best": lambda state, best: state.update(best={"weight": torch.zeros(1)}),
    "best.pt.model.weight": lambda state, best: flip_bit(best["model"]["weight"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_bit_is_found_and_named(name: str, tmp_path: Path) -> None:
    expected = hash_outputs(finish_run(RunDir(tmp_path / "one" / "C4"), *make_states()))
    state, best = make_states()
    CHANGES[name](state, best)
    hashes = hash_outputs(finish_run(RunDir(tmp_path / "two" / "C4"), state, best))
    assert find_first_difference(hashes, expected) == name


def test_other_metrics_are_a_difference(tmp_path: Path) -> None:
    run = finish_run(RunDir(tmp_path / "one" / "C4"), *make_states())
    expected = hash_outputs(run)
    run.metrics_file.write_text('{"epoch": 1}\n')
    assert find_first_difference(hash_outputs(run), expected) == "metrics.jsonl"


def test_a_training_without_a_valid_checkpoint_has_no_hashes(tmp_path: Path) -> None:
    run = finish_run(RunDir(tmp_path / "C4"), *make_states())
    shutil.rmtree(run.checkpoint_dir)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        hash_outputs(run)


@pytest.mark.parametrize(
    ("galaxies", "batch", "epochs"), [(17736, 128, 2), (2000, 128, 12), (300, 128, 12), (300, 40, 3), (100, 300, 12)]
)
def test_the_copy_takes_few_steps_of_the_same_settings(galaxies: int, batch: int, epochs: int) -> None:
    config = make_config(Path("/cache"), batch_size=batch, early_stopping=3)
    copy = make_short_config(config, galaxies)
    assert (copy.model, copy.augment, copy.seed) == (config.model, config.augment, config.seed)
    same = {"batch_size", "optimizer", "learning_rate", "schedule", "precision"}
    assert copy.train.model_dump(include=same) == config.train.model_dump(include=same)
    assert (copy.resources.checkpoint_minutes, copy.train.early_stopping) == (0.0, None)
    assert 2 <= copy.train.epochs <= epochs
    assert copy.data.model_dump(exclude={"label_fraction"}) == config.data.model_dump(exclude={"label_fraction"})


def test_the_copy_trains_on_some_training_galaxies_of_the_runs_fold(tmp_path: Path, cache: Path) -> None:
    config = make_config(cache, batch_size=5)
    changes = {"fold": 3, "demo": DemoConfig(galaxies=600, size=32)}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    galaxies = prepare(config.data)
    split = load_split(config.data, galaxies, tmp_path)
    indices = select_training_indices(split, config.data)
    copy = make_short_config(config, len(indices))
    assert load_split(copy.data, galaxies, tmp_path).equals(split)
    copied = select_training_indices(split, copy.data)
    assert set(copied) < set(indices) and 30 <= len(copied) <= 50


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "got no config.json; expected one run"),
        ("[]", [], "config.json: "),
        ("\x00" * 50, [], "Invalid JSON"),
        ('{"model": {"group": "C4"}, "train": {"epochs": "many"}}', [], "train: epochs: "),
        ('{"model": {"group": "C4"}}', ["--tasks", "0"], "--tasks 0: "),
        ('{"model": {"group": "C4"}}', ["--tasks", "100"], "is shared by 100 processes"),
        ('{"model": {"group": "C4"}, "data": {"cache": "/tmp", "source": "/nowhere.h5"}}', [], "/nowhere.h5"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_left(
    content: str | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "sweep" / "C4")
    run.path.mkdir(parents=True)
    if content is not None:
        run.config_file.write_text(content)
    assert main([str(run.path), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
