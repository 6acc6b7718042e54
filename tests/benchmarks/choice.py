"""How well `steerable.kernels.cpu_timing` tells the time of every layer of the study's networks. A few minutes.

    python tests/benchmarks/choice.py tests/benchmarks/choice.json [GROUP ...]

Each distinct layer of a group is timed dense and harmonic, alone, in training and without gradients; beside it stands
what the rates of this machine say, and what was chosen.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from galaxyhpc.benchmark.__main__ import CPU_BATCH_SIZES, GROUPS
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.malloc import keep_heap
from galaxyhpc.steerable.kernels import cpu_timing, selection

CPU = torch.device("cpu")
SIZE = 65  # px


def compared(group: str, training: bool) -> dict[str, Any]:
    """Time the layers of one network."""
    known = cpu_timing.of_machine(CPU, torch.float32, torch.get_num_threads())
    network = build_model(ModelConfig(group=group), SIZE)
    found: dict[str, Any] = {}
    sums = dict.fromkeys(("dense", "harmonic", "chosen", "best"), 0.0)
    uses = selection.trace_layer_inputs(network, selection.BatchShape(CPU_BATCH_SIZES.get(group, 16), SIZE))
    timed: dict[cpu_timing.LayerInput, list[float]] = {}
    for name, use in uses.items():
        if use not in timed:
            several = [cpu_timing.Timed(use, way, training, CPU, torch.float32) for way in cpu_timing.COUNTS]
            timed[use] = cpu_timing.fastest(several, 0.3)
        dense, harmonic = timed[use]
        told = [cpu_timing.seconds(use, known, way, training) for way in cpu_timing.COUNTS]
        chosen = selection.faster(use, known, training)
        row = {f"{way}_ms": round(1e3 * each, 2) for way, each in zip(cpu_timing.COUNTS, timed[use], strict=True)}
        row |= {f"{way}_told_ms": round(1e3 * each, 2) for way, each in zip(cpu_timing.COUNTS, told, strict=True)}
        found[name] = row | {"harmonic": chosen}
        each = (dense, harmonic, harmonic if chosen else dense, min(dense, harmonic))
        sums = {way: sums[way] + value for way, value in zip(sums, each, strict=True)}
    return {"seconds": {way: round(value, 4) for way, value in sums.items()}, "layers": found}


def main() -> None:
    keep_heap()  # as the trainer does
    out, *groups = sys.argv[1:]
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    found: dict[str, Any] = {"machine": machine}
    for group in track(groups or [name for name in GROUPS if name != "cnn"], "groups"):
        for training in (True, False):
            name = f"{group} {'training' if training else 'inference'}"
            found[name] = compared(group, training)
            print(name, found[name]["seconds"], flush=True)
            Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
