"""Measure how fast this machine runs the networks and the data pipeline, or predict the hours of a sweep from that.

    galaxyhpc benchmark --out here.json
    galaxyhpc benchmark --device cuda --size 255 --batch 32 --groups D16,D8 --implementations dense,ours
    galaxyhpc benchmark --device cuda --size 255 --groups D16 --parts layers,profile --kernels harmonic --seconds 300
    galaxyhpc benchmark --predict sweeps/all_groups.yaml --from benchmark.json

The file is rewritten after every measurement: an interrupted benchmark leaves the results so far.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from galaxyhpc.benchmark import forecast, scaling, tables
from galaxyhpc.benchmark.environment import describe_environment
from galaxyhpc.benchmark.forecast import BenchmarkFileError
from galaxyhpc.benchmark.implementations import IMPLEMENTATIONS, Case
from galaxyhpc.benchmark.layer_timing import list_layers, time_layer
from galaxyhpc.benchmark.pipelines import prediction, training
from galaxyhpc.benchmark.timing import NETWORK_PARTS, PARTS, TimingBudget, compare_implementations
from galaxyhpc.config.group_names import check_group_name
from galaxyhpc.config.image_size import is_exact_image_size
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.config.sweep import SweepError, load_sweep
from galaxyhpc.launch.galaxy_checks import fill_in_class_names
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.console import make_console
from galaxyhpc.steerable.kernels.selection import BatchShape
from galaxyhpc.storage.files import OVERWRITE_HELP, OutputExistsError, check_output, write_text

GROUPS = ("D16", "D8", "C16", "D4", "C8", "D2", "C4", "D1", "C2", "C1", "cnn")
CPU_BATCH_SIZES = {"D16": 4, "D8": 4, "C16": 4, "D4": 8, "C8": 8}  # 16 for smaller groups
GPU_BATCH_SIZE = 32
ALL_PARTS = (*NETWORK_PARTS, "layers", "data", "scaling", "predict")
DEFAULT_PARTS = (*PARTS, "data", "scaling")
KERNELS = ("auto", "dense", "harmonic")
SMALLEST_NETWORKS = ("C1", "cnn")
PREDICTING_NETWORKS = ["C4", "cnn"]  # unless groups are named
TIMING_BUDGETS = {"cpu": TimingBudget(3, 0.5), "cuda": TimingBudget(4, 0.5)}

JsonDict = dict[str, Any]


class BenchmarkError(ValueError):
    """The options do not describe a possible measurement."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options, console = _make_parser().parse_args(arguments), make_console()
    try:
        if options.predict:
            return _print_forecast(options, console)
        cases = _make_cases(options)
        _check_options(options)
        check_output(options.out, options.overwrite)
    except (BenchmarkError, BenchmarkFileError, OutputExistsError, SweepError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    results = _make_header(options)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            _measure_parts(options, cases, results, progress)
    except KeyboardInterrupt:
        return 130
    finally:
        for table in tables.make_tables(results):
            console.print(table)
    console.print(f"{options.out}: {results['machine']['name']}, {options.threads} threads", soft_wrap=True)
    return 0


def _measure_parts(options: argparse.Namespace, cases: Sequence[Case], results: JsonDict, progress: Progress) -> None:
    """Measure the requested parts; write the results after every measurement."""
    budget = replace(TIMING_BUDGETS[options.device], deadline=time.monotonic() + options.seconds)
    other_parts = [part for part in options.parts if part not in NETWORK_PARTS]
    parts = [part for part in NETWORK_PARTS if part in options.parts]
    items = len(options.implementations) + len(parts) + 1
    task = progress.add_task("", total=items * len(cases) * bool(parts) + len(other_parts))

    def add_results(**new_results: Any) -> None:
        results.update(new_results)
        write_text(options.out, json.dumps(results, indent=1) + "\n")
        progress.advance(task)

    def make_callback(name: str) -> Callable[[JsonDict], None]:
        return lambda network: add_results(networks=results["networks"] | {name: network})

    def is_skipped(name: str) -> bool:
        """Whether there is no time left for this; it is noted."""
        if budget.is_spent:
            add_results(skipped=[*results.get("skipped", []), name])
        return budget.is_spent

    for number, case in enumerate(cases if parts else ()):
        if is_skipped(case.name):
            continue
        progress.update(task, description=case.name, completed=number * items)
        compare_implementations(case, options.implementations, parts, budget, make_callback(case.name))
    if "layers" in other_parts:
        for case in cases:
            progress.update(task, description=f"layers of {case.name}")
            if case.model.group and not is_skipped(f"layers of {case.name}"):
                add_results(layers=[*results.get("layers", []), *_measure_layers(case, budget)])
    if "data" in other_parts and not is_skipped("data"):
        progress.update(task, description="data")
        add_results(data=_measure_data(options, results["networks"], budget))
    if "scaling" in other_parts and not is_skipped("scaling"):
        progress.update(task, description="scaling")
        add_results(scaling=scaling.measure_scaling(_make_case(options, "C4"), budget))
    if "predict" in other_parts and not is_skipped("predict"):
        progress.update(task, description="predict")
        names = PREDICTING_NETWORKS if options.groups == list(GROUPS) else options.groups
        predicting = [_make_case(options, name) for name in names]
        prediction.measure_predictions(predicting, budget, lambda values: add_results(predict=values))


def _measure_layers(case: Case, budget: TimingBudget) -> list[JsonDict]:
    """Time the layers of a network, one after the other."""
    network = build_model(case.model, case.image_size)
    device, dtype = torch.device(case.device), getattr(torch, case.precision)
    layers = list_layers(network, BatchShape(case.batch_size, case.image_size))
    return [time_layer(layer, device, dtype, budget.round_seconds / 4) for layer in layers]


def _measure_data(options: argparse.Namespace, networks: dict[str, JsonDict], budget: TimingBudget) -> JsonDict:
    """Time the data pipeline, alone and as a fraction of a step of the smallest networks, measured here if missing."""
    smallest = {}
    for name in SMALLEST_NETWORKS:
        network = networks.get(name, {})
        if "optimizer_seconds" not in network.get("implementations", {}).get("ours", {}):
            case = _make_case(options, name)
            network = compare_implementations(case, ["ours"], ["training"], budget, lambda network: None)
        smallest[name] = network
    batch_size = _make_case(options, SMALLEST_NETWORKS[0]).batch_size
    data = training.measure_pipeline(options.size, batch_size, options.device, budget)
    return data | {"fraction_of_step": training.compute_step_fractions(data, smallest)}


def _print_forecast(options: argparse.Namespace, console: Console) -> int:
    """Print the hours of a sweep, predicted from a benchmark's file."""
    if options.source is None:
        raise BenchmarkError("--predict: got no --from; expected --from JSON, written by a benchmark on the device")
    if not options.source.is_file():
        raise BenchmarkError(f"--from: {options.source}: no such file; expected one that `galaxyhpc benchmark` wrote")
    benchmark, sweep = forecast.read_benchmark(options.source), load_sweep(options.predict)
    forecasts = forecast.forecast_runs(fill_in_class_names(sweep.runs), benchmark)
    console.print(tables.make_sweep_table(sweep.name, forecasts, benchmark.device_name))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galaxyhpc benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    implementations_help = f"compare only these of {','.join(IMPLEMENTATIONS)} (all)"
    parts_help = f"measure only these of {','.join(ALL_PARTS)} (all but predict and profile and, on a GPU only, layers)"
    from_help = "with --predict: the file of an earlier benchmark that measured the training of `ours`"
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to measure (default here: %(default)s)",
    )
    add(
        "--groups",
        type=_parse_list,
        default=list(GROUPS),
        metavar="D16,...",
        help="groups and cnn, in this order (all)",
    )
    add("--size", type=int, default=65, help="image size in px (%(default)s)")
    add("--batch", type=int, metavar="N", help="images per batch (4 to 16 on a CPU, by group; 32 on a GPU)")
    add("--scale", type=float, default=1.0, help="factor of the study's fields (%(default)s)")
    add("--implementations", type=_parse_list, default=list(IMPLEMENTATIONS), help=implementations_help)
    add("--parts", type=_parse_list, default=list(DEFAULT_PARTS), help=parts_help)
    add("--kernels", choices=KERNELS, default="auto", help="kernels of all layers of `ours` (%(default)s)")
    add("--seconds", type=float, default=math.inf, help="begin no measurement after this time (no limit)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile for dense (on a GPU)")
    add("--predict", type=Path, metavar="SWEEP", help="measure nothing; predict the hours of a sweep from --from")
    add("--from", dest="source", type=Path, metavar="JSON", help=from_help)
    add("--out", type=Path, default=Path("benchmark.json"), metavar="JSON", help="file to write (%(default)s)")
    add("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser


def _parse_list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _check_options(options: argparse.Namespace) -> None:
    """Refuse impossible options before anything is measured."""
    for option, allowed in (("implementations", IMPLEMENTATIONS), ("parts", ALL_PARTS)):
        values = getattr(options, option)
        unknown = [value for value in values if value not in allowed]
        if unknown or not values:
            raise BenchmarkError(
                f"--{option}: got {','.join(unknown) or 'none'}; expected some of {', '.join(allowed)}"
            )
        setattr(options, option, [value for value in allowed if value in values])
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device: got cuda, but torch sees no GPU; expected cpu")
    if options.device == "cpu" and "layers" in options.parts:
        raise BenchmarkError("--parts: got layers on a CPU, whose kernels are chosen by measured rates; expected a GPU")
    if options.threads < 1:
        raise BenchmarkError(f"--threads: got {options.threads}; expected 1 or more")
    if not options.out.absolute().parent.is_dir():
        raise BenchmarkError(f"--out: no directory {options.out.parent}; expected a file in an existing directory")


def _make_cases(options: argparse.Namespace) -> list[Case]:
    if options.batch is not None and options.batch < 2:
        raise BenchmarkError(f"--batch: got {options.batch}; expected 2 or more, for batch normalisation")
    if not is_exact_image_size(options.size, "steerable_cnn"):
        raise BenchmarkError(f"--size: got {options.size}; expected 33, 64k - 1 or 64k + 1 px")
    if not 0 < options.scale <= 4:
        raise BenchmarkError(f"--scale: got {options.scale:g}; expected above 0, at most 4")
    if not options.groups:
        raise BenchmarkError("--groups: got none; expected cnn and groups such as D16,C4")
    return [_make_case(options, name) for name in options.groups]


def _make_case(options: argparse.Namespace, name: str) -> Case:
    """Return the study's network of a group, or its conventional one."""
    try:
        settings = {"architecture": "cnn"} if name == "cnn" else {"group": check_group_name(name)}
    except ValueError as error:
        raise BenchmarkError(f"--groups: got {name}; expected cnn, {error}") from None
    model = ModelConfig.model_validate(settings | {"scale": options.scale})
    on_gpu = options.device == "cuda"
    should_compile = on_gpu if options.compile is None else options.compile
    batch_size = options.batch or (GPU_BATCH_SIZE if on_gpu else CPU_BATCH_SIZES.get(name, 16))
    return Case(model, options.size, batch_size, options.device, should_compile, options.threads, options.kernels)


def _make_header(options: argparse.Namespace) -> JsonDict:
    """Return the head of the file: machine, settings and definitions."""
    settings = {"implementations": options.implementations, "parts": options.parts, "size": options.size}
    definitions = {
        "seconds": "of forward and backward of a batch, or of forward: the mean of a round, the fastest round",
        "ratios": "of the seconds of the fastest rounds, of the bytes, of the start-up seconds",
        "peak_bytes": "from construction to the end of the first step; CPU: growth of resident memory",
        "startup_seconds": "from construction to the end of the first step; imports and filter bases are ready",
        "fraction_of_step": "time of the data to that of forward, backward and optimizer step",
        "bases_seconds": "of imports and of sampling the filter bases, or reading them from the cache",
    }
    return {
        "machine": describe_environment(options.device, options.threads),
        "settings": settings | {"rounds": TIMING_BUDGETS[options.device].num_rounds},
        "definitions": definitions,
        "networks": {},
    }


if __name__ == "__main__":
    sys.exit(main())
