"""Measures this project on this machine: networks, data, processes; a sweep's hours from what was measured.

    python -m galaxyhpc.benchmark --out here.json
    python -m galaxyhpc.benchmark --device cuda --size 255 --batch 32 --groups D16,D8 --ways dense,ours --out gpu.json
    python -m galaxyhpc.benchmark --predict sweeps/all_groups.yaml --from gpu.json

The file is written anew after every measured item: a run that is ended early leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from galaxyhpc.benchmark import data_pipeline, forecast, scaling, tables
from galaxyhpc.benchmark.environment import describe_environment
from galaxyhpc.benchmark.forecast import BenchmarkFileError
from galaxyhpc.benchmark.implementations import IMPLEMENTATIONS, Case
from galaxyhpc.benchmark.timing import PARTS, TimingBudget, compare_implementations
from galaxyhpc.config.group_names import check_group_name
from galaxyhpc.config.image_size import is_exact_image_size
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.config.sweep import SweepError, load_sweep
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import write_text

GROUPS = ("D16", "D8", "C16", "D4", "C8", "D2", "C4", "D1", "C2", "C1", "cnn")
CPU_BATCH_SIZES = {"D16": 4, "D8": 4, "C16": 4, "D4": 8, "C8": 8}  # on a CPU; 16 images for smaller groups
GPU_BATCH_SIZE = 32
ALL_PARTS = (*PARTS, "data", "processes")
SMALLEST_NETWORKS = ("C1", "cnn")
TIMING_BUDGETS = {"cpu": TimingBudget(3, 0.5), "cuda": TimingBudget(4, 0.5)}

JsonDict = dict[str, Any]


class BenchmarkError(ValueError):
    """What was asked for cannot be measured."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options, console = _make_parser().parse_args(arguments), make_console()
    try:
        if options.predict:
            return _print_forecast(options, console)
        cases = _make_cases(options)
        _check_options(options)
    except (BenchmarkError, BenchmarkFileError, SweepError, OSError) as error:
        print("\n".join(f"galaxyhpc.benchmark: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    found = _make_header(options)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            _measure_parts(options, cases, found, bar)
    except KeyboardInterrupt:
        return 130
    finally:
        for table in tables.make_tables(found):
            console.print(table)
    console.print(f"{options.out}: {found['machine']['name']}, {options.threads} threads", soft_wrap=True)
    return 0


def _measure_parts(options: argparse.Namespace, cases: Sequence[Case], results: JsonDict, progress: Progress) -> None:
    """Measure the parts asked for, and write what is known after every item."""
    effort, rest = TIMING_BUDGETS[options.device], [part for part in options.parts if part not in PARTS]
    parts = [part for part in PARTS if part in options.parts]
    items = len(options.ways) + len(parts) + 1
    task = progress.add_task("", total=items * len(cases) * bool(parts) + len(rest))

    def note(**known: JsonDict) -> None:
        results.update(known)
        write_text(options.out, json.dumps(results, indent=1) + "\n")
        progress.advance(task)

    def keep(name: str) -> Callable[[JsonDict], None]:
        return lambda one: note(networks=results["networks"] | {name: one})

    for number, case in enumerate(cases if parts else ()):
        progress.update(task, description=case.name, completed=number * items)
        compare_implementations(case, options.ways, parts, effort, keep(case.name))
    if "data" in rest:
        progress.update(task, description="data")
        note(data=_measure_data(options, results["networks"], effort))
    if "processes" in rest:
        progress.update(task, description="processes")
        note(processes=scaling.measure_scaling(_make_case(options, "C4"), effort))


def _measure_data(options: argparse.Namespace, networks: dict[str, JsonDict], budget: TimingBudget) -> JsonDict:
    """Time the data, alone and as a part of a step of the smallest networks, which are measured where they were not."""
    smallest = {}
    for name in SMALLEST_NETWORKS:
        known = networks.get(name, {})
        if "optimizer_seconds" not in known.get("ways", {}).get("ours", {}):
            known = compare_implementations(_make_case(options, name), ["ours"], ["training"], budget, lambda one: None)
        smallest[name] = known
    data = data_pipeline.measure_pipeline(
        options.size, _make_case(options, SMALLEST_NETWORKS[0]).batch_size, options.device, budget
    )
    return data | {"share_of_step": data_pipeline.compute_step_fractions(data, smallest)}


def _print_forecast(options: argparse.Namespace, console: Console) -> int:
    """Print the hours of a sweep from a benchmark's file."""
    if options.source is None:
        raise BenchmarkError("--predict: found no --from; allowed: --from JSON, which a benchmark on the device wrote")
    measured, sweep = forecast.read_benchmark(options.source), load_sweep(options.predict)
    console.print(
        tables.make_sweep_table(sweep.name, forecast.forecast_runs(sweep.runs, measured), measured.device_name)
    )
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galaxyhpc benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(%(default)s)",
    )
    add(
        "--groups",
        type=_parse_list,
        default=list(GROUPS),
        metavar="D16,...",
        help="groups and cnn, in this order (all)",
    )
    add("--size", type=int, default=65, help="px (%(default)s)")
    add("--batch", type=int, metavar="N", help="images (4 to 16 on a CPU, by group; 32 on a GPU)")
    add("--scale", type=float, default=1.0, help="of the study's fields (%(default)s)")
    add("--ways", type=_parse_list, default=list(IMPLEMENTATIONS), help=f"of {','.join(IMPLEMENTATIONS)} (all)")
    add("--parts", type=_parse_list, default=list(ALL_PARTS), help=f"of {','.join(ALL_PARTS)} (all)")
    add("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile for dense (on a GPU)")
    add("--predict", type=Path, metavar="SWEEP", help="nothing is measured: the sweep's hours, from --from")
    add("--from", dest="source", type=Path, metavar="JSON", help="what a benchmark wrote, with `ours` in training")
    add("--out", type=Path, default=Path("benchmark.json"), metavar="JSON", help="(%(default)s)")
    return parser


def _parse_list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything is."""
    for name, allowed in (("ways", IMPLEMENTATIONS), ("parts", ALL_PARTS)):
        wrong = [one for one in getattr(options, name) if one not in allowed]
        if wrong or not getattr(options, name):
            raise BenchmarkError(f"--{name}: found {','.join(wrong) or 'none'}; allowed: {', '.join(allowed)}")
        setattr(options, name, [one for one in allowed if one in getattr(options, name)])
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device: found cuda, but torch sees no GPU; allowed here: cpu")
    if options.threads < 1:
        raise BenchmarkError(f"--threads: found {options.threads}; allowed: 1 or more")
    if not options.out.absolute().parent.is_dir():
        raise BenchmarkError(f"--out: no directory {options.out.parent}; allowed: a file in one that is there")


def _make_cases(options: argparse.Namespace) -> list[Case]:
    if options.batch is not None and options.batch < 2:
        raise BenchmarkError(f"--batch: found {options.batch}; allowed: 2 or more, for batch normalisation")
    if not is_exact_image_size(options.size, "steerable_cnn"):
        raise BenchmarkError(f"--size: found {options.size}; allowed: 33, 65, 127, 129, 255, 257 and the like")
    if not 0 < options.scale <= 4:
        raise BenchmarkError(f"--scale: found {options.scale:g}; allowed: above 0, at most 4")
    if not options.groups:
        raise BenchmarkError("--groups: found none; allowed: cnn and groups such as D16,C4")
    return [_make_case(options, name) for name in options.groups]


def _make_case(options: argparse.Namespace, name: str) -> Case:
    """Return the study's network of a group, or its conventional one."""
    try:
        asked = {"architecture": "cnn"} if name == "cnn" else {"group": check_group_name(name)}
    except ValueError as error:
        raise BenchmarkError(f"--groups: found {name}; allowed: cnn, {error}") from None
    model = ModelConfig.model_validate(asked | {"scale": options.scale})
    cuda = options.device == "cuda"
    compiled = cuda if options.compile is None else options.compile
    batch = options.batch or (GPU_BATCH_SIZE if cuda else CPU_BATCH_SIZES.get(name, 16))
    return Case(model, options.size, batch, options.device, compiled, options.threads)


def _make_header(options: argparse.Namespace) -> JsonDict:
    """Return the head of the file: where, how, and what a ratio is."""
    effort = TIMING_BUDGETS[options.device]
    how = {"ways": options.ways, "parts": options.parts, "size": options.size, "turns": effort.num_rounds}
    words = {
        "seconds": "of forward and backward of a batch, or of forward; the mean of a turn, the fastest turn",
        "ratios": "of the seconds of the fastest turns, of the bytes, of the start-up seconds",
        "peak_bytes": "from building to the end of the first step; CPU: growth of the process's resident memory",
        "startup_seconds": "from building to the end of the first step; imports and bases are at hand",
        "share_of_step": "of the data, to forward, backward and the optimizer's step",
        "bases_seconds": "of imports and of sampling the filters' bases, or reading them from the cache",
    }
    return {
        "machine": describe_environment(options.device, options.threads),
        "how": how,
        "words": words,
        "networks": {},
    }


if __name__ == "__main__":
    sys.exit(main())
