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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from galaxyhpc.benchmark import tables
from galaxyhpc.benchmark.machine import machine
from galaxyhpc.benchmark.turns import PARTS, Effort, compare
from galaxyhpc.benchmark.ways import WAYS, Case
from galaxyhpc.config import ModelConfig
from galaxyhpc.image_size import is_exact_image_size
from galaxyhpc.rundir import write_text
from galaxyhpc.table import make_console

GROUPS = ("D16", "D8", "C16", "D4", "C8", "D2", "C4", "D1", "C2", "C1", "cnn")
BATCH = {"D16": 4, "D8": 4, "C16": 4, "D4": 8, "C8": 8}  # on a CPU; 16 images for smaller groups
GPU_BATCH = 32
EFFORTS = {"cpu": Effort(3, 0.5), "cuda": Effort(4, 0.5)}


class BenchmarkError(ValueError):
    """What was asked for cannot be measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options, console = _parser().parse_args(arguments), make_console()
    try:
        cases = _cases(options)
        _check(options)
    except (BenchmarkError, OSError) as error:
        print(f"galaxyhpc.benchmark: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    found = _asked(options)
    networks: dict[str, Any] = found["networks"]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        items = len(options.ways) + len(options.parts)
        task = bar.add_task("networks", total=len(cases) * items)
        for number, case in enumerate(cases):
            bar.update(task, description=case.name, completed=number * items)

            def note(known: dict[str, Any], name: str = case.name) -> None:
                networks[name] = known
                write_text(options.out, json.dumps(found, indent=1) + "\n")
                bar.advance(task)

            compare(case, options.ways, options.parts, EFFORTS[options.device], note)
    for table in tables.of_networks(networks):
        console.print(table)
    console.print(f"{options.out}: {found['machine']['name']}, {options.threads} threads", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m galaxyhpc.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(%(default)s)",
    )
    add("--groups", type=_list, default=list(GROUPS), metavar="D16,...", help="groups and cnn, in this order (all)")
    add("--size", type=int, default=65, help="px (%(default)s)")
    add("--batch", type=int, metavar="N", help="images (4 to 16 on a CPU, by group; 32 on a GPU)")
    add("--scale", type=float, default=1.0, help="of the study's fields (%(default)s)")
    add("--ways", type=_list, default=list(WAYS), help=f"of {','.join(WAYS)} (all)")
    add("--parts", type=_list, default=list(PARTS), help=f"of {','.join(PARTS)} (all)")
    add("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile for dense and ours (on a GPU)")
    add("--out", type=Path, default=Path("benchmark.json"), metavar="JSON", help="(%(default)s)")
    return parser


def _list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything is."""
    for name, allowed in (("ways", WAYS), ("parts", PARTS)):
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


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.batch is not None and options.batch < 2:
        raise BenchmarkError(f"--batch: found {options.batch}; allowed: 2 or more, for batch normalisation")
    if not is_exact_image_size(options.size, "steerable_cnn"):
        raise BenchmarkError(f"--size: found {options.size}; allowed: 33, 65, 127, 129, 255, 257 and the like")
    cuda = options.device == "cuda"
    compiled = cuda if options.compile is None else options.compile
    cases = []
    for name in options.groups:
        asked = {"architecture": "cnn"} if name == "cnn" else {"group": name}
        try:
            model = ModelConfig.model_validate(asked | {"scale": options.scale})
        except ValueError as error:
            why = str(error).splitlines()[2].strip() if len(str(error).splitlines()) > 2 else str(error)
            raise BenchmarkError(f"--groups: found {name}: {why}") from None
        batch = options.batch or (GPU_BATCH if cuda else BATCH.get(name, 16))
        cases.append(Case(model, options.size, batch, options.device, compiled, options.threads))
    return cases


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """Return the head of the file: where, how, and what a ratio is."""
    effort = EFFORTS[options.device]
    how = {"ways": options.ways, "parts": options.parts, "size": options.size, "turns": effort.turns}
    words = {
        "seconds": "of forward and backward of a batch, or of forward; the mean of a turn, the fastest turn",
        "ratios": "of the seconds of the fastest turns, of the bytes, of the start-up seconds",
        "peak_bytes": "from building to the end of the first step; CPU: growth of the process's resident memory",
        "startup_seconds": "from building to the end of the first step",
    }
    return {"machine": machine(options.device, options.threads), "how": how, "words": words, "networks": {}}


if __name__ == "__main__":
    sys.exit(main())
