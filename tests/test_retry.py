"""Retrying by cause. Slurm's commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.runs import (
    FakeSlurm,
    install_fake_slurm,
    make_run,
    record_epochs,
    record_event,
    record_start,
    record_submission,
    write_sweep_plan,
)

from galaxyhpc.retry import Decision, decide, main
from galaxyhpc.runtime import slurm
from galaxyhpc.status.run_status import QueueSnapshot as Queue
from galaxyhpc.status.run_status import derive_status, read_run_records
from galaxyhpc.storage.run_dir import RunDir, read_state

NOW = 4e9  # s since 1970: all records are older


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield install_fake_slurm(tmp_path, monkeypatch)
    slurm._ping.cache_clear()


def decided(run: RunDir, named: bool = False, ending: str = "") -> Decision:
    """Decide with Slurm's queue empty."""
    return decide(derive_status(read_run_records(run), Queue(NOW, {})), named, ending)


def failed(path: Path, cause: str, seed: int = 0, why: str = "ValueError: x", world: int = 1) -> RunDir:
    run = make_run(path, seed)
    record_submission(run, f"7_{seed}")
    record_event(run, "started", step=0, world=world, job=f"7_{seed}.0", nodes="node1")
    record_event(run, "failed", why=why, cause=cause)
    return run


def lost(path: Path, seed: int = 0, nodes: str = "node1") -> RunDir:
    run = make_run(path, seed)
    record_submission(run, f"7_{seed}")
    record_event(run, "started", step=0, world=1, job=f"7_{seed}.0", nodes=nodes)
    return run


@pytest.mark.parametrize(("world", "micro_batches"), [(1, [64, 32, 16, 8, 4]), (16, [4])])
def test_out_of_memory_halves_the_micro_batch_until_three(world: int, micro_batches: list[int], tmp_path: Path) -> None:
    """128 images per step, shared by the processes of the last start."""
    run = failed(tmp_path, "memory", world=world)
    for wanted in micro_batches:
        found = decided(run)
        assert (
            found.should_retry and found.changes == {"micro_batch": wanted} and "global batch of 128" in found.message
        )
        run.record("retried", why=found.message, **found.changes)
        record_event(run, "failed", why="OutOfMemoryError", cause="memory")
    assert run.load_config().resources.micro_batch == micro_batches[-1] == 4
    assert not decided(run).should_retry and "cannot be halved further" in decided(run).message
    assert decided(run, named=True) == Decision(f"retried unchanged: {decided(run).message.partition(': ')[2]}")


def test_an_evaluation_out_of_memory_has_no_micro_batch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    record_event(run, "trained")
    record_event(run, "failed", why="OutOfMemoryError", cause="memory")
    assert not decided(run).should_retry and "evaluate.batch_size" in decided(run).message
    assert decided(run, named=True).should_retry


@pytest.mark.parametrize("ending", ["NODE_FAIL", "", "FAILED"])
def test_a_run_lost_with_its_node_is_tried_on_others(ending: str, tmp_path: Path) -> None:
    found = decided(lost(tmp_path), ending=ending)
    assert found.should_retry and found.changes == {"exclude": ["node1"]} and "excluding node1" in found.message


@pytest.mark.parametrize("ending", ["TIMEOUT", "PREEMPTED", "CANCELLED"])
def test_a_node_is_not_blamed_for_what_slurm_did(ending: str, tmp_path: Path) -> None:
    found = decided(lost(tmp_path), ending=ending)
    assert found.should_retry and found.changes == {}


def test_of_several_nodes_none_is_blamed(tmp_path: Path) -> None:
    found = decided(lost(tmp_path, nodes="node[1-2]"))
    assert found.should_retry and found.changes == {} and "excluding none of node[1-2]" in found.message


def test_killed_by_slurm_for_its_memory_is_out_of_memory(tmp_path: Path) -> None:
    assert decided(lost(tmp_path), ending="OUT_OF_MEMORY").changes == {"micro_batch": 64}


