"""The damage that fsck reports in a sweep of real files; it changes none of them.

pytest tests/test_fsck.py
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from galaxyhpc import fsck
from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.results import RunLogits
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.lock import Holder, hold
from galaxyhpc.storage import checkpoint, files
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

SEEDS = 2


def make_config(seed: int, cache: Path) -> RunConfig:
    data = DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=200, size=32))
    return RunConfig(data=data, model=ModelConfig(group="C4", scale=0.1), train=TrainConfig(epochs=2), seed=seed)


def write_finished_run(run: RunDir, config: RunConfig, fingerprint: str) -> None:
    """Write what a run leaves that was trained and evaluated, without training it."""
    write_text(run.config_file, config.model_dump_json())
    network = build_model(config.model, config.data.image_size)
    weights, optimizer = network.state_dict(), torch.optim.AdamW(network.parameters()).state_dict()
    run.record("started", epoch=0, step=0, world=1, job="1.0", pid=1)
    for step in (3, 4):
        state = {"model": weights, "optimizer": optimizer, "progress": {"step": step}, "best": weights}
        checkpoint.save(run, step, 1, state, config.get_identity())
    torch.save({"model": weights, "epoch": 1, "run_id": run.run_id}, run.best_file)
    write_text(run.metrics_file, '{"epoch": 0}\n{"epoch": 1}\n')
    run.record("trained", epochs=2, best=1, accuracy=0.5)
    rng = np.random.default_rng(config.seed)
    ids = np.arange(20, dtype=np.int32)
    common = {"rows": ids, "groups": ids, "labels": rng.integers(10, size=20).astype(np.uint8), "generated": True}
    logits = {("clean", 0.0): rng.normal(size=(20, 10)).astype(np.float32)}
    source = {"weights": files.sha256(run.best_file), "fingerprint": fingerprint}
    results.save(run, RunLogits(**common, **source, logits=logits))
    run.record("evaluated", measured=1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sweep of two finished runs."""
    sweep = tmp_path_factory.mktemp("runs") / "sweep"
    configs = [make_config(seed, sweep.parent / ".cache") for seed in range(SEEDS)]
    galaxies, _ = open_dataset(configs[0].data, sweep)
    for run_config in configs:
        write_finished_run(RunDir(sweep / run_config.run_id), run_config, galaxies.fingerprint)
    write_text(
        sweep / "plan.csv",
        "run_id,seed\n" + "".join(f"{run_config.run_id},{run_config.seed}\n" for run_config in configs),
    )
    return sweep


@pytest.fixture
def sweep(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "sweep"))


@pytest.fixture
def run(sweep: Path) -> RunDir:
    return RunDir(next(path for path in sorted(sweep.glob("C4*"))))


