"""Whatever is in a run's directory: exit status 0, 1 or 2, clear lines, nothing executed, nothing written elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from helpers.hostile import FUZZ_SETTINGS, VALID_SWEEP, capture_command, snapshot_tree, workspace
from helpers.tiers import num_examples, slow_unless
from hypothesis import example, given, settings
from hypothesis import strategies as st

from galaxyhpc import aggregate, fsck
from galaxyhpc.analysis import collect
from galaxyhpc.evaluation import results
from galaxyhpc.launch import __main__ as launch
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import find_runs

__all__ = ["workspace"]

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one run that was trained and evaluated."""
    path = tmp_path_factory.mktemp("finished")
    (path / "sweep.yaml").write_text(json.dumps(VALID_SWEEP))
    arguments = [str(path / "sweep.yaml"), "--executor", "debug", "--runs", str(path / "runs")]
    assert launch.main(arguments) == 0
    return path / "runs" / "good"


@pytest.fixture
def sweep(finished: Path, workspace: Path) -> Path:
    """A copy of that sweep."""
    shutil.copytree(finished, workspace / "runs" / "good")
    return workspace / "runs" / "good"


def run_in(sweep: Path) -> RunDir:
    (run,) = find_runs(sweep)
    return run


def train_run(path: Path) -> int:
    return run_module("train", str(path))


def evaluate_run(path: Path) -> int:
    return run_module("evaluate", str(path))


