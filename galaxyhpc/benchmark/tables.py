"""What was measured, for a terminal: ratios first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from galaxyhpc.analysis.run_cost import makespan
from galaxyhpc.benchmark.forecast import Predicted

Found = dict[str, Any]


def of_all(found: Found) -> Iterator[Table]:
    """Lay out whatever there is."""
    if found["networks"]:
        yield from of_networks(found["networks"])
    if "data" in found:
        yield of_data(found["data"])
    if "processes" in found:
        yield of_processes(found["processes"])


def of_networks(networks: dict[str, Found]) -> Iterator[Table]:
    """Lay out the networks in their ways: quotients, then what they are quotients of."""
    names = list(dict.fromkeys(name for one in networks.values() for each in one["ratios"].values() for name in each))
    if names:
        table = _table("how many times (> 1: the last way is faster, or smaller)", "network", "")
        for name in names:
            table.add_column(name.replace("_to_", " : "), justify="right")
        for network, found in networks.items():
            for part, quotients in found["ratios"].items():
                cells = [f"{quotients[name]:.2f}" if name in quotients else "" for name in names]
                table.add_row(network, part.removesuffix("_seconds").removesuffix("_bytes"), *cells)
        yield table
    heads = ("training\ns a step", "training\nimages/s", "inference\nimages/s", "peak\nMB", "start-up\ns")
    table = _table("measured, the fastest turn", "network", "way", "batch", *heads)
    for network, found in networks.items():
        for way, each in found["ways"].items():
            if each:
                table.add_row(network, way, str(found["batch"]), *_cells(each))
    yield table


def of_data(data: Found) -> Table:
    """Lay out the data: against torchvision's chain, and against a step."""
    table = _table(f"data: {data['batch']} images of {data['size']} px, augmented", "", "found")
    for name, ratio in data["ratios"].items():
        table.add_row(f"{name.replace('_to_', ' : ')}, how many times", f"{ratio:.1f}")
    for name, share in data.get("share_of_step", {}).items():
        table.add_row(f"share of a training step of {name}", f"{share:.1%}")
    for way in ("ours", "torchvision"):
        found = data[way]
        said = found.get("failed") or f"{_number(found['images_per_second'])} images/s"
        table.add_row(way, said)
    return table


def of_processes(found: Found) -> Table:
    """Lay out what a second process brings."""
    table = _table("two processes against one, each with its own batch", "", "found")
    if "failed" in found:
        table.add_row("failed", found["failed"])
        return table
    table.add_row("efficiency", f"{found['efficiency']:.0%}")
    of = f"{found['network']}, {found['size']} px, {found['batch_per_process']} images, {found['threads']} threads each"
    table.add_row("of", of)
    for world in (1, 2):
        table.add_row(f"images/s, {world} processes", _number(found[f"images_per_second_{world}"]))
    return table


def of_sweep(name: str, runs: Sequence[Predicted], device: str) -> Table:
    """Lay out the hours of a sweep, runs that are alike but for the seed in one row."""
    alike: dict[str, list[Predicted]] = {}
    for run in runs:
        alike.setdefault(f"{run.config.tag} {run.config.model.width} {run.config.data.image_size} px", []).append(run)
    table = _table(f"{name} on {device}: predicted, without early stops", "network", "from")
    for head in ("runs", "an epoch\ns", "training\nh a run", "evaluation\nh a run", "all\nh"):
        table.add_column(head, justify="right")
    for of, some in alike.items():
        one, total = some[0], sum(run.seconds for run in some)
        source = "its own seconds" if one.own else "a fit"
        times = (one.epoch, one.of.training / 3600, one.of.evaluation / 3600, total / 3600)
        table.add_row(of, source, str(len(some)), *map(_number, times))
    for devices in (1, 8):
        hours = makespan([run.seconds for run in runs], devices) / 3600
        table.add_row(f"the sweep on {devices} of it", "", str(len(runs)), "", "", "", _number(hours))
    return table


def _cells(each: Found) -> list[str]:
    training, inference = each.get("training", {}), each.get("inference", {})
    cells = [
        _number(training.get("seconds")),
        _number(training.get("images_per_second")),
        _number(inference.get("images_per_second")),
        _number(each["peak_bytes"] / 1e6 if "peak_bytes" in each else None),
        _number(each.get("startup_seconds")),
    ]
    return [each["failed"], *cells[1:]] if "failed" in each else cells


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
