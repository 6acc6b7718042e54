"""Processes of the steps: each has a session of its own, which is killed as a whole when its time is over.

The process that waits never imports torch: what breaks a step, its GPU or its memory does not reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import schedule
from results import list_started_steps, record
from schedule import CHECKS, TIMINGS

EXIT_DEVICE_LOST = 3  # the steps that are left need a new process
MIN_SECONDS = 10.0  # for which a process is worth starting
POLL_SECONDS = 0.2

Process = subprocess.Popen[bytes]


class Settings(NamedTuple):
    """Command line of a campaign, which all its processes share."""

    out_dir: Path
    deadline: float  # s, as time.time()
    is_tiny: bool
    sample: Path | None  # file of galaxies

    def get_limit(self, step: str) -> float:
        """Return the seconds that a step may take."""
        return (CHECKS | TIMINGS)[step].limit_seconds * (schedule.TINY_LIMIT_FACTOR if self.is_tiny else 1)


def start_steps(settings: Settings, steps: Sequence[str]) -> Process:
    """Start a process that runs steps one after the other, in a new session."""
    command = [sys.executable, str(Path(__file__).parent), "--run", "--steps", ",".join(steps)]
    command += ["--out", str(settings.out_dir), "--seconds", str(settings.deadline - time.time())]
    command += ["--tiny"] if settings.is_tiny else []
    command += ["--sample", str(settings.sample)] if settings.sample else []
    return subprocess.Popen(command, start_new_session=True)


def run_side_by_side(settings: Settings, steps: Sequence[str]) -> None:
    """Run steps at the same time, a process each; kill those that exceed their limit."""
    start = time.time()
    deadlines = {step: min(settings.deadline, start + settings.get_limit(step)) for step in steps}
    processes = {step: start_steps(settings._replace(deadline=deadlines[step]), [step]) for step in steps}
    for step, process in processes.items():
        end = min(settings.deadline, deadlines[step] + schedule.GRACE_SECONDS)
        status = _wait_until(process, end)
        if status != 0:
            record(settings.out_dir, step, failed=_describe_end(status))


def run_one_by_one(settings: Settings, steps: Sequence[str]) -> None:
    """Run steps one after the other in one process; after a step that ends its process, the rest in a new one."""
    remaining = list(steps)
    while remaining and time.time() < settings.deadline - MIN_SECONDS:
        num_before = len(list_started_steps(settings.out_dir))
        process = start_steps(settings, remaining)
        step, status = _watch(settings, process, remaining[0], num_before)
        if status == 0:
            return
        if status != EXIT_DEVICE_LOST:
            record(settings.out_dir, step, failed=_describe_end(status))
        remaining = remaining[remaining.index(step) + 1 :]


def _watch(settings: Settings, process: Process, step: str, num_before: int) -> tuple[str, int | None]:
    """Wait for a process of several steps; return its last step, and its status, None if a step took too long."""
    step_start = time.time()
    while process.poll() is None:
        started = list_started_steps(settings.out_dir)[num_before:]
        if started and started[-1] != step:
            step, step_start = started[-1], time.time()
        if time.time() > min(step_start + settings.get_limit(step) + schedule.GRACE_SECONDS, settings.deadline):
            break
        time.sleep(POLL_SECONDS)
    status = process.poll()
    started = list_started_steps(settings.out_dir)[num_before:]
    kill_session(process)
    return started[-1] if started else step, status


def _wait_until(process: Process, end: float) -> int | None:
    """Return the exit status of a process, or None where it was killed at `end`."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(1.0, end - time.time()))
    status = process.poll()
    kill_session(process)
    return status


def kill_session(process: Process) -> None:
    """Kill a process and all that it started: its session, which has its number."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            session = int(stat.read_text().rpartition(")")[2].split()[3])
            if session == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)
    process.wait()


def _describe_end(status: int | None) -> str:
    return "exceeded its limit and was killed" if status is None else f"its process ended with status {status}"
