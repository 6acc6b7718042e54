"""Writes sweep.yaml, plan.csv, and the config.json and repro.sh of each run, before anything is submitted."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.runtime.child_python import format_assignments
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import make_absolute, resolve_path

PLAN_COLUMNS = (
    *("run_id", "arch", "group", "width", "head", "scale", "image_size", "seed"),
    *("parameters", "multiply_adds", "data"),
)


def with_absolute_paths(config: RunConfig, runs_directory: Path) -> RunConfig:
    """Make the paths absolute: a job may start in any directory."""
    data, model = make_absolute(config.data), config.model
    cache = resolve_path(data.cache, "data.cache") if data.cache else resolve_path(runs_directory, "--runs") / ".cache"
    data = data.model_copy(update={"cache": str(cache)})
    if isinstance(model.pretrained, str):
        model = model.model_copy(update={"pretrained": str(resolve_path(model.pretrained, "model.pretrained"))})
    return config.model_copy(update={"data": data, "model": model})


def write_plan(
    sweep_yaml: str, directory: Path, configs: Sequence[RunConfig], networks: dict[str, NetworkProfile]
) -> None:
    """Write sweep.yaml, plan.csv, and each run's config.json and repro.sh."""
    write_text(directory / "sweep.yaml", sweep_yaml)
    for config in configs:
        run = RunDir(directory / config.run_id)
        write_text(run.config_file, config.model_dump_json(indent=1) + "\n")
        write_text(run.path / "repro.sh", _make_repro_script(run, config))
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(PLAN_COLUMNS)
    writer.writerows(_make_plan_row(config, networks[config.run_id]) for config in configs)
    write_text(directory / "plan.csv", rows.getvalue())


def _make_plan_row(config: RunConfig, network: NetworkProfile) -> tuple[object, ...]:
    model = config.model
    return (
        *(config.run_id, model.name, model.group_label, model.width, model.head, model.scale),
        *(config.data.image_size, config.seed, network.parameters, network.multiply_adds),
        "demo" if config.data.source == "demo" else "file",
    )


def _make_repro_script(run: RunDir, config: RunConfig) -> str:
    num_tasks = config.resources.num_tasks
    python = shlex.quote(sys.executable)
    torchrun = f"{python} -m torch.distributed.run --standalone --nproc-per-node {num_tasks}"
    directory = '"$(dirname "$0")"'
    return (
        f"#!/bin/sh\n# Train and evaluate {run.run_id} here, as the scheduler does\nset -e\n"
        f"export {format_assignments()}  # import nothing from the current directory\n"
        f"{torchrun if num_tasks > 1 else python} -m jobs.train {directory}\n{python} -m jobs.evaluate {directory}\n"
    )
