"""Every table of every command, at every width of a terminal: no line is too long, and no number is cut."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import make_learning_curve, make_run, record_epochs, record_event, record_start, write_sweep_plan
from helpers.tables import make_tables
from rich.console import Console
from rich.text import Text

from galaxyhpc import fsck, verify_resume
from galaxyhpc.analysis.run_cost import RunTimeEstimate, fit_cost_models
from galaxyhpc.benchmark import tables as benchmark_tables
from galaxyhpc.benchmark.forecast import RunForecast
from galaxyhpc.config.schema import ModelConfig, RequestedResources, RunConfig
from galaxyhpc.fsck import FileCheck
from galaxyhpc.launch import dry_run, preflight
from galaxyhpc.launch.preflight import CheckedSweep, Problem
from galaxyhpc.launch.smoke_test import ANGLES_DEG, SymmetryErrors, tiny_config
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.report.terminal import make_terminal_table
from galaxyhpc.runtime.console import ConsoleTable
from galaxyhpc.status.table import make_table_from_records
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs

ROOT = Path(__file__).parents[1]
WIDTHS = (40, 60, 80, 100, 132)
LONG_TEXT = "checkpoints/step_00000840/state.pt: got a SHA-256 that MANIFEST.json does not hold; launch the sweep again"


def make_report_table(directory: Path) -> list[ConsoleTable]:
    tables = make_tables()
    return [make_terminal_table("test accuracy in %", tables.networks, tables.summary, ["a note"])]


def make_status_table(directory: Path) -> list[ConsoleTable]:
    runs = [make_run(directory / "s", seed, group="D16") for seed in range(3)]
    write_sweep_plan(*runs)
    for run in runs:
        record_start(run, "7")
        record_epochs(run, make_learning_curve(12), epoch_seconds=3600.0)
    record_event(runs[2], "failed", why="OutOfMemoryError: " + "CUDA out of memory " * 20, cause="memory")
    return [make_table_from_records(runs, "runs/s")]


def make_checked_sweep() -> CheckedSweep:
    models = (ModelConfig(group="D16"), ModelConfig(architecture="cnn"), ModelConfig(group="C4", head="flatten"))
    resources = RequestedResources(time_minutes=90, memory_gb=16)
    configs = [RunConfig(model=model, seed=seed, resources=resources) for model in models for seed in range(2)]
    networks = {config.run_id: NetworkProfile(12_345_678, 9_876_543_210) for config in configs}
    errors = {tiny_config(model): SymmetryErrors(1e-6, dict.fromkeys(ANGLES_DEG, 0.6)) for model in models}
    return CheckedSweep(configs, networks, errors, fit_cost_models([], 17_736))


def make_launch_tables(directory: Path) -> list[ConsoleTable]:
    sweep = make_checked_sweep()
    pending_runs = {RunDir(directory / config.run_id): config.resources.resolved for config in sweep.configs}
    classes = dry_run.make_resource_classes(pending_runs, sweep)
    tables = [dry_run.make_runs_table(directory, sweep), dry_run.make_classes_table(classes)]
    return [*tables, preflight.make_symmetry_table(sweep)]


def make_fsck_table(directory: Path) -> list[ConsoleTable]:
    checks = [
        FileCheck("D16-steerable_cnn-s0-f13fc0de", 3, (840, 1680, 2520)),
        FileCheck("D16-steerable_cnn-s1-0123abcd", 3, (840, 1680), (LONG_TEXT,), ("2 checkpoints in quarantine",)),
    ]
    return [fsck.make_table(checks, "runs/sweep")]


def make_verify_resume_table(directory: Path) -> list[ConsoleTable]:
    results = [
        verify_resume.TrialResult("KILL in a save", 12_345, 12_300, 12.3, ""),
        verify_resume.TrialResult("USR2", 12_345, 12_345, 102.3, "checkpoint: optimizer.state.3.exp_avg"),
    ]
    return [verify_resume.make_table(results, "a run")]


def make_benchmark_tables(directory: Path) -> list[ConsoleTable]:
    times = {"seconds": 0.123, "images_per_second": 12_345.0}
    measured = {"training": times, "inference": times, "peak_bytes": 9.9e9, "startup_seconds": 123.0}
    ratios = {"training_seconds": {"e2cnn_to_ours": 12.34, "compiled_to_ours": 1.23}}
    estimated = {"training": {"seconds": 0.123, "dense_seconds": 12.3}}
    implementations = {"ours": measured | {"estimated": estimated}, "e2cnn": {"failed": "RuntimeError: " + LONG_TEXT}}
    network = {"batch": 128, "ratios": ratios, "implementations": implementations}
    data = {"batch": 128, "size": 256, "ratios": {"torchvision_to_ours": 12.3}, "ours": times, "torchvision": times}
    scaling = {"network": "C4", "size": 65, "efficiency": 0.97, "batch_per_process": 64, "threads": 8}
    scaling |= {"images_per_second_1": 12_345.0, "images_per_second_2": 23_456.0}
    results = {"networks": {"D16-steerable_cnn": network}, "data": data, "scaling": scaling}
    forecasts = [RunForecast(config, True, RunTimeEstimate(9e5, 9e4)) for config in make_checked_sweep().configs]
    return [*benchmark_tables.make_tables(results), benchmark_tables.make_sweep_table("sweep", forecasts, "a machine")]


MAKERS = {
    "aggregate": make_report_table,
    "status": make_status_table,
    "launch": make_launch_tables,
    "fsck": make_fsck_table,
    "verify_resume": make_verify_resume_table,
    "benchmark": make_benchmark_tables,
}


def render(renderable: object, width: int) -> str:
    file = io.StringIO()
    Console(width=width, file=file, markup=False, highlight=False).print(renderable)
    return file.getvalue()


def list_numbers(table: ConsoleTable, left_out: str) -> list[str]:
    """Return every cell in the columns of numbers, and every short word with a digit in those of text."""
    numbers = []
    for row in [*table.rows, *([table.totals] if table.totals else [])]:
        for head, cell in list(zip(table.heads, row, strict=True))[1:]:
            parts = str(cell).split() if head in table.texts else [str(cell)]
            if head not in left_out.split(", "):
                numbers += [part for part in parts if (re.search(r"\d", part) and len(part) <= 16) or part == str(cell)]
    return [number for number in numbers if number]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_no_number_of_a_table_is_cut(make: Callable[[Path], list[ConsoleTable]], width: int, tmp_path: Path) -> None:
    for table in make(tmp_path):
        text = render(table, width)
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        (left_out,) = re.findall(r"left out for\s+lack of\s+room:\s+([\w\s,]*?)(?:\n\n|$)", text) or [""]
        numbers = list_numbers(table, " ".join(left_out.split()))
        cut = [number for number in numbers if not re.search(rf"(?<!\S){re.escape(number)}(?!\S)", text)]
        assert numbers and not cut, text


def test_every_word_of_a_problem_is_shown_in_a_narrow_terminal() -> None:
    console = Console(width=40, file=io.StringIO(), markup=False, highlight=False)
    with console.capture() as capture:
        preflight.print_problems(
            preflight.PreflightError([Problem("sweep.yaml:12", LONG_TEXT, LONG_TEXT[:20])]), console
        )
    shown = "".join(capture.get().split())
    assert all("".join(word.split()) in shown for word in ("sweep.yaml:12", "state.pt:", "launch", "again"))


def test_columns_that_may_be_missing_go_first_and_are_named() -> None:
    table = ConsoleTable("", ("run", "best", "left"), [("a run", "0.93", "1:02:03")], optional=("left", "best"))
    assert render(table, 23).split() == ["run", "best", "left", "─" * 20, "a", "run", "0.93", "1:02:03"]
    narrow = " ".join(render(table, 14).split())
    assert "left out for lack of room: left" in narrow and "0.93" in narrow and "1:02:03" not in narrow


def test_columns_without_room_follow_below_beside_the_names() -> None:
    heads, row = ("run", "first", "second"), ("a run", "1 111 111", Text("2 222 222", "bold"))
    lines = [line for line in render(ConsoleTable("", heads, [row]), 20).splitlines() if "─" not in line]
    assert lines == ["", "run        first", "a run  1 111 111", "", "run       second", "a run  2 222 222"]


def test_a_table_without_rows_has_its_heads_and_totals_stand_below_a_line() -> None:
    lines = render(ConsoleTable("none", ("run", "hours"), []), 40).splitlines()
    assert lines == ["none", "", "run  hours", "─" * 10]
    lines = render(ConsoleTable("", ("runs", "hours"), [("2", "1"), ("3", "4")], totals=("5", "5")), 40).splitlines()
    assert [line.split() for line in lines[3:]] == [["2", "1"], ["3", "4"], ["─" * 11], ["5", "5"]]


def test_the_dry_run_names_the_settings_that_differ_where_there_is_room(tmp_path: Path) -> None:
    table, *_ = make_launch_tables(tmp_path)
    text = render(table, 170)
    assert "model.group=D16" in text and "seed=1" in text and "train." not in text
    assert "left out for lack of room: differs in" in render(table, 100)


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_and_columns_set_the_width(width: int, tmp_path: Path) -> None:
    make_status_table(tmp_path)
    for run in find_runs(tmp_path / "s"):
        record_event(
            run, "failed", why="RuntimeError: x", cause="error"
        )  # the time left would change between two calls
    command = [sys.executable, "-m", "galaxyhpc.status", str(tmp_path / "s")]
    environment = {**os.environ, "COLUMNS": str(width), "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    piped = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    main_end, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run(command, env=environment, stdout=end, check=True)
    os.close(end)
    shown = re.sub(rb"\x1b\[[0-9;]*m", b"", os.read(main_end, 1 << 16)).replace(b"\r", b"")
    os.close(main_end)
    assert shown == piped and b"12/20" in piped and max(map(len, piped.decode().splitlines())) <= width


def test_no_module_prints_a_table_of_richs_which_would_cut_it() -> None:
    folders = (ROOT / "galaxyhpc", ROOT / "jobs")
    assert not [path for folder in folders for path in folder.rglob("*.py") if "rich.table" in path.read_text("utf-8")]
