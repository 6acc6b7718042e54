"""A table of a campaign's results for a terminal: steps and their seconds, training steps, checks and failures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from results import JsonDict
from schedule import CHECKS, TIMINGS

LISTED_STEPS = (
    "smoke",
    "bits",
    "resume",
    "pair",
    "graphs",
    "ceilings",
    "fused",
    "selection",
    "inference",
    "prediction",
    "accelerated",
    "survey",
)
HIDDEN_KEYS = ("time", "seconds", "min_ms", "max_ms")
MAX_CHARACTERS = 230  # of a line
REFERENCES = ("dense", "compiled", "e2cnn", "eager")  # to which a step is compared


def format_results(results: Sequence[JsonDict]) -> Iterator[str]:
    """Yield the lines of all tables."""
    yield from format_steps(results)
    yield from format_training_steps(results)
    yield from format_layers(results)
    for result in results:
        if "event" not in result and (result["step"] in LISTED_STEPS or "failed" in result):
            values = {key: value for key, value in result.items() if key not in HIDDEN_KEYS}
            yield json.dumps(values)[:MAX_CHARACTERS]


def format_steps(results: Sequence[JsonDict]) -> Iterator[str]:
    """Yield one line per step, with its seconds if it has ended."""
    seconds = {line["step"]: line["seconds"] for line in results if line.get("event") == "end"}
    failed = {line["step"] for line in results if "failed" in line}
    started = [line["step"] for line in results if line.get("event") == "start"]
    for step in [*CHECKS, *TIMINGS]:
        if step in started:
            duration = f"{seconds[step]:.1f} s" if step in seconds else "NOT ended"
            yield f"{step:12s} {duration}" + (", with failures" if step in failed else "")


def format_training_steps(results: Sequence[JsonDict]) -> Iterator[str]:
    """Yield one line per network and kernels, with its speed relative to the references."""
    steps = {(line["network"], line["kernels"]): line for line in results if {"network", "kernels", "ms"} <= set(line)}
    if steps:
        yield _format_cells(
            "network",
            "kernels",
            *("harmonic", "batch", "est. ms", "ms", "images/s", "GB"),
            *map("vs {}".format, REFERENCES),
        )
    for (network, kernels), step in steps.items():
        speed = _compute_speed(step)
        references = [steps.get((network, name)) for name in REFERENCES]
        ratios = ["" if reference is None else f"{speed / _compute_speed(reference):.2f}" for reference in references]
        estimated = f"{step['estimated_ms']:.2f}" if step.get("estimated_ms") else ""
        numbers = (step["batch"], estimated, f"{step['ms']:.2f}", f"{speed:.0f}", f"{step['peak_gb']:.2f}")
        yield _format_cells(network, kernels, step.get("harmonic_layers", ""), *numbers, *ratios)


def _format_cells(network: str, kernels: str, *values: object) -> str:
    return f"{network:8s} {kernels:18s}" + "".join(f"{value!s:>12s}" for value in values)


def _compute_speed(step: JsonDict) -> float:
    """Return images per second."""
    return 1000 * float(step["batch"]) / max(float(step["ms"]), 1e-6)


def format_layers(results: Sequence[JsonDict]) -> Iterator[str]:
    """Yield one line per layer: its times, ms."""
    layers = [line for line in results if line["step"] == "layers" and "dense_ms" in line]
    names = [key for key in (layers[0] if layers else ()) if key.endswith("_ms")]
    if names:
        yield f"{'layer, ms':22s}" + "".join(f"{name.removesuffix('_ms'):>16s}" for name in names)
    for line in layers:
        yield f"{line['layer']:22s}" + "".join(f"{line[name]:16.3f}" for name in names)
