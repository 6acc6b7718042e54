"""What was measured, for a terminal: ratios first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

Found = dict[str, Any]


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