def snapshot(sweep: Path) -> dict[str, str]:
    """Return mode, time and contents of everything below a directory."""
    states = {}
    for path in [sweep, *sorted(sweep.rglob("*"))]:
        status = path.lstat()
        is_small = stat.S_ISREG(status.st_mode) and status.st_size < 10**7
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else ""
        states[str(path)] = f"{status.st_mode} {status.st_mtime_ns} {content}"
    return states


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run fsck, demand that it changed nothing, and return its exit status and its output on one line."""
    before = snapshot(path)
    status = fsck.main([str(path)])
    assert snapshot(path) == before
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return status, " ".join((captured.out + captured.err).replace("│", " ").split())


def test_a_finished_sweep_is_sound(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = check(sweep, capsys)
    assert status == 0 and f"{SEEDS + 1} valid, 0 damaged" in output  # the split has a row of its own
    assert output.count("2/2 4 valid") == SEEDS and "note" not in output


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_other_weights(run: RunDir) -> None:
    best = torch.load(run.best_file, weights_only=True)
    next(iter(best["model"].values())).view(-1)[0] += 1
    torch.save(best, run.best_file)


def write_other_network(run: RunDir) -> None:
    network = build_model(ModelConfig(group="C2", scale=0.1), 33)
    torch.save({"model": network.state_dict(), "epoch": 1, "run_id": run.run_id}, run.best_file)


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def newest(run: RunDir) -> Path:
    return run.checkpoint_dir / "step_00000004"


PREVIOUS = "rerun launch, which resumes from step 3; nothing is lost"
DAMAGES: dict[str, tuple[Callable[[RunDir], object], tuple[str, ...]]] = {
    "state truncated": (lambda run: os.truncate(newest(run) / "state.pt", 999), ("has 999 bytes", PREVIOUS)),
    "state empty": (lambda run: os.truncate(newest(run) / "state.pt", 0), ("has 0 bytes", PREVIOUS)),
    "state flipped": (lambda run: flip_bit(newest(run) / "state.pt"), ("SHA-256", PREVIOUS)),
    "manifest missing": (lambda run: (newest(run) / "MANIFEST.json").unlink(), ("MANIFEST.json", "1/2 3", PREVIOUS)),
    "all checkpoints": (
        lambda run: [flip_bit(path / "state.pt") for path in checkpoint.list_checkpoints(run)],
        ("0/2", "rerun launch, which starts at step 0"),
    ),
    "paths damaged": (
        lambda run: write_text(kernel_choice.get_choice_path(run), "{"),
        ("paths.json: got invalid JSON", "restore it from a copy"),
    ),
    "best missing": (
        lambda run: run.best_file.unlink(),
        ("best.pt: missing", "resumes from step 4; nothing is lost"),
    ),
    "best truncated": (
        lambda run: os.truncate(run.best_file, 500),
        ("best.pt: ", "remove it and rerun launch, which resumes from step 4"),
    ),
    "best of another network": (write_other_network, ("got shape", "expected (")),
    "best with other weights": (write_other_weights, ("results.csv: made with other weights", "evaluates again")),
    "best of another run": (
        lambda run: torch.save({"model": {}, "epoch": 0, "run_id": "C8-s0"}, run.best_file),
        ("best.pt: belongs to run C8-s0",),
    ),
    "results torn": (
        lambda run: os.truncate(run.results_file, 200),
        ("results.csv: ignored: corrupt", "evaluates again"),
    ),
    "results missing": (lambda run: run.results_file.unlink(), ("results.csv: missing", "evaluated")),
    "predictions torn": (lambda run: os.truncate(run.predictions_file, 3000), ("predictions.h5: ignored: corrupt",)),
    "config missing": (lambda run: run.config_file.unlink(), ("config.json: ", "rerun launch, which rewrites it")),
    "config of another run": (
        lambda run: replace_text(run.config_file, '"seed":0}', '"seed":7}'),
        ("belongs to run C4",),
    ),
    "split rewritten": (
        lambda run: replace_text(run.sweep_dir / "split.csv", ",test\n", ",train\n"),
        ("split.csv", "first"),
    ),
    "folds rewritten": (
        lambda run: replace_text(run.sweep_dir / "split.csv", ",0,0,test\n", ",2,0,test\n"),
        ("split.csv", "split: got other galaxies"),
    ),
    "split missing its end": (lambda run: os.truncate(run.sweep_dir / "split.csv", 2000), ("split.csv damaged",)),
    "split of other settings": (
        lambda run: replace_text(run.sweep_dir / "split.csv", '"split_seed": 0', '"split_seed": 9'),
        ("settings: got", "the runs have"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_what_to_do_is_said(
    damage: str, run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inflict, expected = DAMAGES[damage]
    inflict(run)
    status, output = check(sweep, capsys)
    assert status == 1 and f"{SEEDS} valid, 1 damaged" in output
    for text in expected:
        assert text in output


def test_what_killed_processes_leave_is_mentioned_and_is_no_damage(
    run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.checkpoint_dir / ".step_00000005.node1.77").mkdir()
    (run.path / ".best.pt.node1.77").write_text("half")
    (run.checkpoint_dir / "quarantine" / "step_00000002.123").mkdir(parents=True)
    with run.events_file.open("a") as file:
        file.write('{"time": 1, "eve')
    status, output = check(sweep, capsys)
    assert status == 0
    assert "note: .step_00000005.node1.77: left by a save" in output and "note: .best.pt.node1.77" in output
    assert "note: events.jsonl: 1 torn" in output and "note: 1 checkpoints in checkpoints/quarantine" in output


def test_a_run_that_has_not_begun_is_sound(run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run.best_file, run.results_file, run.predictions_file, run.events_file, run.metrics_file):
        path.unlink()
    shutil.rmtree(run.checkpoint_dir)
    assert check(sweep, capsys)[0] == 0


def test_one_run_is_checked_alone(run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = next(path for path in sweep.glob("C4*") if path != run.path)
    (other / "best.pt").unlink()
    assert check(run.path, capsys)[0] == 0 and check(other, capsys)[0] == 1


def replace_file(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else where a file or a directory was."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def write_content(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


HOSTILE: dict[str, Callable[[RunDir], object]] = {
    "config is a directory": lambda run: replace_file(run.config_file, Path.mkdir),
    "config is a loop": lambda run: replace_file(run.config_file, lambda path: path.symlink_to(path)),
    "config is a pipe": lambda run: replace_file(run.config_file, os.mkfifo),
    "config is binary": lambda run: run.config_file.write_bytes(bytes(range(256))),
    "config is huge": lambda run: os.truncate(run.config_file, 10**10),
    "config is deep": lambda run: run.config_file.write_text("[" * 500_000),
    "best is a directory": lambda run: replace_file(run.best_file, Path.mkdir),
    "best is a pipe": lambda run: replace_file(run.best_file, os.mkfifo),
    "best is nowhere": lambda run: replace_file(run.best_file, lambda path: path.symlink_to("/nowhere")),
    "best is code": lambda run: run.best_file.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    "best is a number": lambda run: torch.save(5, run.best_file),
    "state is a directory": lambda run: replace_file(newest(run) / "state.pt", Path.mkdir),
    "state is a pipe": lambda run: replace_file(newest(run) / "state.pt", os.mkfifo),
    "manifest is huge": lambda run: os.truncate(newest(run) / "MANIFEST.json", 10**10),
    "manifest is deep": lambda run: (newest(run) / "MANIFEST.json").write_text("[" * 500_000),
    "manifest is a number": lambda run: (newest(run) / "MANIFEST.json").write_text("1"),
    "a checkpoint is a file": lambda run: replace_file(newest(run), write_content("")),
    "a checkpoint with a strange name": lambda run: (run.checkpoint_dir / "step_\x1b[31m\n").mkdir(),
    "results are a directory": lambda run: replace_file(run.results_file, Path.mkdir),
    "results are binary": lambda run: run.results_file.write_bytes(bytes(range(256)) * 50),
    "predictions are a pipe": lambda run: replace_file(run.predictions_file, os.mkfifo),
    "split is binary": lambda run: (run.sweep_dir / "split.csv").write_bytes(bytes(range(256)) * 50),
    "split is a directory": lambda run: replace_file(run.sweep_dir / "split.csv", Path.mkdir),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_damage_like_any_other(
    name: str, run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HOSTILE[name](run)
    status, output = check(sweep, capsys)
    assert status == 1 and f"{SEEDS} valid, 1 damaged" in output and "\x1b" not in output
    assert not Path("/tmp/owned").exists()


ODD: dict[str, Callable[[RunDir], object]] = {
    "events are a directory": lambda run: replace_file(run.events_file, Path.mkdir),
    "events are a pipe": lambda run: replace_file(run.events_file, os.mkfifo),
    "events are binary": lambda run: run.events_file.write_bytes(os.urandom(5000)),
    "metrics are deep": lambda run: run.metrics_file.write_text("[" * 500_000 + "\n7\n"),
    "metrics are huge": lambda run: os.truncate(run.metrics_file, 10**10),
}


@pytest.mark.parametrize("name", ODD)
def test_records_that_cannot_be_read_count_as_absent(
    name: str, run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[name](run)
    status, output = check(sweep, capsys)
    assert status == 0 and "ignored" in output


@pytest.mark.parametrize(
    "plan",
    [None, b"", b"name\nx\n", bytes(range(256)), b"run_id\n../elsewhere\n", b"run_id\n/etc\n"],
)
def test_what_is_no_sweep_is_refused_in_one_line(
    plan: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if plan is not None:
        (tmp_path / "plan.csv").write_bytes(plan)
    status = fsck.main([str(tmp_path)])
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and len(captured.err.splitlines()) == 1


def test_each_distinct_network_is_built_once(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fsck._get_state_shapes.cache_clear()
    check(sweep, capsys)
    assert fsck._get_state_shapes.cache_info().misses == 1


def test_a_checkpoint_removed_while_it_is_checked_is_no_damage(run: RunDir) -> None:
    gone = run.checkpoint_dir / "step_00000001"
    list_checkpoints = checkpoint.list_checkpoints

    steps, number, problems = fsck._check_checkpoints(run, None)
    assert (steps, number, problems) == ([3, 4], 2, [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "list_checkpoints", lambda run: [gone, *list_checkpoints(run)])
        assert fsck._check_checkpoints(run, None) == ([3, 4], 2, [])


def test_unlock_removes_the_locks_of_other_hosts_and_names_a_process_that_runs(
    run: RunDir, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system without flock keeps the lock of a process that was killed on another host."""
    for path in (run.path / ".lock-0", sweep / ".launch.lock"):
        path.touch()
        holder = Holder("elsewhere", 1, 1.8e9, uid=os.getuid())
        path.with_name(f"{path.name}.holder").write_text(json.dumps(asdict(holder)))
    assert "note: locked by host elsewhere, pid 1, since" in check(sweep, capsys)[1]
    with hold(run.path / ".lock-1"):
        assert fsck.main([str(sweep), "--unlock"]) == 1
    answer = capsys.readouterr()
    assert answer.out.count("removed the lock of host elsewhere, pid 1") == 2
    assert f"pid {os.getpid()}, " in answer.err and "running here; stop it first" in answer.err
    assert fsck.main([str(sweep), "--unlock"]) == 0 and capsys.readouterr().out == ""
