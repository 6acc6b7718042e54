"""What status shows; the command itself is tried in test_launch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from galaxyhpc.config import ModelConfig, RunConfig, TrainConfig
from galaxyhpc.rundir import RunDir, write_text
from galaxyhpc.status import table
from galaxyhpc.table import make_console


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    config = RunConfig(model=ModelConfig(group="C4"), train=TrainConfig(epochs=10))
    run = RunDir(tmp_path / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    return run


def shown(run: RunDir) -> str:
    console = make_console()
    with console.capture() as capture:
        console.print(table([run], "runs/test"))
    return capture.get()


def test_a_running_run_tells_how_far_it_is_and_how_long_it_will_take(run: RunDir) -> None:
    run.record("started", epoch=0, step=0)
    time.sleep(0.2)
    write_text(run.metrics_file, '{"epoch": 0, "validation_accuracy": 0.4}\n{"epoch": 1, "validation_accuracy": 0.3}\n')
    text = shown(run)
    assert "1 running" in text and "2/10" in text and "0.400" in text and "0:00:0" in text


def test_a_reason_with_brackets_is_shown_as_it_is(run: RunDir) -> None:
    run.record("failed", why="RuntimeError: [/pytorch/gloo/pair.cc:553] Connection closed [by peer]")
    assert "[/pytorch/gloo/pair.cc:553] Connection closed [by peer]" in shown(run)


def test_one_broken_config_does_not_hide_the_other_runs(run: RunDir) -> None:
    write_text(run.config_file, "{")
    write_text(run.metrics_file, '{"epoch": 0, "validation_accuracy": 0.4}\n')
    assert "1/?" in shown(run)
