"""Alarms name runs in trouble; healthy runs raise none."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from helpers.runs import make_learning_curve, make_run, record_epochs, record_event, record_start, write_sweep_plan

from galaxyhpc.status.alarms import find_alarms
from galaxyhpc.status.run_status import derive_status, read_run_records
from galaxyhpc.storage.run_dir import RunDir


def raised(runs: list[RunDir], now: float | None = None) -> dict[str, list[str]]:
    """Alarms by run id, the short names only."""
    alarms = find_alarms([derive_status(read_run_records(run), None) for run in runs], now)
    return {run.run_id: [text.partition(":")[0] for text in texts] for run, texts in alarms.items()}


def test_healthy_runs_raise_no_alarm(tmp_path: Path) -> None:
    """Different networks, seeds that differ as seeds do, at all stages; a slow beginner among them."""
    runs = []
    for group, top in (("C1", 0.55), ("C4", 0.7), ("D8", 0.8)):
        for seed in range(6):
            run = make_run(tmp_path, seed, group)
            record_start(run, str(seed))
            record_epochs(run, make_learning_curve(3 + 3 * seed, top + random.Random(seed).gauss(0, 0.02), seed))
            runs.append(run)
    beginner = make_run(tmp_path, 7, "C2")
    record_epochs(beginner, [0.15, 0.16, 0.18, 0.21, 0.22, 0.24])
    write_sweep_plan(*runs, beginner)
    assert raised([*runs, beginner]) == {}


@pytest.mark.parametrize(
    ("accuracy", "loss", "alarms"),
    [
        (0.149, 2.19, ["at chance"]),  # always the most common class
        (0.60, 2.29, ["at chance"]),  # the loss alone
        (0.30, 1.90, []),
    ],
)
def test_a_run_that_learned_nothing_after_several_epochs_is_named(
    accuracy: float, loss: float, alarms: list[str], tmp_path: Path
) -> None:
    run = make_run(tmp_path)
    write_sweep_plan(run)
    record_epochs(run, [accuracy] * 8, loss)
    assert raised([run]).get(run.run_id, []) == alarms
    record_epochs(run, [accuracy] * 3, loss)
    assert raised([run]) == {}
    slow = make_run(tmp_path, epochs=20, warmup=0.5)
    record_epochs(slow, [accuracy] * 8, loss)
    assert raised([slow]) == {}, "its learning rate still rises"


def test_a_seed_far_from_at_least_three_siblings_is_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed) for seed in range(4)]
    other = make_run(tmp_path, 0, "C1")
    write_sweep_plan(*runs, other)
    for seed, run in enumerate([*runs, other]):
        record_epochs(run, make_learning_curve(10, 0.4 if run in (runs[1], other) else 0.7, seed))
    assert raised([*runs, other]) == {runs[1].run_id: ["unlike seeds"]}
    assert raised([*runs[:3], other]) == {}, "two siblings have no typical value"


def test_a_run_that_is_silent_for_many_of_its_epochs_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_sweep_plan(run)
    record_start(run, "7")
    record_epochs(run, make_learning_curve(6), epoch_seconds=300.0)
    assert raised([run], time.time() + 4 * 300.0) == {}
    assert raised([run], time.time() + 6 * 300.0) == {run.run_id: ["no progress"]}
    record_event(run, "stopped", why="asked to leave")
    assert raised([run], time.time() + 6 * 300.0) == {}


@pytest.mark.parametrize(("loss", "alarms"), [(1.09, ["at chance"]), (0.9, [])])
def test_the_loss_of_guessing_is_that_of_the_classes_of_the_sweep(
    tmp_path: Path, loss: float, alarms: list[str]
) -> None:
    run = make_run(tmp_path, class_weights="balanced")
    record_epochs(run, [0.6] * 8, loss)
    sweep = write_sweep_plan(run)
    rows = "".join(f"{n},{n % 3},1.0,2.0,{n},{'validation' if n % 10 == 7 else 'train'}\n" for n in range(300))
    (sweep / "split.csv").write_text("# fingerprint: x\nrow,label,ra,dec,sky_group,split\n" + rows)
    assert raised([run]) == ({run.run_id: alarms} if alarms else {})
