"""Retrying by failure type. Slurm's commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
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

from galaxyhpc.launch.__main__ import main as launch
from galaxyhpc.retry import Decision, decide, main
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.lock import hold
from galaxyhpc.status.run_status import QueueSnapshot, derive_status, read_run_records
from galaxyhpc.storage.run_dir import RunDir, read_state

NOW = 4e9  # s since 1970: all records are older


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield install_fake_slurm(tmp_path, monkeypatch)
    slurm._ping.cache_clear()


def decide_offline(run: RunDir, is_forced: bool = False, final_state: str = "") -> Decision:
    """Decide with Slurm's queue empty."""
    return decide(derive_status(read_run_records(run), QueueSnapshot(NOW, {})), is_forced, final_state)


def make_failed_run(path: Path, cause: str, seed: int = 0, why: str = "ValueError: x", world: int = 1) -> RunDir:
    run = make_run(path, seed)
    record_submission(run, f"7_{seed}")
    record_event(run, "started", step=0, world=world, job=f"7_{seed}.0", nodes="node1")
    record_event(run, "failed", why=why, cause=cause)
    return run


def make_lost_run(path: Path, seed: int = 0, nodes: str = "node1") -> RunDir:
    run = make_run(path, seed)
    record_submission(run, f"7_{seed}")
    record_event(run, "started", step=0, world=1, job=f"7_{seed}.0", nodes=nodes)
    return run


@pytest.mark.parametrize(("world", "micro_batches"), [(1, [64, 32, 16, 8, 4]), (16, [4])])
def test_out_of_memory_halves_the_micro_batch_until_three(world: int, micro_batches: list[int], tmp_path: Path) -> None:
    """128 images per step, shared by the processes of the last start."""
    run = make_failed_run(tmp_path, "memory", world=world)
    for expected in micro_batches:
        decision = decide_offline(run)
        assert (
            decision.should_retry
            and decision.changes == {"micro_batch": expected}
            and "global batch of 128" in decision.message
        )
        run.record("retried", why=decision.message, **decision.changes)
        record_event(run, "failed", why="OutOfMemoryError", cause="memory")
    assert run.load_config().resources.micro_batch == micro_batches[-1] == 4
    assert not decide_offline(run).should_retry and "cannot be halved further" in decide_offline(run).message
    assert decide_offline(run, is_forced=True) == Decision(
        f"retried unchanged: {decide_offline(run).message.partition(': ')[2]}"
    )


def test_an_evaluation_out_of_memory_has_no_micro_batch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    record_event(run, "trained")
    record_event(run, "failed", why="OutOfMemoryError", cause="memory")
    assert not decide_offline(run).should_retry and "evaluate.batch_size" in decide_offline(run).message
    assert decide_offline(run, is_forced=True).should_retry


@pytest.mark.parametrize("final_state", ["NODE_FAIL", "", "FAILED"])
def test_a_run_lost_with_its_node_is_retried_on_others(final_state: str, tmp_path: Path) -> None:
    decision = decide_offline(make_lost_run(tmp_path), final_state=final_state)
    assert (
        decision.should_retry and decision.changes == {"exclude": ["node1"]} and "excluding node1" in decision.message
    )


@pytest.mark.parametrize("final_state", ["TIMEOUT", "PREEMPTED", "CANCELLED"])
def test_a_node_is_not_excluded_for_what_slurm_did(final_state: str, tmp_path: Path) -> None:
    decision = decide_offline(make_lost_run(tmp_path), final_state=final_state)
    assert decision.should_retry and decision.changes == {}


def test_of_several_nodes_none_is_excluded(tmp_path: Path) -> None:
    decision = decide_offline(make_lost_run(tmp_path, nodes="node[1-2]"))
    assert decision.should_retry and decision.changes == {} and "which of node[1-2] failed" in decision.message


def test_killed_by_slurm_for_its_memory_is_out_of_memory(tmp_path: Path) -> None:
    assert decide_offline(make_lost_run(tmp_path), final_state="OUT_OF_MEMORY").changes == {"micro_batch": 64}


@pytest.mark.parametrize("cause", ["error", "disk", "no progress", ""])
def test_a_run_that_would_fail_again_is_retried_only_when_it_is_named(cause: str, tmp_path: Path) -> None:
    run = make_failed_run(tmp_path, cause)
    decision = decide_offline(run)
    assert not decision.should_retry and "ValueError: x" in decision.message and (cause or "error") in decision.message
    assert decide_offline(run, is_forced=True).should_retry and decide_offline(run, is_forced=True).changes == {}


