"""Whatever is in a sweep file or a run's directory: a status of 0, 1 or 2, clear lines, nothing written elsewhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from galaxyhpc import aggregate, fsck, launch, planned, results, status
from galaxyhpc.checkpoint import sha256
from galaxyhpc.rundir import NoRunError, RunDir, runs_of, state
from galaxyhpc.sweep import load_sweep

PROJECT = Path(__file__).parents[1]
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
FUZZED = settings(deadline=None, suppress_health_check=QUIET, derandomize=True)

GOOD: dict[str, Any] = {
    "name": "good",
    "base": {
        "data": {"source": "demo", "image_size": 33, "demo": {"galaxies": 300, "size": 32}},
        "model": {"scale": 0.1},
        "train": {"epochs": 1, "batch_size": 50},
        "evaluate": {"conditions": ["clean"]},
        "resources": {"partition": "main", "setup": ["true"], "memory_gb": 2.0},
    },
    "blocks": [{"points": [{"model.architecture": "cnn"}]}],
    "exclude": [],
    "seeds": [0],
    "resources": [{"when": {"model.architecture": "cnn"}, "set": {"time_minutes": 30}}],
}


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Everything below a directory, with sizes and times."""
    found = {str(p): p.lstat() for p in path.rglob("*") if not p.is_dir() or p.is_symlink()}
    return {name: (about.st_size, about.st_mtime_ns) for name, about in found.items()}


def status_of(call: Callable[[], Any]) -> int:
    """Return the exit status; any exception but an exit is one too many."""
    try:
        return int(call() or 0)
    except SystemExit as end:
        return int(end.code or 0)


Said = tuple[int, list[str]]


def told(call: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> Said:
    """Return the exit status and what was printed: text a terminal takes, and no traceback."""
    capfd.readouterr()
    end = status_of(call)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and "\x1b" not in out + err, out + err
    assert end in (0, 1, 2) and (end == 0 or out + err), (end, out, err)
    return end, err.splitlines()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with room around it to escape to."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def dry_run(*options: str) -> int:
    return launch.main(["sweep.yaml", "--executor", "debug", "--dry-run", *options])


def check_dry_run(desk: Path, content: bytes, capfd: pytest.CaptureFixture[str], *options: str) -> Said:
    """Show a sweep's plan: nothing is written, whatever is in it."""
    (desk / "work" / "sweep.yaml").write_bytes(content)
    before = tree(desk)
    end, lines = told(lambda: dry_run(*options), capfd)
    assert tree(desk) == before
    return end, lines


# Sweep files

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 8)}]\n" for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{last}'] * 9)}]}}\n"
    for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
C4 = "blocks: [{points: [{model.group: C4}]}]\n"
GRID = ", ".join(f"train.{name}: {list(range(1, 1001))}" for name in ("epochs", "batch_size", "early_stopping"))


