"""Error of the times that `steerable.kernels.cpu_timing` predicts for the layers of the study's networks. Minutes.

    python tests/benchmarks/choice.py tests/benchmarks/choice.json [GROUP ...]

Times each distinct layer of a group dense and harmonic, alone, in training and without gradients; writes the time
predicted by the rates of this machine, and the choice, beside it.
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
from galaxyhpc.runtime.process import keep_heap
from galaxyhpc.steerable.kernels import cpu_timing, selection

CPU = torch.device("cpu")
KERNELS = list(cpu_timing.OPERATION_COUNTERS)
SIZE = 65  # px


def measure_layers(group: str, is_training: bool) -> dict[str, Any]:
    """Time the layers of one network."""
    rates = cpu_timing.get_machine_rates(CPU, torch.float32, torch.get_num_threads())
    network = build_model(ModelConfig(group=group), SIZE)
    layer_results: dict[str, Any] = {}
    sums = dict.fromkeys(("dense", "harmonic", "chosen", "best"), 0.0)
    layer_inputs = selection.trace_layer_inputs(network, selection.BatchShape(CPU_BATCH_SIZES.get(group, 16), SIZE))
    timed: dict[cpu_timing.LayerInput, list[float]] = {}
    for name, layer_input in layer_inputs.items():
        if layer_input not in timed:
            layers = [cpu_timing.TimedLayer(layer_input, kernel, is_training, CPU, torch.float32) for kernel in KERNELS]
            timed[layer_input] = cpu_timing.time_layers(layers, 0.3)
        dense, harmonic = timed[layer_input]
        predicted = [cpu_timing.estimate_seconds(layer_input, rates, kernel, is_training) for kernel in KERNELS]
        chosen = selection.is_faster_on_cpu(layer_input, rates, is_training)
        row = {f"{kernel}_ms": round(1e3 * value, 2) for kernel, value in zip(KERNELS, timed[layer_input], strict=True)}
        row |= {
            f"{kernel}_predicted_ms": round(1e3 * value, 2) for kernel, value in zip(KERNELS, predicted, strict=True)
        }
        layer_results[name] = row | {"harmonic": chosen}
        values = (dense, harmonic, harmonic if chosen else dense, min(dense, harmonic))
        sums = {kernel: sums[kernel] + value for kernel, value in zip(sums, values, strict=True)}
    return {"seconds": {kernel: round(value, 4) for kernel, value in sums.items()}, "layers": layer_results}


def main() -> None:
    keep_heap()  # as the trainer does
    out, *groups = sys.argv[1:]
    description = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    results: dict[str, Any] = {"machine": description}
    for group in track(groups or [name for name in GROUPS if name != "cnn"], "groups"):
        for is_training in (True, False):
            name = f"{group} {'training' if is_training else 'inference'}"
            results[name] = measure_layers(group, is_training)
            print(name, results[name]["seconds"], flush=True)
            Path(out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
