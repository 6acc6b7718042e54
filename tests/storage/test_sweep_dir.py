"""A sweep's directory: plan.csv, and the runs that a path or a pattern selects."""

from __future__ import annotations

from pathlib import Path

import pytest

from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import (
    RunSelectionError,
    find_runs,
    find_sweep_dir,
    read_plan,
    resolve_sweep_dir,
    select_run,
    select_runs,
)


def test_runs_are_found_by_a_sweeps_plan_or_by_their_own_directory(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.csv", "run_id,arch\nb,cnn\na,cnn\n")
    write_text(tmp_path / "a" / "config.json", "{}")
    assert [run.run_id for run in find_runs(tmp_path)] == ["b", "a"]
    assert [run.run_id for run in find_runs(tmp_path / "a")] == ["a"]
    with pytest.raises(RunDirError, match=r"got neither config\.json nor plan\.csv"):
        find_runs(tmp_path / "nowhere")


def test_the_plan_is_read_as_text_by_column_and_missing_cells_are_empty(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.csv", "run_id,scale,seed\nb,1.50,0\na\nc,1,2,3\n")
    assert read_plan(tmp_path) == [
        {"run_id": "b", "scale": "1.50", "seed": "0"},
        {"run_id": "a", "scale": "", "seed": ""},
        {"run_id": "c", "scale": "1", "seed": "2"},
    ]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("arch\ncnn\n", "plan.csv: got no column run_id; expected the file that launch wrote"),
        ("run_id\n../x\n", "plan.csv: run_id: got '../x'; expected a name such as C4-cnn-s0-0123abcd"),
        ("run_id\nx\nx\n", "plan.csv: run_id: got x twice; expected each run once"),
        ("run_id\n" + "x\n" * 100_000, "plan.csv: got more than 10,000 runs; expected at most 10,000"),
    ],
)
def test_a_plan_that_launch_did_not_write_is_refused_with_the_reason(plan: str, message: str, tmp_path: Path) -> None:
    write_text(tmp_path / "plan.csv", plan)
    with pytest.raises(RunDirError) as caught:
        read_plan(tmp_path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_a_symbolic_link_in_place_of_a_run_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "s" / "plan.csv", "run_id\na\n")
    (tmp_path / "s" / "a").symlink_to(tmp_path)
    with pytest.raises(RunDirError, match=r"a: got a symbolic link to .*; expected a directory"):
        find_runs(tmp_path / "s")


def test_slurm_could_not_write_its_logs_into_a_path_with_a_percent_sign(tmp_path: Path) -> None:
    assert resolve_sweep_dir(tmp_path / "a b", "s") == tmp_path / "a b" / "s"
    with pytest.raises(RunDirError, match=r"^--runs: got '%' in .*; expected a path without %"):
        resolve_sweep_dir(tmp_path / "50%", "s")


def test_runs_are_selected_by_part_of_their_ids_each_once_in_the_order_of_the_patterns() -> None:
    runs = [RunDir(Path(f"{group}-s{seed}")) for group in ("C4", "D4") for seed in range(5)]
    assert select_runs(runs, ["d4-s1", "C4-s0", "D4-s1"]) == [runs[6], runs[0]]
    with pytest.raises(RunSelectionError, match=r"^x: matches no run; expected one of C4-s0, .*, D4-s2 and 2 more$"):
        select_run(runs, "x")


def test_an_id_that_is_part_of_another_one_selects_its_own_run() -> None:
    runs = [RunDir(Path(name)) for name in ("C4-s1", "C4-s10")]
    assert select_run(runs, "C4-s1") == runs[0]


def test_the_sweep_of_a_run_is_its_parent(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "config.json", "{}")
    assert find_sweep_dir(tmp_path / "a") == find_sweep_dir(tmp_path) == tmp_path.resolve()