def run_module(name: str, *arguments: str) -> int:
    """Run `python -m jobs.NAME` in this process: another one would take seconds."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(PROJECT / "jobs" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before
    return 0


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "status": lambda path: status.main([str(path)]),
    "fsck": lambda path: fsck.main([str(path)]),
    "aggregate": lambda path: aggregate.main([str(path), "--no-intervals"]),
    "train": train_run,
    "evaluate": evaluate_run,
}

PLANS = [
    *(
        f"run_id\n{name}\n"
        for name in ("../../x", "/etc", "", ".", "..", "a/b", "~", "-x", "a b", "x" * 300, "a\0b", "é")
    ),
    *("run_id\nx\nx\n", "run_id\n" + "x\n" * 100_000, "run_id", "", "arch\ncnn\n", '"', 'run_id\n"a\nb"\n', "\0"),
    *("run_id,run_id\nx,../x\n", "a,run_id\nx\n", "run_id\n\x1b[2J\n", "run_id\n" + "x" * 200_000),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: ascii(plan[:25]))
@pytest.mark.parametrize("command", slow_unless(("status", "train"), COMMANDS))
def test_a_plan_that_launch_did_not_write_leads_nowhere(
    command: str, plan: str, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "runs" / "good"
    path.mkdir(parents=True)
    for outside in (workspace / "x", workspace / "runs" / "x"):
        outside.mkdir()
    (path / "plan.csv").write_text(plan, newline="")
    before = snapshot_tree(workspace)
    end, lines = capture_command(lambda: COMMANDS[command](path), capfd)
    assert len(lines) <= 1 and all(line.isprintable() for line in lines)
    assert snapshot_tree(workspace) == before and end in (0, 1, 2)


@settings(FUZZ_SETTINGS, max_examples=num_examples(300))
@given(name=st.text(max_size=30) | st.sampled_from(["../x", "/x", ".", "..", "x/../../y", "x\0", "good", "\ud800"]))
def test_a_planned_run_is_a_directory_beside_its_plan_or_refused(name: str, workspace: Path) -> None:
    path = workspace / "runs" / "good"
    path.mkdir(parents=True, exist_ok=True)
    (path / "plan.csv").write_bytes(b"run_id\n" + name.encode("utf-8", "surrogatepass") + b"\n")
    try:
        runs = find_runs(path)
    except RunDirError as error:
        assert str(error).isprintable()
        return
    assert all(run.path.parent == path.resolve() and run.path.name not in ("", ".", "..") for run in runs)


@pytest.mark.parametrize(
    ("name", "command"),
    slow_unless(
        [("", "train"), ("checkpoints", "train"), ("report", "aggregate")],
        [(name, command) for name in ("", "checkpoints", "report") for command in COMMANDS],
    ),
)
def test_a_link_that_leads_out_of_the_sweep_is_not_followed(
    name: str, command: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = sweep / "report" if name == "report" else run_in(sweep).path / name
    outside = sweep.parents[1] / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = snapshot_tree(outside)
    capture_command(lambda: COMMANDS[command](sweep), capfd)
    assert snapshot_tree(outside) == before


FILES = ["config.json", "events.jsonl", "metrics.jsonl", "best.pt", "results.csv", "predictions.h5", "provenance.json"]


@pytest.mark.parametrize(
    "name",
    slow_unless(
        ("best.pt", "results.csv", "events.jsonl", ".lock-0"),
        [*FILES, "log", ".lock-0", "../split.csv", "../plan.csv", "../sweep.yaml"],
    ),
)
def test_a_file_that_is_a_link_is_replaced_or_refused_but_never_written_through(
    name: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(sweep)
    target = sweep.parents[1] / "outside"
    target.write_text("dear")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    run.best_file.unlink(missing_ok=True)
    for command in ("train", "evaluate", "status"):
        capture_command(lambda command=command: COMMANDS[command](run.path), capfd)  # type: ignore[misc]
    assert target.read_text() == "dear"


JUNK = {
    "empty": b"",
    "zeros": bytes(5000),
    "every byte": bytes(range(256)) * 20,
    "null": b"null",
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a huge number": b'{"model": ' + b"9" * 100_000 + b"}",
    "other types": b'{"model": [], "data": 1, "train": null}',
    "lone surrogates": b'{"model": "\\ud800", "\\ud800": 1}',
    "terminal control characters": b'{"\\u001b[2J": "\\u001b[2J"}\n\x1b[2J',
    "text": "Ünïcödé\n".encode() * 3,
    "latin": b"caf\xe9",
}


TEXTS = FILES[:3]  # the others are not JSON, so that any bytes serve


@pytest.mark.parametrize(
    ("name", "junk"),
    slow_unless(
        [(name, "every byte") for name in FILES[3:]] + [(name, "deep") for name in TEXTS],
        [(name, junk) for name in (*FILES, "../split.csv") for junk in (JUNK if name in TEXTS else list(JUNK)[:3])],
    ),
)
def test_a_corrupt_file_is_reported_in_a_line_or_ignored(
    name: str, junk: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(sweep)
    (run.path / name).write_bytes(JUNK[junk])
    for command in ("status", "evaluate", "train"):
        _, lines = capture_command(lambda command=command: COMMANDS[command](run.path), capfd)  # type: ignore[misc]
        assert len(lines) <= 2 and all(line.isprintable() for line in lines), lines
    collect.collect_run(run)


@pytest.mark.parametrize(
    ("kind", "name"),
    slow_unless(
        [("absent", "config.json"), ("absent", "../report"), ("a directory", "best.pt"), ("a file", "checkpoints")],
        [
            (kind, name)
            for kind in ("absent", "a directory", "a file")
            for name in (*FILES[:6], "checkpoints", "../split.csv", "../plan.csv", "../report")
        ],
    ),
)
def test_a_missing_file_or_directory_is_reported_in_a_line(
    name: str, kind: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(sweep)
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "a directory":
        (path / "inside").mkdir(parents=True)
    elif kind == "a file":
        path.write_bytes(b"x")
    for command in COMMANDS if name.startswith("../") else ("status", "fsck", "train", "evaluate"):
        _, lines = capture_command(lambda command=command: COMMANDS[command](sweep), capfd)  # type: ignore[misc]
        assert len(lines) <= 3 or command == "fsck", lines


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = ["submitting", "submitted", "started", "epoch", "stopped", "failed", "trained", "evaluating", "evaluated"]
NAMES += ["evaluation submitted", "cancelled", "retried", "nonsense"]
FIELDS = ["time", "job", "token", "executor", "epoch", "step", "world", "pid", "nodes", "seconds", "images", "why"]
FIELDS += ["rank", "cause", "trace", "micro_batch", "exclude", "host", "device"]
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(NAMES) | VALUES, "time": st.floats(0, 2e9) | VALUES},
    optional=dict.fromkeys(FIELDS[1:], VALUES | st.integers(0, 9) | st.sampled_from(["12_3.0", "12_3", "slurm"])),
)
RECORDS = st.fixed_dictionaries(
    {"epoch": st.integers(0, 9) | VALUES, "validation_accuracy": st.floats(0, 1) | VALUES},
    optional={"train_loss": VALUES, "validation_loss": VALUES, "step": VALUES, "learning_rate": VALUES},
)


def lines_of(values: list[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@settings(FUZZ_SETTINGS, max_examples=num_examples(80))
@given(events=st.lists(EVENTS | VALUES, max_size=6), records=st.lists(RECORDS | VALUES, max_size=4))
@example(events=[{"event": []}, {"event": "started", "job": None, "time": "x"}], records=[{"epoch": 0}])
@example(events=[{"event": "failed", "why": "\ud800\x1b[2J", "time": 1.0, "trace": "\x1b[2J"}], records=[{}, 10**400])
@example(events=[{"event": "retried", "time": 1, "micro_batch": 1, "exclude": ["a\n#SBATCH --x"]}], records=[])
@example(events=[{"event": "submitted", "time": 1e300, "job": ["x"]}, {"event": "epoch", "time": 1}], records=[])
def test_lines_of_any_json_are_events_or_skipped(
    events: list[Any], records: list[Any], finished: Path, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "runs" / "lines"
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_in(finished).config_file, path)
    run = RunDir(path)
    run.events_file.write_text(lines_of(events))
    run.metrics_file.write_text(lines_of(records))
    assert isinstance(read_state(run).reason, str)
    run.load_config()
    capture_command(lambda: status.main([str(path)]), capfd)
    capture_command(lambda: status.main([str(path), "--why"]), capfd)


COLUMN = st.sampled_from(["", "1", "-1", "9" * 400, "nan", "inf", "1e400", "x", "\0", " ".join("1" * 100), "True"])


@settings(FUZZ_SETTINGS, max_examples=num_examples(80))
@given(
    cells=st.dictionaries(st.integers(0, len(results.COLUMNS) - 1), COLUMN | st.text(max_size=5), max_size=4),
    twice=st.booleans(),
)
def test_a_table_of_results_with_any_cells_is_read_or_ignored(
    cells: dict[int, str], twice: bool, finished: Path, workspace: Path
) -> None:
    source = run_in(finished)
    run = RunDir(workspace / "runs" / source.run_id)
    shutil.copytree(source.path, run.path, dirs_exist_ok=True)
    head, row = source.results_file.read_text().splitlines()
    parts = row.split(",")
    for column, text in cells.items():
        parts[column] = text
    text = "\n".join([head, *[",".join(parts)] * (1 + twice)])
    run.results_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    table = results.read_counts(run)
    if table is not None:
        collect.collect_run(run)
        results.load(run)


@pytest.mark.parametrize("at", slow_unless(range(0, 1000, 200), range(0, 1000, 40)))
def test_predictions_with_any_byte_changed_are_read_or_ignored(at: int, sweep: Path) -> None:
    run = run_in(sweep)
    content = bytearray(run.predictions_file.read_bytes())
    content[at * len(content) // 1000] ^= 0xFF
    run.predictions_file.write_bytes(content)
    results.load(run)


def test_an_array_that_would_fill_the_memory_is_not_read(sweep: Path) -> None:
    run = run_in(sweep)
    with h5py.File(run.predictions_file, "a") as file:
        del file["logits"]
        file.create_dataset("logits", shape=(10**6, 10**6, 10), dtype="f4", chunks=(1, 1000, 10))
    assert results.load(run) is None


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_evil_pickle_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["best.pt", "state.pt"])
def test_nothing_is_executed_from_a_runs_directory(
    name: str, zipped: bool, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    run, executed = run_in(sweep), sweep / "executed"
    newest = max(run.checkpoint_dir.iterdir())
    file = run.best_file if name == "best.pt" else newest / name
    evil = {"model": Evil(executed), "optimizer": Evil(executed), "progress": Evil(executed), "best": Evil(executed)}
    if zipped:
        torch.save(evil, file)
    else:
        file.write_bytes(pickle.dumps(evil, protocol=2))
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    manifest |= {"sha256": sha256(newest / "state.pt"), "bytes": (newest / "state.pt").stat().st_size}
    (newest / "MANIFEST.json").write_text(json.dumps(manifest))
    run.results_file.unlink()
    if name == "state.pt":
        run.best_file.unlink()
    for command in COMMANDS.values():
        capture_command(lambda command=command: command(run.path), capfd)  # type: ignore[misc]
    assert not executed.exists()
    end, lines = capture_command(lambda: (evaluate_run if name == "best.pt" else train_run)(run.path), capfd)
    assert end == 1 and len(lines) == 1 and str(file.parent) in lines[0]


def test_repro_sh_imports_nothing_from_the_directory_it_is_called_in(sweep: Path) -> None:
    run = run_in(sweep)
    for module in ("json", "galaxyhpc", "jobs", "submitit", "sitecustomize"):
        (run.path / f"{module}.py").write_text("open('executed', 'w')\nraise SystemExit\n")
    run.config_file.unlink()  # so that it ends before torch is loaded
    answer = subprocess.run(["sh", "repro.sh"], cwd=run.path, capture_output=True, text=True)
    assert answer.returncode == 2 and "got neither config.json nor plan.csv" in answer.stderr, answer.stderr
    assert not (run.path / "executed").exists()


@pytest.fixture(autouse=True)
def _no_bytecode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
