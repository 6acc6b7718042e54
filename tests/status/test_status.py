"""Status from the records of runs and one answer of Slurm, as the command shows it.

Slurm's commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import (
    HOSTNAME,
    FakeSlurm,
    make_learning_curve,
    make_run,
    record_epochs,
    record_event,
    record_start,
    record_submission,
    write_sweep_plan,
)

from galaxyhpc.runtime.console import make_console
from galaxyhpc.status.__main__ import main
from galaxyhpc.status.run_status import derive_status, read_run_records
from galaxyhpc.status.table import make_table, make_table_from_records
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import RunSelectionError, select_run

PROJECT = Path(__file__).parents[2]


def status(path: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(path), *more]) == 0
    return capsys.readouterr().out


def row(text: str, run: RunDir) -> str:
    return next(line for line in text.splitlines() if line.startswith(run.run_id))


def snapshot_tree(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """Times and bytes of all files and directories."""
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_ctime_ns, file.read_bytes() if file.is_file() else b"")
        for file in [path, *path.rglob("*")]
    }


@pytest.mark.parametrize("commands", ["that fail", "none at all"])
def test_with_slurm_down_the_records_alone_decide_and_nothing_changes(
    commands: str,
    tmp_path: Path,
    answers: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if commands == "none at all":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    running, waiting = make_run(tmp_path / "s"), make_run(tmp_path / "s", 1)
    sweep = write_sweep_plan(running, waiting)
    record_submission(running, "7_0")
    record_submission(waiting, "7_1")
    record_start(running, "7_0")
    record_epochs(running, make_learning_curve(10))
    (running.path / ".lock-0").touch()
    before = snapshot_tree(sweep)
    text = status(sweep, capsys=capsys)
    assert "1 running, 1 submitted" in text and "10/20" in row(text, running)
    assert "Slurm does not answer: read from the run directories alone" in text and "lost" not in text
    status(sweep, "--why", running.run_id, capsys=capsys)
    status(sweep, "--logs", running.run_id, capsys=capsys)
    assert snapshot_tree(sweep) == before


def test_one_query_distinguishes_waiting_running_and_lost_runs(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, starting, running, lost, evaluating, orphan = (make_run(tmp_path / "s", seed) for seed in range(6))
    sweep = write_sweep_plan(waiting, starting, running, lost, evaluating, orphan)
    for place, run in enumerate((waiting, starting, running, lost, evaluating, orphan)):
        record_submission(run, f"7_{place}")
        record_event(run, "evaluation submitted", job=f"8_{place}", executor="slurm", token="t")
        if run in (running, lost, evaluating, orphan):
            record_start(run, f"7_{place}")
        if run in (evaluating, orphan):
            record_event(run, "trained", epochs=20)
    rows = ["7_0|PENDING|Priority||t", "7_1|RUNNING|None|node3|t", "7_2|RUNNING|None|node4|t"]
    calls = answers([*rows, "8_4|RUNNING|None|node2|t", "8_0|PENDING|Dependency||t"])
    text = status(sweep, capsys=capsys)
    for run, name in {waiting: "waiting", starting: "starting", running: "running", evaluating: "evaluating"}.items():
        assert f" {name} " in row(text, run)
    assert "Priority" in row(text, waiting) and "node4" in row(text, running)
    assert row(text, lost).split()[1] == row(text, orphan).split()[1] == "lost"
    assert "job 7_3 is no longer in Slurm's queue" in text and "launch the sweep again" in text
    assert "its evaluation job 8_5" in text.replace("\n", " ")
    assert calls.read_text() == "squeue\nsqueue\nsacct\n"  # the last two ask how the lost jobs ended


def test_a_sweep_that_was_never_submitted_does_not_query_slurm_and_notices_its_dead_processes(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, elsewhere = make_run(tmp_path / "s"), make_run(tmp_path / "s", 1)
    calls = answers([])
    record_start(dead, "99", host=HOSTNAME)
    record_start(elsewhere, "98")
    for run in (dead, elsewhere):
        (run.path / ".lock-0").touch()
    text = status(write_sweep_plan(dead, elsewhere), capsys=capsys)
    assert row(text, dead).endswith(" lost") and row(text, elsewhere).endswith(" running")
    assert "its process 1 on this machine is gone" in text and not calls.exists()


def test_a_running_run_shows_its_progress_and_the_time_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    record_start(run, "7")
    record_epochs(run, [0.4, 0.3, 0.2], epoch_seconds=60.0)
    text = printed([run])
    assert "1 running" in text and "3/20" in text and "0.400" in text and "0:16:5" in text


def printed(runs: list[RunDir], width: int = 150) -> str:
    console = make_console()
    console.width = width
    with console.capture() as capture:
        console.print(make_table_from_records(runs, "runs/test"))
    return capture.get()


def test_a_reason_is_shown_verbatim_once_for_all_runs_that_share_it(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed) for seed in range(5)]
    for number, run in enumerate(runs):
        why = f"RuntimeError: [/pytorch/gloo/pair.cc:553] Connection {number} closed [by peer]"
        record_event(run, "failed", why=why, cause="error")
    text = printed(runs)
    assert text.count("[/pytorch/gloo/pair.cc:553] Connection 0 closed [by peer]") == 1
    assert "and 2 more" in text and "next: fix the cause in the traceback" in text


def test_hostile_records_make_no_traceback(tmp_path: Path) -> None:
    """One broken run does not hide the others."""
    good, broken, empty = make_run(tmp_path), make_run(tmp_path, 1), make_run(tmp_path, 2)
    write_text(broken.config_file, '{"train": [')
    for line in (
        '{"event": "started", "time": "soon", "epoch": [], "job": {}}',
        '{"event": ["x"]}',
        "[" * 9999,
        "{",
        "3",
    ):
        with broken.events_file.open("a") as file:
            file.write(line + "\n")
    with broken.events_file.open("ab") as file:
        file.write(b'\xff\x00{"event": "epoch", "seconds": NaN}\n{"event": "failed", "why": {"a": 1}, "cause": 7}\n')
    write_text(
        broken.metrics_file, '{"validation_accuracy": NaN}\n{"validation_accuracy": "x"}\n{"validation_accuracy": 0.4}'
    )
    write_text(empty.config_file, '{"train": {"epochs": "many"}}')
    record_event(empty, "submitted", job=["7"], token={})
    record_epochs(good, make_learning_curve(8))
    text = printed([good, broken, empty])
    assert "8/20" in row(text, good) and "1/?" in row(text, broken) and "planned" in row(text, empty)
    assert main([str(broken.path), "--why"]) == main([str(broken.path), "--logs"]) == 0


@pytest.mark.parametrize("width", [80, 100, 150])
def test_columns_are_whole_at_every_width(width: int, tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed, group="D16") for seed in range(3)]
    for run in runs:
        record_start(run, "7")
        record_epochs(run, make_learning_curve(12), epoch_seconds=3600.0)
    record_event(runs[2], "failed", why="OutOfMemoryError: " + "CUDA out of memory " * 20, cause="memory")
    lines = printed(runs, width).splitlines()
    assert all(len(line) <= width for line in lines)
    header, _, first, _, last = lines[2:7]
    assert header.split() == ["run", "state", "epochs", "best", "left", "note"]
    assert first.split()[1:4] == ["running", "12/20", f"{max(make_learning_curve(12)):.3f}"] and re.search(
        r"7:59:\d\d|8:00:00", first
    )
    assert last.split()[1:3] == ["failed", "12/20"] and last.rstrip().endswith("memory")


@pytest.mark.parametrize(("width", "is_shown"), [(80, True), (64, False)])
def test_the_balanced_accuracy_of_the_best_epoch_is_shown_where_there_is_room(
    width: int, is_shown: bool, tmp_path: Path
) -> None:
    run = make_run(tmp_path)
    record_start(run, "7")
    record_epochs(run, [0.5, 0.7, 0.6], balanced=[0.4, 0.45, 0.5])
    text = printed([run], width)
    assert ("balanced" in text.splitlines()[2], "0.450" in row(text, run)) == (is_shown, is_shown)
    assert "0.700" in row(text, run) and max(map(len, text.splitlines())) <= width


def test_alarms_are_in_the_table_and_explained_below(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_sweep_plan(run)
    record_epochs(run, [0.149] * 8, 2.29)
    text = printed([run], 80)
    assert row(text, run).endswith("at chance") and "most common class" not in row(text, run)
    assert "at chance: train loss 2.29 after 8 epochs" in text


def test_why_shows_the_last_error_the_history_and_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    record_submission(run, "7")
    record_start(run, "7")
    record_epochs(run, make_learning_curve(15))
    record_event(run, "failed", why="RuntimeError: Connection closed by peer", rank=1, cause="connection", trace="gloo")
    record_event(
        run,
        "failed",
        why="OutOfMemoryError: CUDA",
        rank=0,
        cause="memory",
        trace="Traceback\n  File x\nOutOfMemoryError",
    )
    text = status(run.path, "--why", capsys=capsys)
    assert "failed OutOfMemoryError: CUDA" in text and ", memory): OutOfMemoryError" in text and "  File x" in text
    assert "started on node1" in text and "15 epochs" in text and "gloo" not in text
    assert "halves the micro-batch" in text and f"galaxyhpc retry {tmp_path} {run.run_id}" in text


def test_why_without_a_recorded_error_shows_the_end_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    record_start(run, "99", host=HOSTNAME)
    write_text(run.log_dir / "99_0_log.out", "step 1\nstep 2\rstep 3\n\x1b[31mKilled\x1b[0m\n")
    text = status(run.path, "--why", capsys=capsys)
    assert "lost its process 1 on this machine is gone" in text
    assert "  step 3\n  Killed\n" in text and "step 2" not in text


def test_logs_shows_the_newest_of_all_ranks_and_of_no_other_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    record_submission(run, "7_1")
    record_submission(run, "9_1")
    for age, (name, text) in enumerate(
        {
            "9_1_1_log.out": "rank one",
            "9_1_0_log.out": "rank zero",
            "7_1_0_log.out": "old",
            "9_11_0_log.out": "other",
        }.items()
    ):
        write_text(run.sweep_dir / "log" / name, text)
        os.utime(run.sweep_dir / "log" / name, (1e9 - age, 1e9 - age))
    text = status(run.path, "--logs", capsys=capsys)
    assert text.index("rank zero") < text.index("rank one") and "old" not in text and "other" not in text
    assert "no log yet in" in status(make_run(tmp_path, 1).path, "--logs", capsys=capsys)


def test_a_run_is_named_by_its_id_or_an_unambiguous_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path, seed, group) for group in ("C4", "D4") for seed in range(2)]
    assert select_run(runs, "d4-steerable_cnn-s1") == runs[3]
    assert select_run(runs, runs[0].run_id) == runs[0]
    with pytest.raises(
        RunSelectionError, match=f"C4: matches 2 runs; expected one of {runs[0].run_id}, {runs[1].run_id}$"
    ):
        select_run(runs, "C4")
    assert main([str(write_sweep_plan(*runs)), "--why", "D9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("D9: matches no run; expected one of") and error.count("\n") == 1


def test_watch_in_a_pipe_prints_what_changes_until_it_is_interrupted(tmp_path: Path) -> None:
    run, other = make_run(tmp_path), make_run(tmp_path, 1)
    command = [sys.executable, "-m", "galaxyhpc.status", write_sweep_plan(run, other), "--watch"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(2)]
        assert all("planned" in line for line in lines)
        record_start(run, "7")
        assert watching.stdout.readline() == f"{run.run_id}: running\n"
        watching.send_signal(signal.SIGINT)
        assert watching.stdout.read() == "" and watching.wait(10) == 0


def test_a_view_of_few_rows_keeps_the_most_urgent_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed) for seed in range(9)]
    record_event(runs[7], "failed", why="x")
    record_start(runs[8], "7")
    view = make_table([derive_status(read_run_records(run), None) for run in runs], None, "runs/test", max_rows=2)
    console = make_console()
    with console.capture() as capture:
        console.print(view)
    text = capture.get()
    assert "and 7 more runs" in text and row(text, runs[7]) and row(text, runs[8]) and runs[0].run_id not in text


def test_a_thousand_runs_are_shown_without_loading_slow_modules(tmp_path: Path) -> None:
    groups = [f"{kind}{order}" for kind in "CD" for order in (2, 4, 8, 12, 16)]
    rates = [1e-3 * (1 + number) for number in range(10)]
    runs = [make_run(tmp_path, s, g, epochs=100, learning_rate=r) for r in rates for g in groups for s in range(10)]
    record_submission(runs[0], "7_0")
    record_event(runs[0], "evaluation submitted", job="8_0", executor="slurm", token="t")
    record_start(runs[0], "7_0")
    record_epochs(runs[0], make_learning_curve(90))
    for run in runs[1:]:
        run.events_file.write_bytes(runs[0].events_file.read_bytes())
        run.metrics_file.write_bytes(runs[0].metrics_file.read_bytes())
    slow = ("torch", "pandas", "numpy", "pydantic")  # submitit only where a run is in doubt
    code = "import sys; from galaxyhpc.status.__main__ import main; main(sys.argv[1:]); "
    code += f"print([name for name in {slow} if name in sys.modules])"
    command = [sys.executable, "-c", code, str(write_sweep_plan(*runs))]
    text = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert len(set(runs)) == 1000 and len(text.splitlines()) > 1000
    assert text.splitlines()[-1] == "[]"
