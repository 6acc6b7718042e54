"""Sweeps through a real Slurm: sbatch, arrays, dependencies, signals, the requeue. The directories have spaces."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.slurm import CONDITIONS, MEASURED, Desk, desk, queue, started
from helpers.warm_processes import start_python

from galaxyhpc import cancel
from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch import slurm_executor
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.run_dir import read_state
from jobs.train import TrainJob


@pytest.fixture(scope="module")
def swept(place: Path) -> tuple[Desk, list[str]]:
    """A finished sweep of two networks, and the output of its first and second launch."""
    ours = desk(place / "swept", tiny=CONDITIONS + "blocks: [points: [{model.architecture: cnn}, {model.group: C4}]]\n")
    two = ("--set", "resources.tasks_per_node=2")
    gate = ours.path / "gate"
    gate.touch()
    wait = f"resources.setup=['while [ -e \"{gate}\" ]; do sleep 0.1; done']"
    outputs = [ours.launch("tiny", "--canary", *two, "--set", wait)]
    outputs.append(ours.launch("tiny", *two))
    gate.unlink()
    ours.wait_for_jobs()
    return ours, outputs


def test_a_sweep_of_two_process_jobs_goes_through_arrays_to_a_report(swept: tuple[Desk, list[str]]) -> None:
    ours, outputs = swept
    for stage in ("canary: 1 job ", "train: 2 jobs", "evaluate: 2 jobs", "report: 1 job "):
        assert stage in outputs[0], outputs[0]
    for run in ours.runs("tiny"):
        assert {event["world"] for event in started(run)} == {2}, run.read_events()
        assert read_state(run).name == "evaluated", ours.evidence()
    other, heaviest = (started(run) for run in ours.runs("tiny"))
    assert [event["step"] for event in other] == [0]
    assert [event["step"] for event in heaviest] == [0, 3]  # the canary trains the first steps of the run
    assert heaviest[1]["job"].split("_")[0] == other[0]["job"].split("_")[0] != heaviest[0]["job"].split(".")[0]
    assert len(ours.report("tiny", "results")) == 2 * MEASURED
    assert {row["seeds_done"] for row in ours.report("tiny", "summary")} == {"1"}
    assert ours.report("tiny", "missing") == []


def test_a_second_launch_submits_nothing_while_jobs_wait_and_nothing_when_all_is_done(
    swept: tuple[Desk, list[str]],
) -> None:
    ours, outputs = swept
    assert "2 runs, 2 complete or active" in outputs[1] and "submitted" not in outputs[1]
    before = queue(ours.path, "all")
    again = ours.launch("tiny")
    assert "2 runs, 2 complete or active" in again and "submitted" not in again
    assert queue(ours.path, "all") == before


def test_sbatch_evaluates_what_is_missing_and_reports_as_one_job_or_an_array(swept: tuple[Desk, list[str]]) -> None:
    ours, _ = swept
    shutil.copytree(ours.path / "my runs" / "tiny", ours.path / "my runs" / "copy")
    before = {}
    for sweep, array in {"tiny": (), "copy": ("--array=0-1",)}.items():
        first, second = ours.runs(sweep)
        before[sweep] = second.results_file.stat().st_mtime_ns
        first.results_file.unlink()
        first.predictions_file.unlink()
        (ours.path / "my runs" / sweep / "report" / "results.csv").unlink()
        ours.sbatch(*array, "slurm/eval.sh", f"my runs/{sweep}")
    ours.wait_for_jobs()
    for sweep in before:
        assert len(ours.report(sweep, "results")) == 2 * MEASURED, ours.evidence()
        assert ours.runs(sweep)[1].results_file.stat().st_mtime_ns == before[sweep]


def test_sbatch_writes_the_report_alone_and_a_wrong_call_of_a_script_is_explained(
    swept: tuple[Desk, list[str]],
) -> None:
    ours, _ = swept
    (ours.path / "my runs" / "tiny" / "report" / "summary.csv").unlink()
    ours.sbatch("slurm/aggregate.sh", "my runs/tiny")
    wrong = {
        ours.sbatch("slurm/eval.sh"): "slurm/eval.sh: runs/all_groups: no plan.csv",
        ours.sbatch("slurm/eval.sh", "my runs/none"): "slurm/eval.sh: my runs/none: no plan.csv",
        ours.sbatch("slurm/aggregate.sh", "my runs/none"): "my runs/none",
        ours.sbatch("--array=0-2:2", "slurm/eval.sh", "my runs/tiny"): "slurm/eval.sh: --array: got a list with gaps",
    }
    ours.wait_for_jobs()
    for job, message in wrong.items():
        assert "ExitCode=2:0" in ours.call("scontrol", "show", "job", job)
        assert message in next(ours.path.glob(f"*-{job}.out")).read_text()
    assert {row["seeds_done"] for row in ours.report("tiny", "summary")} == {"1"}


LONG = """\
  evaluate.conditions: [clean]
