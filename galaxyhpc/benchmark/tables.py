"""Tables of a benchmark for a terminal, ratios first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from rich import box
from rich.table import Table

from galaxyhpc.analysis.run_cost import compute_makespan
from galaxyhpc.benchmark.forecast import RunForecast

JsonDict = dict[str, Any]


def make_tables(results: JsonDict) -> Iterator[Table]:
    """Make the tables of all results so far."""
    if results["networks"]:
        yield from make_network_tables(results["networks"])
    if "data" in results:
        yield make_data_table(results["data"])
    if "scaling" in results:
        yield make_scaling_table(results["scaling"])


def make_network_tables(networks: dict[str, JsonDict]) -> Iterator[Table]:
    """Make the tables of the networks: ratios of implementations, then times and memory."""
    ratios = [part for network in networks.values() for part in network["ratios"].values()]
    names = list(dict.fromkeys(chain.from_iterable(ratios)))
    if names:
        table = _make_table("ratios (> 1: the last implementation is faster, or smaller)", "network", "")
        for name in names:
            table.add_column(name.replace("_to_", " : "), justify="right")
        for network_name, network in networks.items():
            for part, values in network["ratios"].items():
                cells = [f"{values[name]:.2f}" if name in values else "" for name in names]
                table.add_row(network_name, part.removesuffix("_seconds").removesuffix("_bytes"), *cells)
        yield table
    headers = ("training\ns/step", "training\nimages/s", "inference\nimages/s", "peak\nMB", "start-up\ns")
    table = _make_table("measured, the fastest round", "network", "implementation", "batch", *headers)
    for network_name, network in networks.items():
        for implementation, measurements in network["implementations"].items():
            if measurements:
                table.add_row(network_name, implementation, str(network["batch"]), *_format_cells(measurements))
    yield table


def make_data_table(data: JsonDict) -> Table:
    """Make the table of the data pipeline: against torchvision's, and against a training step."""
    table = _make_table(f"data: {data['batch']} images of {data['size']} px, augmented", "", "measured")
    for name, ratio in data["ratios"].items():
        table.add_row(f"ratio {name.replace('_to_', ' : ')}", f"{ratio:.1f}")
    for name, fraction in data.get("fraction_of_step", {}).items():
        table.add_row(f"fraction of a training step of {name}", f"{fraction:.1%}")
    for implementation in ("ours", "torchvision"):
        times = data[implementation]
        speed = times.get("failed") or f"{_format_number(times['images_per_second'])} images/s"
        table.add_row(implementation, speed)
    return table


def make_scaling_table(results: JsonDict) -> Table:
    """Make the table of the scaling efficiency."""
    table = _make_table("two processes against one, each with its own batch", "", "measured")
    if "failed" in results:
        table.add_row("failed", results["failed"])
        return table
    table.add_row("efficiency", f"{results['efficiency']:.0%}")
    network = f"{results['network']}, {results['size']} px"
    table.add_row("network", f"{network}, {results['batch_per_process']} images, {results['threads']} threads each")
    for world_size in (1, 2):
        table.add_row(f"images/s, {world_size} processes", _format_number(results[f"images_per_second_{world_size}"]))
    return table


def make_sweep_table(sweep_name: str, forecasts: Sequence[RunForecast], device_name: str) -> Table:
    """Make the table of the hours of a sweep; runs that differ only in the seed share a row."""
    runs_by_network: dict[str, list[RunForecast]] = {}
    for run in forecasts:
        network = f"{run.config.model_tag} {run.config.model.width} {run.config.data.image_size} px"
        runs_by_network.setdefault(network, []).append(run)
    table = _make_table(f"{sweep_name} on {device_name}: predicted, without early stopping", "network", "from")
    for header in ("runs", "epoch\ns", "training\nh/run", "evaluation\nh/run", "total\nh"):
        table.add_column(header, justify="right")
    for network, runs in runs_by_network.items():
        first, total = runs[0], sum(run.total_seconds for run in runs)
        source = "measurement" if first.is_measured else "fit"
        hours = (first.prediction.training_seconds / 3600, first.prediction.evaluation_seconds / 3600, total / 3600)
        table.add_row(network, source, str(len(runs)), *map(_format_number, (first.epoch_seconds, *hours)))
    for num_devices in (1, 8):
        makespan = compute_makespan([run.total_seconds for run in forecasts], num_devices) / 3600
        cells = (str(len(forecasts)), "", "", "", _format_number(makespan))
        table.add_row(f"whole sweep, {num_devices} device{'s' if num_devices > 1 else ''}", "", *cells)
    return table


def _format_cells(measurements: JsonDict) -> list[str]:
    training, inference = measurements.get("training", {}), measurements.get("inference", {})
    cells = [
        _format_number(training.get("seconds")),
        _format_number(training.get("images_per_second")),
        _format_number(inference.get("images_per_second")),
        _format_number(measurements["peak_bytes"] / 1e6 if "peak_bytes" in measurements else None),
        _format_number(measurements.get("startup_seconds")),
    ]
    return [measurements["failed"], *cells[1:]] if "failed" in measurements else cells


def _make_table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < 2 else "right")
    return table


def _format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