@pytest.mark.parametrize("cause", ["error", "disk", "no progress", ""])
def test_what_would_fail_again_is_tried_only_when_it_is_named(cause: str, tmp_path: Path) -> None:
    run = failed(tmp_path, cause)
    left = decided(run)
    assert not left.should_retry and "ValueError: x" in left.message and (cause or "error") in left.message
    assert decided(run, named=True).should_retry and decided(run, named=True).changes == {}


def test_what_waits_runs_or_is_done_is_never_tried(tmp_path: Path) -> None:
    done, held = failed(tmp_path, "memory"), failed(tmp_path, "memory", 1)
    record_event(done, "evaluated")
    with FileLock(held.path / ".lock-0"):
        assert [decided(run, named=True).should_retry for run in (done, held)] == [False, False]


def test_the_failed_of_a_sweep_are_submitted_by_cause_and_nothing_else(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through launch's own way to sbatch."""
    path = tmp_path / "s"
    memory, gone, error = failed(path, "memory"), lost(path, 1), failed(path, "error", 2)
    waiting, running, stopped, again = (make_run(path, seed) for seed in range(3, 7))
    for run, job in ((waiting, "7_3"), (running, "7_4"), (again, "7_6")):
        record_submission(run, job)
    record_start(running, "7_4")
    record_epochs(running, [0.2, 0.3])
    record_event(stopped, "stopped", why="cancelled")
    record_event(again, "failed", why="x", cause="memory")
    before = {run: run.read_events() for run in (error, waiting, running, stopped, again)}
    queue = ["7_3|PENDING|Priority||t", "7_4|RUNNING|None|node1|t", "7_6|PENDING|BeginTime||t"]
    calls = answers(queue, ended=["7_0|FAILED", "7_1|NODE_FAIL"])
    assert main([str(write_sweep_plan(memory, gone, error, waiting, running, stopped, again)), "--failed"]) == 0
    said = capsys.readouterr().out
    assert f"{memory.run_id}: retried, out of memory: micro-batch 128 -> 64" in said
    assert f"{gone.run_id}: retried: its job 7_1 is no longer in Slurm's queue (NODE_FAIL); excluding node1" in said
    assert f"{error.run_id}: skipped: error: ValueError: x; fix that, then name the run" in said
    assert {run: run.read_events() for run in before} == before
    scripts = [file.read_text() for file in (path / "log").glob("*_submission.sh")]
    assert sum("--exclude=node1" in text for text in scripts) >= 1 and calls.read_text().count("sbatch") == len(scripts)
    for run, wanted in {memory: (64, ()), gone: (None, ("node1",))}.items():
        assert [event["event"] for event in run.read_events()][-5:][0] == "retried" and read_state(
            run
        ).name == "submitted"
        resources = run.load_config().resources
        assert (resources.micro_batch, resources.exclude_nodes) == wanted


def test_a_point_is_tried_whatever_the_cause(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    error, other = failed(tmp_path / "s", "error"), failed(tmp_path / "s", "memory", 1)
    answers([])
    before = other.read_events()
    assert main([str(write_sweep_plan(error, other)), "s0"]) == 0
    assert f"{error.run_id}: retried unchanged: failed ValueError: x" in capsys.readouterr().out
    assert read_state(error).name == "submitted" and other.read_events() == before


def test_without_an_answer_of_slurm_nothing_is_tried(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = failed(tmp_path / "s", "memory")
    before = run.read_events()
    assert main([str(write_sweep_plan(run)), "--failed"]) == 2
    assert "Slurm does not answer" in capsys.readouterr().err and run.read_events() == before


def test_one_broken_config_does_not_keep_the_others(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    good, broken = failed(tmp_path / "s", "memory"), failed(tmp_path / "s", "memory", 1)
    broken.config_file.write_text("{")
    answers([])
    assert main([str(write_sweep_plan(good, broken)), "--failed"]) == 0
    assert "config.json cannot be read" in capsys.readouterr().out and read_state(good).name == "submitted"


def test_a_launch_at_work_and_nothing_to_do_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep_plan(make_run(tmp_path))
    assert main([str(sweep), "--failed"]) == 0
    assert "nothing to retry" in capsys.readouterr().out
    with FileLock(sweep / ".launch.lock"):
        assert main([str(sweep), "--failed"]) == 2
    assert "another launch of this sweep is running; nothing was changed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(sweep)])