blocks: [points: [{model.architecture: cnn, train: {epochs: 4, batch_size: 8}}]]
"""


def test_a_preempted_job_is_requeued_and_no_other_job_trains_its_run_meanwhile(place: Path) -> None:
    """The controller delays the requeue, as on a busy cluster."""
    ours = desk(place / "broken", long=LONG)
    slow = ours.path / "bin" / "scontrol"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 8\nexec {shutil.which("scontrol")} "$@"\n')
    slow.chmod(0o755)
    setup = f"resources.setup=['export PATH=\"{slow.parent}:$PATH\"']"
    ours.launch("long", "--set", setup)
    (run,) = ours.runs("long")
    after = [job for job, _, name in queue(ours.path) if name != "long-train"]
    subprocess.run(["scancel", *after], check=True)  # other tests cover the evaluation and the report
    job = next(event["job"] for event in run.read_events() if event["event"] == "submitted")
    ours.wait(lambda: bool(run.read_metrics()), "an epoch")
    output = ours.call(sys.executable, "-m", "jobs.train", run.path, status=2)
    assert f"another process works on this run (job {job}, host " in output
    parameters = slurm_executor.make_submitit_parameters("again", ResourcesConfig(tasks_per_node=2), None)
    # a job that waits for the run
    slurm_executor.Submission(run.sweep_dir).submit_array("train", [TrainJob(str(run.path))], parameters)
    subprocess.run(["scancel", "--signal=USR2", f"{job}.0"], check=True)
    ours.wait_for_jobs()
    assert read_state(run).name == "trained", ours.evidence()
    events = [event["event"] for event in run.read_events()]
    assert events.count("started") == 2 and events.count("stopped") == 1, run.read_events()
    first, second = [event for event in run.read_events() if event["event"] == "started"]
    assert first["step"] == 0 < second["step"] < checkpoint.load_latest(run)["progress"]["step"]


def test_a_canary_that_cannot_be_trained_says_why_and_nothing_starts_after_it(place: Path) -> None:
    galaxies, gate = place / "galaxies.h5", place / "gate of the failing"
    ours = desk(place / "failing", lost="blocks: [grid: {model.architecture: [cnn], model.scale: [0.1, 0.2]}]\n")
    ours.call(sys.executable, "-m", "galaxyhpc.demo", galaxies, "--n", "300", "--size", "32")
    gate.touch()
    wait = f"resources.setup=['while [ -e \"{gate}\" ]; do sleep 0.1; done']"
    more = ("--set", f"data.source={galaxies}", "--set", wait)
    ours.launch("lost", "--canary", *more)
    galaxies.unlink()
    gate.unlink()
    ours.wait_for_jobs()
    other, heaviest = ours.runs("lost")
    assert read_state(heaviest).name == "failed" and str(galaxies) in read_state(heaviest).reason, ours.evidence()
    assert started(other) == []
    output = ours.command(status.main, "my runs/lost")
    assert "1 failed" in output, output
    finished = {name: state for _, state, name in queue(ours.path, "all")}
    dead = dict.fromkeys(("lost-train", "lost-evaluate"), "CANCELLED")
    assert finished == {"lost-canary": "FAILED", "lost-report": "COMPLETED", **dead}
    missing = {row["run_id"]: row["reason"] for row in ours.report("lost", "missing")}
    assert "failed" in missing[heaviest.run_id] and "not started" in missing[other.run_id]


def test_two_launches_at_once_and_one_that_is_killed_submit_every_run_once(place: Path) -> None:
    """There are nine runs, and an array has at most eight; the first launch dies after submitting one array."""
    ours = desk(place / "twice", many=CONDITIONS + "seeds: 9\nblocks: [points: [{model.architecture: cnn}]]\n")
    deadly = ours.path / "bin" / "sbatch"
    deadly.parent.mkdir()
    real = shutil.which("sbatch")
    test_only = f'case "$*" in *--test-only*) exec {real} "$@" ;; esac'
    deadly.write_text(f'#!/bin/sh\n{test_only}\n{real} "$@"; kill -9 $PPID\n')
    deadly.chmod(0o755)
    command = ["-m", "galaxyhpc.launch", "many.yaml", "--executor", "slurm", "--runs", "my runs"]
    command += ["--max-parallel", "3", "--set", "resources.setup=['sleep 600']"]
    environment = ours.environment | {"PATH": f"{deadly.parent}:{ours.environment['PATH']}"}
    assert start_python(*command, cwd=ours.path, **environment).wait() == -signal.SIGKILL
    assert len(queue(ours.path)) == 8 and not any(
        event["event"] == "submitted" for run in ours.runs("many") for event in run.read_events()
    )
    processes = [start_python(*command, cwd=ours.path, **ours.environment) for _ in range(2)]
    outputs = []
    for process in processes:
        process.wait()
        outputs.append(process.output + process.errors.read_text())
    assert sum("train: 1 job " in output for output in outputs) == 1, outputs
    refusals = ("another launch of this sweep is running", "9 complete or active")
    assert any(refusal in output for output in outputs for refusal in refusals), outputs
    jobs = [job for job, _, name in queue(ours.path) if name == "many-train"]
    assert len(jobs) == 9 and sorted(job.partition("_")[2] for job in jobs) == ["", *map(str, range(8))]
    output = ours.command(cancel.main, "my runs/many")
    assert ": cancelled: " in output and "8 waiting" in output, output
    ours.wait_for_jobs()
