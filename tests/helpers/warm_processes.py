"""Processes forked from a server that has loaded torch and galaxyhpc: they start in a tenth of an interpreter's time.

Not for tests of imports, of memory, or of what each interpreter draws anew, such as the order of sets: verify_resume,
launch and the jobs of Slurm start interpreters of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import process_start.sitecustomize as process_start
import torch.multiprocessing

SCRATCH = os.environ["XDG_CACHE_HOME"]  # of this session, by conftest.py
CONTEXT = multiprocessing.get_context("forkserver")
# _dynamo is what an optimizer imports; e2cnn is left out, which most processes do without
CONTEXT.set_forkserver_preload(
    [
        *("galaxyhpc.launch.__main__", "galaxyhpc.launch.preflight", "galaxyhpc.launch.smoke_test"),
        *("galaxyhpc.training.trainer", "galaxyhpc.evaluation.evaluate", "galaxyhpc.report.build", "torch._dynamo"),
        *("jobs.train", "jobs.evaluate", "jobs.report"),
    ]
)


@dataclass(frozen=True)
class WarmProcess:
    """The part of `subprocess.Popen` that tests use; what is printed goes to files."""

    process: BaseProcess
    log: Path
    errors: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 300.0) -> int:
        """Return the exit status, or minus the signal; raise TimeoutError."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"process {self.pid} has not ended after {timeout} s")
        return self.process.exitcode


def start_python(*arguments: str, log: Path | None = None, cwd: Path | None = None, **environment: str) -> WarmProcess:
    """Do what `python -m MODULE ...` or `python -c CODE ...` does; `log` gets all output, else two files of its own."""
    outputs = (log, log) if log else (_make_file(), _make_file())
    environment = os.environ | environment
    process = CONTEXT.Process(target=_execute, args=(arguments, outputs, cwd or Path.cwd(), environment))
    process.start()
    return WarmProcess(process, *outputs)


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Do the same to its end."""
    process = start_python(*arguments, **options)
    return subprocess.CompletedProcess(arguments, process.wait(), process.output, process.errors.read_text())


def run_two(function: Callable[..., None], *arguments: object) -> None:
    """Call a function with a rank, 0 or 1, and these arguments in two processes; raise what one of them raises."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def _make_file() -> Path:
    number, name = tempfile.mkstemp(dir=SCRATCH)
    os.close(number)
    return Path(name)


def _execute(arguments: tuple[str, ...], outputs: tuple[Path, Path], cwd: Path, environment: dict[str, str]) -> None:
    """Become the process, in the child."""
    os.environ.clear()
    os.environ.update(environment)
    process_start.leave_out_figures_if_asked()
    os.chdir(cwd)
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option, program, *rest = arguments
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "-c", "exec"), {"__name__": "__main__"})
