"""Tables of a benchmark for a terminal, ratios first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from galaxyhpc.analysis.run_cost import compute_makespan
from galaxyhpc.benchmark.forecast import RunForecast
from galaxyhpc.runtime.console import ConsoleTable, format_count

JsonDict = dict[str, Any]


def make_tables(results: JsonDict) -> Iterator[ConsoleTable]:
    """Make the tables of all results so far."""
    if results["networks"]:
        yield from make_network_tables(results["networks"])
    if "data" in results:
        yield make_data_table(results["data"])
    if "scaling" in results:
        yield make_scaling_table(results["scaling"])
    if "predict" in results:
        yield make_prediction_table(results["predict"])


def make_network_tables(networks: dict[str, JsonDict]) -> Iterator[ConsoleTable]:
    """Make the tables of the networks: ratios of implementations, then times and memory."""
    ratios = [part for network in networks.values() for part in network["ratios"].values()]
    names = list(dict.fromkeys(chain.from_iterable(ratios)))
    if names:
        rows = [
            (network_name, part.removesuffix("_seconds").removesuffix("_bytes"), *_format_ratios(values, names))
            for network_name, network in networks.items()
            for part, values in network["ratios"].items()
        ]
        heads = ("network", "of", *(name.replace("_to_", "\n: ") for name in names))
        yield ConsoleTable("ratios (> 1: the last implementation is faster, or smaller)", heads, rows, texts=("of",))
    headers = ("training\ns/step", "training\nimages/s", "inference\nimages/s", "peak\nMB", "start-up\ns")
    measured = [
        (
            network_name,
            implementation,
            str(network["batch"]),
            *_format_cells(measurements),
            measurements.get("failed", ""),
        )
        for network_name, network in networks.items()
        for implementation, measurements in network["implementations"].items()
        if measurements
    ]
    has_failed = any(row[-1] for row in measured)
    heads = ("network", "implementation", "batch", *headers, *(["failed"] if has_failed else []))
    rows = [row[: len(heads)] for row in measured]
    yield ConsoleTable("measured, the fastest round", heads, rows, texts=("implementation", "failed"))
    if estimated := list(_list_estimates(networks)):
        heads = ("network", "of", "ours\nestimated", "ours\nmeasured", "dense\nestimated", "dense\nmeasured")
        yield ConsoleTable("milliseconds of a batch, by which kernels are chosen", heads, estimated, texts=("of",))


def _list_estimates(networks: dict[str, JsonDict]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of estimates beside what was measured."""
    for name, network in networks.items():
        implementations = network["implementations"]
        for part, estimate in implementations.get("ours", {}).get("estimated", {}).items():
            ours, dense = (implementations.get(key, {}).get(part, {}).get("seconds") for key in ("ours", "dense"))
            seconds = (estimate["seconds"], ours, estimate["dense_seconds"], dense)
            yield name, part, *(_format_number(None if value is None else 1000 * value) for value in seconds)


def make_data_table(data: JsonDict) -> ConsoleTable:
    """Make the table of the data pipeline: against torchvision's, and against a training step."""
    rows = [(f"ratio {name.replace('_to_', ' : ')}", f"{ratio:.1f}") for name, ratio in data["ratios"].items()]
    fractions = data.get("fraction_of_step", {})
    rows += [(f"fraction of a training step of {name}", f"{fraction:.1%}") for name, fraction in fractions.items()]
    for implementation in ("ours", "torchvision"):
        times = data[implementation]
        speed = times.get("failed") or f"{_format_number(times['images_per_second'])} images/s"
        rows.append((implementation, speed))
    return _make_pair_table(f"data: {data['batch']} images of {data['size']} px, augmented", rows)


def make_scaling_table(results: JsonDict) -> ConsoleTable:
    """Make the table of the scaling efficiency."""
    title = "two processes against one, each with its own batch"
    if "failed" in results:
        return _make_pair_table(title, [("failed", results["failed"])])
    network = f"{results['network']}, {results['size']} px"
    rows = [
        ("efficiency", f"{results['efficiency']:.0%}"),
        ("network", f"{network}, {results['batch_per_process']} images, {results['threads']} threads each"),
    ]
    for world_size in (1, 2):
        rows.append((f"images/s, {world_size} processes", _format_number(results[f"images_per_second_{world_size}"])))
    return _make_pair_table(title, rows)


def make_prediction_table(results: Sequence[JsonDict]) -> ConsoleTable:
    """Make the table of the predictions of a survey."""
    rows = [
        (
            result["network"],
            result["format"],
            *(_format_number(result["images_per_second"][stage]) for stage in ("decoded", "classified", "both")),
            f"{result['fraction_of_slower']:.0%}",
            f"{result['fraction_of_limit']:.0%}",
            f"{value:.0%}" if (value := result.get("fraction_of_limit_by_cpu_time")) else "",
        )
        for result in results
    ]
    stages = ("decoded\n/s", "classified\n/s", "both\n/s", "of the\nslower", "of the\nlimit", "by CPU\ntime")
    heads = ("network", "images", *stages)
    title = f"predict: images of {results[0]['side']} px, networks of {results[0]['size']} px"
    return ConsoleTable(title, heads, rows, texts=("images",))


def make_sweep_table(sweep_name: str, forecasts: Sequence[RunForecast], device_name: str) -> ConsoleTable:
    """Make the table of the hours of a sweep; runs that differ only in the seed share a row."""
    runs_by_network: dict[str, list[RunForecast]] = {}
    for run in forecasts:
        network = f"{run.config.model_tag} {run.config.model.width} {run.config.data.image_size} px"
        runs_by_network.setdefault(network, []).append(run)
    rows = []
    for network, runs in runs_by_network.items():
        first, total = runs[0], sum(run.total_seconds for run in runs)
        source = "measurement" if first.is_measured else "fit"
        hours = (first.prediction.training_seconds / 3600, first.prediction.evaluation_seconds / 3600, total / 3600)
        rows.append((network, source, str(len(runs)), *map(_format_number, (first.epoch_seconds, *hours))))
    for num_devices in (1, 8):
        makespan = compute_makespan([run.total_seconds for run in forecasts], num_devices) / 3600
        cells = (str(len(forecasts)), "", "", "", _format_number(makespan))
        rows.append((f"whole sweep, {format_count(num_devices, 'device')}", "", *cells))
    title = f"{sweep_name} on {device_name}: predicted, without early stopping"
    heads = ("network", "from", "runs", "epoch\ns", "training\nh/run", "evaluation\nh/run", "total\nh")
    return ConsoleTable(title, heads, rows, texts=("from",))


def _format_cells(measurements: JsonDict) -> list[str]:
    training, inference = measurements.get("training", {}), measurements.get("inference", {})
    return [
        _format_number(training.get("seconds")),
        _format_number(training.get("images_per_second")),
        _format_number(inference.get("images_per_second")),
        _format_number(measurements["peak_bytes"] / 1e6 if "peak_bytes" in measurements else None),
        _format_number(measurements.get("startup_seconds")),
    ]


def _format_ratios(values: JsonDict, names: Sequence[str]) -> list[str]:
    return [f"{values[name]:.2f}" if name in values else "" for name in names]


def _make_pair_table(title: str, rows: Sequence[tuple[str, str]]) -> ConsoleTable:
    return ConsoleTable(title, ("", "measured"), rows, texts=("measured",))


def _format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
