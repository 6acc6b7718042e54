"""Processes of the steps: each has a session of its own, which is killed as a whole when its time is over.

The process that waits never imports torch: what breaks a step, its GPU or its memory does not reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import schedule
from results import list_started_steps, record
from schedule import CHECKS, TIMINGS

EXIT_DEVICE_LOST = 3  # the steps that are left need a new process
MIN_SECONDS = 10.0  # for which a process is worth starting
START_SECONDS = 60.0  # until the first step of a process begins
POLL_SECONDS = 0.2

Process = subprocess.Popen[bytes]


class Settings(NamedTuple):
    """Command line of a campaign, which all its processes share."""

    out_dir: Path
    deadline: float  # s, as time.time()
    is_tiny: bool
    sample: Path | None  # file of galaxies
    networks: str = ""  # whose steps are timed, with commas; all by default

    def get_limit(self, step: str) -> float:
        """Return the seconds that a step may take."""
        return (CHECKS | TIMINGS)[step].limit_seconds * (schedule.TINY_LIMIT_FACTOR if self.is_tiny else 1)


@contextmanager
def open_session(settings: Settings, steps: Sequence[str]) -> Iterator[Process]:
    """Start a process that runs steps one after the other, in a new session; kill what is left of it in the end."""
    command = [sys.executable, str(Path(__file__).parent), "--run", "--steps", ",".join(steps)]
    command += ["--out", str(settings.out_dir), "--seconds", str(settings.deadline - time.time())]
    command += ["--tiny"] if settings.is_tiny else []
    command += ["--networks", settings.networks] if settings.networks else []
    command += ["--sample", str(settings.sample)] if settings.sample else []
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if settings.is_tiny else {})
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        kill_session(process)


def run_side_by_side(settings: Settings, steps: Sequence[str]) -> None:
    """Run steps at the same time, a process each; kill those that exceed their limit."""
    start = time.time()
    with ExitStack() as stack:
        processes: dict[str, tuple[Process, float]] = {}
        for step in steps:
            deadline = min(settings.deadline, start + settings.get_limit(step))
            process = stack.enter_context(open_session(settings._replace(deadline=deadline), [step]))
            processes[step] = (process, min(settings.deadline, deadline + schedule.GRACE_SECONDS))
        for step, (process, end) in processes.items():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(1.0, end - time.time()))
            _record_end(settings, step, process.poll())
            kill_session(process)  # now, while others still run


def run_one_by_one(settings: Settings, steps: Sequence[str]) -> None:
    """Run steps one after the other in one process; after a step that ends its process, the rest in a new one."""
    remaining = list(steps)
    while remaining and time.time() < settings.deadline - MIN_SECONDS:
        num_before = len(list_started_steps(settings.out_dir))
        with open_session(settings, remaining) as process:
            step, status = _watch(settings, process, remaining[0], num_before)
        _record_end(settings, step, status)
        if status == 0:
            return
        remaining = remaining[remaining.index(step) + 1 :]


def _watch(settings: Settings, process: Process, step: str, num_before: int) -> tuple[str, int | None]:
    """Wait for a process of several steps; return its last step, and its status, None if a step took too long."""
    num_started, end = 0, time.time() + START_SECONDS
    while (status := process.poll()) is None and time.time() < min(end, settings.deadline):
        time.sleep(POLL_SECONDS)
        started = list_started_steps(settings.out_dir)[num_before:]
        if len(started) > num_started:
            num_started, end = len(started), time.time() + settings.get_limit(started[-1]) + schedule.GRACE_SECONDS
    started = list_started_steps(settings.out_dir)[num_before:]
    return started[-1] if started else step, status


def _record_end(settings: Settings, step: str, status: int | None) -> None:
    """Record how a process ended, unless it did so itself."""
    if status is None:
        record(settings.out_dir, step, failed="exceeded its limit and was killed")
    elif status not in (0, EXIT_DEVICE_LOST):
        record(settings.out_dir, step, failed=f"its process ended with status {status}")


def kill_session(process: Process) -> None:
    """Kill a process and all that it started: its session, which has its number."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            session = int(stat.read_text().rpartition(")")[2].split()[3])
            if session == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)
    process.wait()