@pytest.mark.parametrize(
    "content",
    [
        *(BOMB, MERGES, "a: &a [*a]", "a: &a {<<: *a}", "? [a, b]\n: 1", "- 1", "name: [", "%YAML 9.9\n---\na: 1"),
        *("[" * 5000, "{a: " * 5000, "- " * 5000, "a:\n" + "".join(" " * n + "b:\n" for n in range(1, 2000))),
        *(f"x: !!{tag}" for tag in ("python/object/apply:os.system [id]", "python/name:os.system", "binary a=", "set")),
        *("!!python/object/new:type {}", "--- 1\n--- 2", "a: 1\na: 2", "blocks: 2020-01-01", "a: 1_000", "a: 0x10"),
        *(C4 + f"seeds: {seeds}" for seeds in ("1000000000", "9" * 4000, "[9999999999]", "-1", ".inf", "[[0]]", "1e9")),
        *(C4 + f"name: {name}" for name in ("../x", "/etc/x", "~", "..", ".x", '"a\\nb"', '"a\\0b"', "a/b", "x" * 101)),
        f"blocks: [{{grid: {{{GRID}}}}}]",
        C4 + f"base: {{{', '.join(f'train.epochs{n}: 1' for n in range(2_000))}}}",
        C4 + 'base: {data: {source: "${PATH}\\0"}}',
        "\0",
        "a\x00b: 1",
        "\x85\u2028\ufeff",
        "a: \x1b[2J",
        b"\xff\xfe" + C4.encode("utf-16-le"),
        C4.encode("utf-32"),
        b"\xed\xa0\x80: 1",
        b"\x80\x81",
        b"",
        bytes(range(256)),
    ],
    ids=lambda content: ascii(content[:30]),
)
def test_a_hostile_sweep_file_is_refused_with_its_place_soon_and_with_little_memory(
    content: str | bytes, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, lines = check_dry_run(desk, content if isinstance(content, bytes) else content.encode(), capfd)
    assert end == 2 and all(line.startswith("sweep.yaml:") and line.isprintable() for line in lines), lines[:3]
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_byte_order_mark_and_a_merge_are_no_harm(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_dump(GOOD).replace("base:", "base:\n  <<: {augment.flip: 0.1}", 1)
    assert check_dry_run(desk, b"\xef\xbb\xbf" + text.encode(), capfd) == (0, [])


PATHS = ["~nobody-of-this-name/x", "a\0b", "\ud800", "a\nb", "loop", "loop/x", "pipe", "x" * 300, "/dev/null/x", ""]


@pytest.fixture
def traps(desk: Path) -> Path:
    (desk / "work" / "loop").symlink_to("loop")
    os.mkfifo(desk / "work" / "pipe")
    return desk


@pytest.mark.parametrize("path", [*PATHS, "../../x", "/proc/self/mem", "/", ".", "~", "/etc/passwd", "${X:-$(id)}"])
@pytest.mark.parametrize("key", ["data.source", "data.cache"])
def test_a_hostile_path_in_a_sweep_is_refused_or_only_shown(
    key: str, path: str, traps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = {**GOOD, "base": {**GOOD["base"], key: path}}
    if key == "data.source":
        del sweep["base"]["data"], sweep["base"][key]
        sweep["base"]["data"] = {**GOOD["base"]["data"], "source": path}
    end, _ = check_dry_run(traps, json.dumps(sweep).encode(), capfd)
    assert end == 2 or key == "data.cache"


@pytest.mark.parametrize(
    ("option", "path"),
    [
        (option, path)
        for option in ("--runs", "--profile")
        for path in PATHS
        if path and (option, path) != ("--profile", "pipe")  # which may be a profile that is still being written
    ],
)
def test_a_hostile_path_on_the_command_line_is_refused_or_only_shown(
    option: str, path: str, traps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_dry_run(traps, json.dumps(GOOD).encode(), capfd, option, path)


@pytest.mark.parametrize(
    "text",
    [
        *("data.image_size=64001", f"data.image_size={10**300}", f"train.epochs={10**99}", "train.epochs=1e400"),
        *("resources.memory_gb=1e308", "resources.memory_gb=1e-300", "model.scale=.nan", "seeds=1000000000"),
        *("resources.partition='a b'", 'resources.partition="a\\n#SBATCH --wrap=id"', "resources.account='#'"),
        *('resources.setup=["\\0"]', 'resources.qos="\\ud800"', "evaluate.conditions=[clean, clean]", "name=../x"),
        *("\0=1", "=", "\ud800=\ud800", "a=!!python/name:os.system", "x=" + "[" * 3000, "data={source: {}}"),
        *(f"data.demo.galaxies={10**13}", f"data.demo.seed={10**200}", f"resources.nodes={10**10}", "__class__=1"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_a_hostile_setting_on_the_command_line_is_told_as_such(
    text: str, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end, lines = check_dry_run(desk, json.dumps(GOOD).encode(), capfd, "--set", text)
    assert end == 2 and all(line.startswith("--set: ") for line in lines), lines


HOSTILE = st.sampled_from(
    [
        *(None, True, -1, 0, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "~", "../../x", "/etc/passwd"),
        *("a\nb", "\0", "\x1b[2J", "${HOME}", "${", "<<", "2020-01-01", "C64", "D65", "x" * 5000, [], {}, [[[[]]]]),
        *({"a": {"b": [{}]}}, ["C4"] * 300, list(range(3000)), "\u2028", "$(touch x)", "C4\n", "é" * 300),
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good sweep with up to three of its nodes dropped, doubled or replaced."""
    sweep = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        at: Any = sweep
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 2)):
                at = at[key]
                continue
            match draw(st.sampled_from(["drop", "double", "replace", "replace", "new"])):
                case "drop":
                    del at[key]
                case "double" if isinstance(at, list):
                    at.append(at[key])
                case "new" if isinstance(at, dict):
                    at[draw(st.text(max_size=5))] = draw(HOSTILE)
                case _:
                    at[key] = draw(HOSTILE)
            break
    return sweep


@settings(FUZZED, max_examples=80)
@given(sweep=mutated())
def test_a_good_sweep_with_some_nodes_spoilt_is_a_plan_or_lines_with_their_place(
    sweep: Any, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end, lines = check_dry_run(desk, json.dumps(sweep).encode(), capfd)
    assert end in (0, 2) and (end == 0 or lines)


@settings(FUZZED, max_examples=80)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_told_with_their_place(content: bytes, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    end, lines = check_dry_run(desk, content, capfd)
    assert end == 2 and all(line.startswith("sweep.yaml:") and line.isprintable() for line in lines)


@pytest.mark.parametrize("link", ["the sweep", "a run"])
def test_a_sweep_is_not_launched_through_a_link_that_leads_elsewhere(
    link: str, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (desk / "work" / "sweep.yaml").write_text(json.dumps(GOOD))
    place = desk / "work" / "runs" / "good"
    place = place / load_sweep(Path("sweep.yaml")).runs[0].run_id if link == "a run" else place
    place.parent.mkdir(parents=True)
    (desk / "elsewhere").mkdir()
    place.symlink_to(desk / "elsewhere")
    end, lines = told(lambda: launch.main(["sweep.yaml", "--executor", "debug"]), capfd)
    assert end == 2 and len(lines) == 1 and "symbolic link" in lines[0]
    assert not list((desk / "elsewhere").iterdir()) and not (desk / "work" / "runs" / ".cache").exists()


@pytest.mark.parametrize("name", ["50%j", "a\\b", "a\nb", "caf\udce9"])
def test_a_place_where_slurm_could_not_write_its_logs_is_refused_before_anything_is_written(
    name: str, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (desk / "work" / "sweep.yaml").write_text(json.dumps(GOOD))
    before = tree(desk)
    end, lines = told(lambda: launch.main(["sweep.yaml", "--executor", "debug", "--runs", name]), capfd)
    assert end == 2 and len(lines) == 1 and lines[0].startswith("--runs: found") and lines[0].isprintable()
    assert tree(desk) == before


# Directories of runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one run that was trained and measured."""
    place = tmp_path_factory.mktemp("finished")
    (place / "sweep.yaml").write_text(json.dumps(GOOD))
    arguments = [str(place / "sweep.yaml"), "--executor", "debug", "--runs", str(place / "runs")]
    assert launch.main(arguments) == 0
    return place / "runs" / "good"


@pytest.fixture
def sweep(finished: Path, desk: Path) -> Path:
    """A copy of that sweep."""
    shutil.copytree(finished, desk / "runs" / "good")
    return desk / "runs" / "good"


def run_in(sweep: Path) -> RunDir:
    (run,) = runs_of(sweep)
    return run


def training(path: Path) -> int:
    return run_module("train", str(path))


def evaluating(path: Path) -> int:
    return run_module("evaluate", str(path))


def run_module(name: str, *arguments: str) -> int:
    """Do what `python -m jobs.NAME` does, here: a process of its own would take seconds."""
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
    "train": training,
    "evaluate": evaluating,
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
@pytest.mark.parametrize("command", COMMANDS)
def test_a_plan_that_launch_did_not_write_leads_nowhere(
    command: str, plan: str, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = desk / "runs" / "good"
    place.mkdir(parents=True)
    for outside in (desk / "x", desk / "runs" / "x"):
        outside.mkdir()
    (place / "plan.csv").write_text(plan, newline="")
    before = tree(desk)
    end, lines = told(lambda: COMMANDS[command](place), capfd)
    assert len(lines) <= 1 and all(line.isprintable() for line in lines)
    assert tree(desk) == before and end in (0, 1, 2)


@settings(FUZZED, max_examples=300)
@given(name=st.text(max_size=30) | st.sampled_from(["../x", "/x", ".", "..", "x/../../y", "x\0", "good", "\ud800"]))
def test_a_planned_run_is_a_directory_beside_its_plan_or_refused(name: str, desk: Path) -> None:
    place = desk / "runs" / "good"
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.csv").write_bytes(b"run_id\n" + name.encode("utf-8", "surrogatepass") + b"\n")
    try:
        found = runs_of(place)
    except NoRunError as error:
        assert str(error).isprintable()
        return
    assert all(run.path.parent == place.resolve() and run.path.name not in ("", ".", "..") for run in found)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["", "checkpoints", "report"])
def test_a_link_that_leads_out_of_the_sweep_is_not_followed(
    name: str, command: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = sweep / "report" if name == "report" else run_in(sweep).path / name
    outside = sweep.parents[1] / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    before = tree(outside)
    told(lambda: COMMANDS[command](sweep), capfd)
    assert tree(outside) == before


FILES = ["config.json", "events.jsonl", "metrics.jsonl", "best.pt", "results.csv", "predictions.h5", "provenance.json"]


@pytest.mark.parametrize("name", [*FILES, "log", ".lock-0", "../split.csv", "../plan.csv", "../sweep.yaml"])
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
        told(lambda command=command: COMMANDS[command](run.path), capfd)  # type: ignore[misc]
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
    "a terminal's orders": b'{"\\u001b[2J": "\\u001b[2J"}\n\x1b[2J',
    "text": "Ünïcödé\n".encode() * 3,
    "latin": b"caf\xe9",
}


TEXTS = FILES[:3]  # the others hold no JSON, and its kinds are as good as bytes there


@pytest.mark.parametrize(
    ("name", "junk"),
    [(name, junk) for name in (*FILES, "../split.csv") for junk in (JUNK if name in TEXTS else list(JUNK)[:3])],
)
def test_junk_in_place_of_a_file_is_told_in_a_line_or_taken_for_absent(
    name: str, junk: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(sweep)
    (run.path / name).write_bytes(JUNK[junk])
    for command in ("status", "evaluate", "train"):
        _, lines = told(lambda command=command: COMMANDS[command](run.path), capfd)  # type: ignore[misc]
        assert len(lines) <= 2 and all(line.isprintable() for line in lines), lines
    planned.find(run)


@pytest.mark.parametrize("name", [*FILES[:6], "checkpoints", "../split.csv", "../plan.csv", "../report"])
@pytest.mark.parametrize("kind", ["absent", "a directory", "a file"])
def test_what_is_absent_or_of_another_kind_is_told_in_a_line(
    name: str, kind: str, sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(sweep)
    place = run.path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    if kind == "a directory":
        (place / "inside").mkdir(parents=True)
    elif kind == "a file":
        place.write_bytes(b"x")
    for command in COMMANDS if name.startswith("../") else ("status", "fsck", "train", "evaluate"):
        _, lines = told(lambda command=command: COMMANDS[command](sweep), capfd)  # type: ignore[misc]
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


@settings(FUZZED, max_examples=80)
@given(events=st.lists(EVENTS | VALUES, max_size=6), records=st.lists(RECORDS | VALUES, max_size=4))
@example(events=[{"event": []}, {"event": "started", "job": None, "time": "x"}], records=[{"epoch": 0}])
@example(events=[{"event": "failed", "why": "\ud800\x1b[2J", "time": 1.0, "trace": "\x1b[2J"}], records=[{}, 10**400])
@example(events=[{"event": "retried", "time": 1, "micro_batch": 1, "exclude": ["a\n#SBATCH --x"]}], records=[])
@example(events=[{"event": "submitted", "time": 1e300, "job": ["x"]}, {"event": "epoch", "time": 1}], records=[])
def test_lines_of_any_json_are_events_or_skipped(
    events: list[Any], records: list[Any], finished: Path, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = desk / "runs" / "lines"
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_in(finished).config_file, path)
    run = RunDir(path)
    run.events_file.write_text(lines_of(events))
    run.metrics_file.write_text(lines_of(records))
    assert isinstance(state(run).why, str)
    run.amended(run.load_config().resources.plain)
    told(lambda: status.main([str(path)]), capfd)
    told(lambda: status.main([str(path), "--why"]), capfd)


COLUMN = st.sampled_from(["", "1", "-1", "9" * 400, "nan", "inf", "1e400", "x", "\0", " ".join("1" * 100), "True"])


@settings(FUZZED, max_examples=80)
@given(cells=st.dictionaries(st.integers(0, 11), COLUMN | st.text(max_size=5), max_size=4), twice=st.booleans())
def test_a_table_of_results_with_any_cells_is_counts_or_absent(
    cells: dict[int, str], twice: bool, finished: Path, desk: Path
) -> None:
    source = run_in(finished)
    run = RunDir(desk / "runs" / source.run_id)
    shutil.copytree(source.path, run.path, dirs_exist_ok=True)
    head, row = source.results_file.read_text().splitlines()
    parts = row.split(",")
    for column, text in cells.items():
        parts[column] = text
    text = "\n".join([head, *[",".join(parts)] * (1 + twice)])
    run.results_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    table = results.read_counts(run)
    if table is not None:
        planned.find(run)
        results.load(run)


@pytest.mark.parametrize("at", range(0, 1000, 40))
def test_predictions_with_any_byte_changed_are_predictions_or_absent(at: int, sweep: Path) -> None:
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
    newest = max(run.checkpoints.iterdir())
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
        told(lambda command=command: command(run.path), capfd)  # type: ignore[misc]
    assert not executed.exists()
    end, lines = told(lambda: (evaluating if name == "best.pt" else training)(run.path), capfd)
    assert end == 1 and len(lines) == 1 and str(file.parent) in lines[0]


def test_repro_sh_imports_nothing_from_the_directory_it_is_called_in(sweep: Path) -> None:
    run = run_in(sweep)
    for module in ("json", "galaxyhpc", "jobs", "submitit", "sitecustomize"):
        (run.path / f"{module}.py").write_text("open('executed', 'w')\nraise SystemExit\n")
    run.config_file.unlink()  # so that it ends before torch is loaded
    answer = subprocess.run(["sh", "repro.sh"], cwd=run.path, capture_output=True, text=True)
    assert answer.returncode == 2 and "found neither config.json nor plan.csv" in answer.stderr, answer.stderr
    assert not (run.path / "executed").exists()


@pytest.fixture(autouse=True)
def _no_bytecode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
