"""The campaign for a GPU (tests/benchmarks/gpu): it runs end to end on a CPU, and no step can end another.

Each runs as a program, in Triton's interpreter and, where faults are injected, from a copy with other steps.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

PROJECT = Path(__file__).parents[2]
CAMPAIGN = PROJECT / "tests" / "benchmarks" / "gpu"
# the others (warm, layers, bits, resume, pair, steps, profile, compiled, prediction) take long in the interpreter
STEPS = ("smoke", "ceilings", "graphs", "fused", "selection", "inference", "data", "e2cnn")
LIMIT_SECONDS = 1800.0

FAULTY_SCHEDULE = """
CHECKS.clear()
TIMINGS.clear()
TINY_LIMIT_FACTOR = 1
GRACE_SECONDS = 0.5
CHECKS |= {name: Step(f"faults.{name}", 60.0) for name in ("abort", "finish")}
TIMINGS |= {name: Step(f"faults.{name}", 60.0) for name in ("finish_first", "abort_later", "fail")}
TIMINGS |= {"hang": Step("faults.hang", 1.0), "finish_last": Step("faults.finish", 60.0)}
TIMINGS |= {"hang_long": Step("faults.hang", 120.0)}
"""

FAULTS = """
import os, signal, time

def abort(campaign):
    os.abort()

def hang(campaign):
    campaign.record(pid=os.getpid())
    if (child := os.fork()) == 0:
        time.sleep(600)
    campaign.record(pid=child)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def fail(campaign):
    raise ValueError("no such kernel")

def finish(campaign):
    campaign.record(finished=True)

abort_later, finish_first = abort, finish
"""


def start(directory: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(directory), "--out", str(out), *options]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path})


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def list_steps(results: list[dict[str, Any]], event: str) -> set[str]:
    return {line["step"] for line in results if line.get("event") == event}


@pytest.fixture
def faulty_campaign(tmp_path: Path) -> Path:
    """Return a copy of the campaign whose steps have faults."""
    directory = tmp_path / "gpu"
    shutil.copytree(CAMPAIGN, directory, ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "schedule.py").open("a") as file:
        file.write(FAULTY_SCHEDULE)
    (directory / "faults.py").write_text(FAULTS)
    return directory


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_campaign_runs_on_a_cpu(tmp_path: Path) -> None:
    process = start(CAMPAIGN, tmp_path, "--tiny", "--steps", ",".join(STEPS), "--seconds", str(LIMIT_SECONDS))
    assert process.wait(LIMIT_SECONDS) == 0
    results = read(tmp_path)
    assert list_steps(results, "start") == list_steps(results, "end") == set(STEPS)
    assert {line["step"] for line in results if "event" not in line} == {"campaign", *STEPS}
    smoke = [line for line in results if line["step"] == "smoke" and "kernels" in line]
    assert {line["kernels"] for line in smoke} == {"dense", "operator", "irreps"}
    assert all(line["worst_error"] < 1e-5 for line in smoke)
    assert all(line.get("has_same_bits", True) for line in results)
    (trial,) = [line for line in results if line["step"] == "selection" and "error" in line]
    assert trial["harmonic_layers"] == 10 and trial["error"] < 1e-3
    assert trial["seconds"] > 10 * trial["dense_seconds"]  # the interpreter is slow
    (fused,) = [line for line in results if line["step"] == "fused" and "event" not in line]
    assert max(fused["fused_error"], fused["two_step_error"]) < 1e-6
    evaluated = [line for line in results if line["step"] == "inference" and "images_per_second" in line]
    assert {(line["network"], line["inference_kernels"]) for line in evaluated} == {("C4", "dense"), ("cnn", "dense")}
    assert "NOT ended" not in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_a_step_that_crashes_fails_or_hangs_ends_alone(faulty_campaign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = "abort,finish,finish_first,abort_later,fail,hang,finish_last"
    assert start(faulty_campaign, out, "--tiny", "--steps", steps, "--seconds", "300").wait(300) == 1
    results = read(out)
    failures = {line["step"]: line["failed"] for line in results if "failed" in line}
    assert failures == {
        "abort": f"its process ended with status {-signal.SIGABRT}",
        "abort_later": f"its process ended with status {-signal.SIGABRT}",
        "fail": "ValueError: no such kernel",
        "hang": "exceeded its limit and was killed",
    }
    assert {line["step"] for line in results if "finished" in line} == {"finish", "finish_first", "finish_last"}
    assert not any(is_running(line["pid"]) for line in results if "pid" in line)
    assert "hang         NOT ended, with failures" in (out / "table.txt").read_text()


@pytest.mark.slow
def test_a_campaign_that_is_terminated_leaves_no_process(faulty_campaign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(faulty_campaign, out, "--tiny", "--steps", "hang_long", "--seconds", "300")
    end = time.monotonic() + 120
    pids: list[int] = []
    while len(pids) < 2 and time.monotonic() < end:
        pids = [line["pid"] for line in read(out) if "pid" in line] if (out / "results.jsonl").exists() else []
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    while any(map(is_running, pids)) and time.monotonic() < end:  # a killed process may take a moment to end
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(is_running, pids))


@pytest.mark.slow
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    assert start(CAMPAIGN, tmp_path, "--steps", "ceilings").wait(120) == 1
    failures = [line["failed"] for line in read(tmp_path) if "failed" in line]
    assert failures == ["torch sees no GPU; expected one, or --tiny"]


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(CAMPAIGN), "--out", str(tmp_path), "--steps", "smoke,lunch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "--steps: got lunch; expected some of warm, smoke" in result.stderr
    assert not list(tmp_path.iterdir())
