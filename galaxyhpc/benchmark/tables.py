"""What was measured, for a terminal: ratios first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from galaxyhpc.analysis.run_cost import compute_makespan
from galaxyhpc.benchmark.forecast import RunForecast

JsonDict = dict[str, Any]


def make_tables(results: JsonDict) -> Iterator[Table]:
    """Lay out whatever there is."""
    if results["networks"]:
        yield from make_network_tables(results["networks"])
    if "data" in results:
        yield make_data_table(results["data"])
    if "processes" in results:
        yield make_scaling_table(results["processes"])


def make_network_tables(networks: dict[str, JsonDict]) -> Iterator[Table]:
    """Lay out the networks in their ways: quotients, then what they are quotients of."""
    names = list(dict.fromkeys(name for one in networks.values() for each in one["ratios"].values() for name in each))
    if names:
        table = _make_table("how many times (> 1: the last way is faster, or smaller)", "network", "")
        for name in names:
            table.add_column(name.replace("_to_", " : "), justify="right")
        for network, found in networks.items():
            for part, quotients in found["ratios"].items():
                cells = [f"{quotients[name]:.2f}" if name in quotients else "" for name in names]
                table.add_row(network, part.removesuffix("_seconds").removesuffix("_bytes"), *cells)
        yield table
    heads = ("training\ns a step", "training\nimages/s", "inference\nimages/s", "peak\nMB", "start-up\ns")
    table = _make_table("measured, the fastest turn", "network", "way", "batch", *heads)
    for network, found in networks.items():
        for way, each in found["ways"].items():
            if each:
                table.add_row(network, way, str(found["batch"]), *_format_cells(each))
    yield table


def make_data_table(data: JsonDict) -> Table:
    """Lay out the data: against torchvision's chain, and against a step."""
    table = _make_table(f"data: {data['batch']} images of {data['size']} px, augmented", "", "found")
    for name, ratio in data["ratios"].items():
        table.add_row(f"{name.replace('_to_', ' : ')}, how many times", f"{ratio:.1f}")
    for name, share in data.get("share_of_step", {}).items():
        table.add_row(f"share of a training step of {name}", f"{share:.1%}")
    for way in ("ours", "torchvision"):
        found = data[way]
        said = found.get("failed") or f"{_format_number(found['images_per_second'])} images/s"
        table.add_row(way, said)
    return table


def make_scaling_table(results: JsonDict) -> Table:
    """Lay out what a second process brings."""
    table = _make_table("two processes against one, each with its own batch", "", "found")
    if "failed" in results:
        table.add_row("failed", results["failed"])
        return table
    table.add_row("efficiency", f"{results['efficiency']:.0%}")
    of = f"{results['network']}, {results['size']} px, {results['batch_per_process']} images, {results['threads']} threads each"
    table.add_row("of", of)
    for world in (1, 2):
        table.add_row(f"images/s, {world} processes", _format_number(results[f"images_per_second_{world}"]))
    return table


def make_sweep_table(sweep_name: str, forecasts: Sequence[RunForecast], device_name: str) -> Table:
    """Lay out the hours of a sweep, runs that are alike but for the seed in one row."""
    alike: dict[str, list[RunForecast]] = {}
    for run in forecasts:
        alike.setdefault(f"{run.config.model_tag} {run.config.model.width} {run.config.data.image_size} px", []).append(
            run
        )
    table = _make_table(f"{sweep_name} on {device_name}: predicted, without early stops", "network", "from")
    for head in ("runs", "an epoch\ns", "training\nh a run", "evaluation\nh a run", "all\nh"):
        table.add_column(head, justify="right")
    for of, some in alike.items():
        one, total = some[0], sum(run.total_seconds for run in some)
        source = "its own seconds" if one.is_measured else "a fit"
        times = (
            one.epoch_seconds,
            one.prediction.training_seconds / 3600,
            one.prediction.evaluation_seconds / 3600,
            total / 3600,
        )
        table.add_row(of, source, str(len(some)), *map(_format_number, times))
    for devices in (1, 8):
        hours = compute_makespan([run.total_seconds for run in forecasts], devices) / 3600
        table.add_row(f"the sweep on {devices} of it", "", str(len(forecasts)), "", "", "", _format_number(hours))
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
    for number, head in enumerate(headers):
        table.add_column(head, justify="left" if number < 2 else "right")
    return table


def _format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