def test_a_run_that_waits_runs_or_is_evaluated_is_never_retried(tmp_path: Path) -> None:
    done, held = make_failed_run(tmp_path, "memory"), make_failed_run(tmp_path, "memory", 1)
    record_event(done, "evaluated")
    with hold(held.path / ".lock-0"):
        assert [decide_offline(run, is_forced=True).should_retry for run in (done, held)] == [False, False]


def test_the_failed_runs_of_a_sweep_are_submitted_by_failure_type_and_nothing_else(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are submitted as by launch."""
    path = tmp_path / "s"
    memory, gone, error = make_failed_run(path, "memory"), make_lost_run(path, 1), make_failed_run(path, "error", 2)
    waiting, running, stopped, again = (make_run(path, seed) for seed in range(3, 7))
    for run, job in ((waiting, "7_3"), (running, "7_4"), (again, "7_6")):
        record_submission(run, job)
    record_start(running, "7_4")
    record_epochs(running, [0.2, 0.3])
    record_event(stopped, "stopped", why="cancelled")
    record_event(again, "failed", why="x", cause="memory")
    before = {run: run.read_events() for run in (error, waiting, running, stopped, again)}
    queue = ["7_3|PENDING|Priority||t", "7_4|RUNNING|None|node1|t", "7_6|PENDING|BeginTime||t"]
    calls = fake_slurm(queue, ended=["7_0|FAILED", "7_1|NODE_FAIL"])
    assert main([str(write_sweep_plan(memory, gone, error, waiting, running, stopped, again)), "--failed"]) == 0
    output = capsys.readouterr().out
    assert f"{memory.run_id}: retried, out of memory: micro-batch 128 -> 64" in output
    assert f"{gone.run_id}: retried: its job 7_1 is no longer in Slurm's queue (NODE_FAIL); excluding node1" in output
    assert f"{error.run_id}: skipped: error: ValueError: x; fix that, then name the run" in output
    assert {run: run.read_events() for run in before} == before
    scripts = [file.read_text() for file in (path / "log").glob("*_submission.sh")]
    assert sum("--exclude=node1" in text for text in scripts) >= 1 and calls.read_text().count("sbatch") == len(scripts)
    for run, expected in {memory: (64, ()), gone: (None, ("node1",))}.items():
        assert [event["event"] for event in run.read_events()][-5:][0] == "retried" and read_state(
            run
        ).name == "submitted"
        resources = run.load_config().resources
        assert (resources.micro_batch, resources.exclude_nodes) == expected


def test_naming_a_run_forces_its_retry(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    error, other = make_failed_run(tmp_path / "s", "error"), make_failed_run(tmp_path / "s", "memory", 1)
    fake_slurm([])
    before = other.read_events()
    assert main([str(write_sweep_plan(error, other)), "s0"]) == 0
    assert f"{error.run_id}: retried unchanged: failed ValueError: x" in capsys.readouterr().out
    assert read_state(error).name == "submitted" and other.read_events() == before


def test_without_an_answer_of_slurm_nothing_is_retried(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_failed_run(tmp_path / "s", "memory")
    before = run.read_events()
    assert main([str(write_sweep_plan(run)), "--failed"]) == 2
    assert "Slurm does not answer" in capsys.readouterr().err and run.read_events() == before


def test_one_broken_config_does_not_keep_the_others(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    good, broken = make_failed_run(tmp_path / "s", "memory"), make_failed_run(tmp_path / "s", "memory", 1)
    broken.config_file.write_text("{")
    fake_slurm([])
    assert main([str(write_sweep_plan(good, broken)), "--failed"]) == 0
    assert "config.json cannot be read" in capsys.readouterr().out and read_state(good).name == "submitted"


def test_a_running_launch_and_nothing_to_do_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep_plan(make_run(tmp_path))
    assert main([str(sweep), "--failed"]) == 0
    assert "nothing to retry" in capsys.readouterr().out
    with hold(sweep / ".launch.lock"):
        assert main([str(sweep), "--failed"]) == 2
    assert "another launch of this sweep is running; nothing was changed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(sweep)])


def test_retry_takes_the_executors_of_launch(capsys: pytest.CaptureFixture[str]) -> None:
    messages = []
    for command in (launch, main):
        for options in (["--executor", "x"], ["--max-parallel", "0"]):
            with pytest.raises(SystemExit, match="2"):
                command(["here", *options])
            messages.append(capsys.readouterr().err.splitlines()[-1].partition("error: ")[2])
    assert messages[:2] == messages[2:]
    assert "'debug'" in messages[0] and "got '0'; expected an integer >= 1" in messages[1]
