"""Settings of all tests: two tiers, three workers, Slurm tests first and only where Slurm answers, a thread a process.

The fast tier leaves out the tests marked `slow`, and draws a tenth of hypothesis' examples. With
GALAXYHPC_TEST_EVERYTHING=1 everything runs, and a missing Slurm, compiler or browser is a failure instead of a skip.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import process_start.sitecustomize as process_start
import pytest
from helpers.tiers import IS_FULL_TIER, skip_or_fail
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

TESTS_DIRECTORY = Path(__file__).parent
CLUSTER_SCRIPT = TESTS_DIRECTORY / "slurm" / "cluster"
CHROMIUM = Path("/usr/bin/chromium")
LONGEST_FILES = (
    *("test_launch.py", "test_trainer.py", "test_environment.py", "test_verify_resume.py", "test_benchmark.py"),
    *("test_commands.py", "test_style.py", "test_compiled.py", "test_other_classes.py", "test_gpu_campaign.py"),
    *("test_fused_blocks.py", "test_hostile_runs.py", "test_build.py"),
)

os.environ.pop("COLUMNS", None)  # readline, which pytest imports, hands it to the workers; tests print as into a log
os.environ["OMP_NUM_THREADS"] = "1"  # several processes at a time on few cores
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # a GPU's kernels run without one; asked for when Triton is imported
# which every Python that the tests start looks through for a sitecustomize
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (os.path.dirname(process_start.__file__), os.environ.get("PYTHONPATH")))
)
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:  # workers inherit it: what is sampled and compiled once per machine is, here, once per session
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="galaxyhpc-tests-")
SESSION_CACHE = os.environ["XDG_CACHE_HOME"]
settings.register_profile("fast", deadline=None, derandomize=True)
settings.register_profile("full", deadline=None)
settings.load_profile("full" if IS_FULL_TIER else "fast")
# a shell ignores Ctrl-C for a command in the background, and every process that the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def is_slurm_available() -> bool:
    """Whether a controller answers; without SLURM_CONF our own cluster is tried, if it is up."""
    if "SLURM_CONF" not in os.environ:
        export = subprocess.run([CLUSTER_SCRIPT, "env"], capture_output=True, text=True).stdout
        if export:
            os.environ["SLURM_CONF"] = export.strip().partition("=")[2]
    try:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "is UP" in answer.stdout


@functools.cache
def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    from galaxyhpc.runtime import native  # brings torch, which the settings above come before

    return native.find_compiler() is not None


class WholeFileScheduling(LoadFileScheduling):
    """Gives each file to one worker, and all Slurm tests, which share the nodes, to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file.partition("slurm/")[0] if "slurm/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFileScheduling:
    return WholeFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if TESTS_DIRECTORY / "slurm" in item.path.parents:
            item.add_marker("slurm")
    items.sort(key=lambda item: rank_file(item.path))
    if has_slow_tests(config):
        return
    items[:], left_out = (
        [item for item in items if bool(item.get_closest_marker("slow")) is is_slow] for is_slow in (False, True)
    )
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """Take what is loaded by now out of the garbage collector's work: a second for three full collections."""
    gc.collect()
    gc.freeze()


def rank_file(path: Path) -> int:
    """Put Slurm tests first, then the files that take longest, so that no worker waits for another in the end."""
    if TESTS_DIRECTORY / "slurm" in path.parents:
        return 0
    return 1 + (LONGEST_FILES.index(path.name) if path.name in LONGEST_FILES else len(LONGEST_FILES))


def has_slow_tests(config: pytest.Config) -> bool:
    """Whether slow tests run: in the full tier, or where `-m` names them."""
    return IS_FULL_TIER or "slow" in config.option.markexpr


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not has_slow_tests(config):
        terminalreporter.write_line(
            "fast tier: tests marked slow were left out; run them with `pytest -m slow`, "
            "or everything with `GALAXYHPC_TEST_EVERYTHING=1 pytest`"
        )


def pytest_unconfigure() -> None:
    if not IS_WORKER:
        shutil.rmtree(SESSION_CACHE, ignore_errors=True)


@functools.cache
def lower_priority() -> None:
    """Leave the cores to the Slurm tests, which wait for more."""
    os.nice(10)


@pytest.fixture(autouse=True)
def forget_slurm() -> Iterator[None]:
    """Let no test see whether Slurm answered another one, which may have stood in for it."""
    yield
    if slurm := sys.modules.get("galaxyhpc.runtime.slurm"):
        slurm._ping.cache_clear()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of reports, which take most of their time, in processes that the test starts, too."""
    monkeypatch.setattr("galaxyhpc.report.html_report.FIGURES", {})  # where it is used, as that is loaded late
    monkeypatch.setenv("GALAXYHPC_TEST_WITHOUT_FIGURES", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("slurm"):
        lower_priority()
    elif not is_slurm_available():
        skip_or_fail("no Slurm answers; tests/slurm/cluster up starts one")
    if item.get_closest_marker("compiler") and not has_compiler():
        skip_or_fail("no C++ compiler")


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable[[Path], Any]]:
    """Return a function that opens HTML files in Debian's Chromium; `page.messages` are errors, logs and requests."""
    if not CHROMIUM.exists():
        skip_or_fail(f"{CHROMIUM} is absent")
    from playwright.sync_api import sync_playwright

    def open_file(file: Path) -> Any:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(120_000)  # of a machine with other things to do
        page.messages = []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.messages.append(request.url))
        page.goto(file.as_uri())
        return page

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield open_file
        browser.close()
