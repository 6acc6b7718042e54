"""The status of a run from its records and one answer of Slurm."""

from __future__ import annotations

import os
from pathlib import Path

from helpers.runs import FakeSlurm, make_run, record_event, record_submission, write_sweep_plan

from galaxyhpc.runtime.lock import hold
from galaxyhpc.status.run_status import query_status


def test_a_run_is_not_lost_without_evidence(tmp_path: Path, answers: FakeSlurm) -> None:
    """Held by a process, too young, of another user's, or with an id that was used twice."""
    held, young, strange = (make_run(tmp_path / "s", seed) for seed in range(3))
    sweep = write_sweep_plan(held, young, strange)
    for run in (held, strange):
        record_submission(run, "7", "mine")
    young.record("submitted", job="7", executor="slurm", token="mine")
    answers(["7|RUNNING|None|node1|theirs"])
    with hold(held.path / ".lock-0"):
        states = {status.run: status.state for status in query_status([held, young, strange])[0]}
    assert states == {held: "submitted", young: "submitted", strange: "lost"}
    os.chown(strange.events_file, 12345, -1)
    assert query_status([strange])[0][0].state == "submitted"
    assert sweep.is_dir()


def test_a_launch_killed_before_it_recorded_the_job_left_a_token_to_find_it(tmp_path: Path, answers: FakeSlurm) -> None:
    run = make_run(tmp_path)
    record_event(run, "submitting", token="abc")
    answers(["7_0|PENDING|Resources||abc"])
    assert query_status([run])[0][0].state == "waiting"
    answers([])
    assert query_status([run])[0][0].state == "planned"
