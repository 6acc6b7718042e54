"""What the selection of CPU kernels is worth beside a rule without measurements. About half an hour.

    python tests/benchmarks/selection_rule.py tests/benchmarks/selection_rule.json

The rule: a layer that sees the image is dense, every other one harmonic. For each network the seconds of all its
layers are summed up as the selection and as the rule choose them; layers on which they disagree are timed in
alternation, so that other load hits both. A ratio above 1 says that the rule is slower.
"""

from __future__ import annotations

import json
import platform
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from galaxyhpc.benchmark.__main__ import CPU_BATCH_SIZES
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.process import keep_heap
from galaxyhpc.steerable.kernels import cpu_timing, selection

CPU = torch.device("cpu")
SIZES = (33, 65, 129)  # px
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "steerable_cnn": {},
    "e2wrn": {"depth": 10, "widen": 4},
    "e2resnet": {"depth": 18},
}
WIDTHS = ("fields", "parameters")
GROUPS = ("C1", "C2", "C4", "C8", "C16", "D1", "D4", "D8", "D16")
SECONDS = 0.06  # of timing where both agree; ten times as long where they do not

Seconds = dict[tuple[cpu_timing.LayerInput, tuple[str, ...], bool], list[float]]


def time_kernels(
    layer_input: cpu_timing.LayerInput, kernels: tuple[str, ...], is_training: bool, known: Seconds
) -> list[float]:
    """Return the seconds of a layer by these kernels; the same layer of another network is timed once."""
    key = (layer_input, kernels, is_training)
    if key not in known:
        layers = [cpu_timing.TimedLayer(layer_input, kernel, is_training, CPU, torch.float32) for kernel in kernels]
        known[key] = cpu_timing.time_layers(layers, SECONDS if len(kernels) == 1 else 10 * SECONDS)
    return known[key]


def compare_choices(model: ModelConfig, size: int, is_training: bool, known: Seconds) -> dict[str, Any]:
    """Sum up the seconds of a network's layers as the selection and as the rule choose them."""
    rates = cpu_timing.get_machine_rates(CPU, torch.float32, torch.get_num_threads())
    batch_shape = selection.BatchShape(CPU_BATCH_SIZES.get(str(model.group), 16), size)
    selected = ruled = 0.0
    num_different = 0
    for layer_input in selection.trace_layer_inputs(build_model(model, size), batch_shape).values():
        is_harmonic = selection.is_faster_on_cpu(layer_input, rates, is_training)
        sees_image = layer_input.basis_spec[2] == "trivial"
        if is_harmonic != sees_image:
            (seconds,) = time_kernels(layer_input, ("harmonic" if is_harmonic else "dense",), is_training, known)
            selected, ruled = selected + seconds, ruled + seconds
        else:
            dense, harmonic = time_kernels(layer_input, ("dense", "harmonic"), is_training, known)
            selected += harmonic if is_harmonic else dense
            ruled += dense if sees_image else harmonic
            num_different += 1
    return {
        "selection_seconds": round(selected, 5),
        "rule_seconds": round(ruled, 5),
        "rule_to_selection": round(ruled / selected, 3),
        "layers_that_differ": num_different,
    }


def main() -> None:
    keep_heap()  # as the trainer does
    results: dict[str, Any] = {"machine": f"{platform.machine()}, torch {torch.__version__}", "networks": []}
    known: Seconds = {}
    cases = list(product(SIZES, ARCHITECTURES, WIDTHS, GROUPS, (True, False)))
    for size, architecture, width, group, is_training in track(cases, "networks"):
        model = ModelConfig(architecture=architecture, group=group, width=width, **ARCHITECTURES[architecture])
        case = {"architecture": architecture, "size": size, "width": width, "group": group, "training": is_training}
        results["networks"].append(case | compare_choices(model, size, is_training, known))
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
