"""A table of all networks of the study: size, construction, symmetry, a training step. Takes tens of minutes.

    python tests/benchmarks/networks.py OUT.json [PRESET ...]

Parameters and multiply-adds are those at the study's scale: 257 px, where every network is exact. A step is forward,
backward and AdamW on two images of 129 px, in a process of its own, the second of two; its memory is the process's
peak. Symmetry is that of preflight: a narrow copy at 33 px. Cold means an empty cache of filter bases.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import BASELINES, ModelConfig, TrainConfig
from galaxyhpc.launch import smoke_test

SIZE, STEP_SIZE, IMAGES = 257, 129, 2


def main() -> None:
    out, *names = sys.argv[1:]
    if out == "measure":
        print(json.dumps(measure(*names)))
        return
    results = {"machine": describe_machine(), "networks": {}}
    if Path(out).exists():
        results = json.loads(Path(out).read_text())
    for name in track(names or PRESETS, "networks"):
        with tempfile.TemporaryDirectory() as cache:
            cold = run_process(name, "build", cache)
            results["networks"][name] = cold | run_process(name, "all", cache)
        Path(out).write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)


def describe_machine() -> dict[str, object]:
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def run_process(name: str, part: str, cache: str) -> dict[str, object]:
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "measure", name, part]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        return {"failed": process.stderr.strip().splitlines()[-1][:200]}
    return json.loads(process.stdout.splitlines()[-1])


def measure(name: str, part: str) -> dict[str, object]:
    import torch

    from galaxyhpc.models import profile
    from galaxyhpc.models.build_model import build_model
    from galaxyhpc.training.optimizer import make_optimizer

    settings = ModelConfig.model_validate(PRESETS[name])
    if settings.architecture in BASELINES:
        settings = settings.model_copy(update={"pretrained": False})  # weights do not matter here
    start = time.perf_counter()
    model = build_model(settings, STEP_SIZE)
    build_seconds = time.perf_counter() - start
    if part == "build":
        return {"build_cold_s": round(build_seconds, 2)}
    network_profile = profile.profile_network(settings, SIZE)
    symmetry, problem = smoke_test.check_tiny_model(settings, TrainConfig())
    optimizer = make_optimizer(model, TrainConfig())
    images, labels = torch.rand(IMAGES, 3, STEP_SIZE, STEP_SIZE), torch.arange(IMAGES)
    for _ in range(2):
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        step_seconds = time.perf_counter() - start
    peak_line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "parameters": network_profile.parameters,
        "multiply_adds": network_profile.multiply_adds,
        "build_warm_s": round(build_seconds, 2),
        "exact": symmetry.exact_error,
        "at_45": symmetry.error_by_angle[45.0],
        "problem": problem,
        "step_s": round(step_seconds, 2),
        "peak_mb": int(peak_line.split()[1]) // 1024,
    }


def print_table(results: dict[str, object]) -> None:
    table = Table(title=str(results["machine"]))
    headers = ("network", "parameters", "multiply-adds", "build cold s", "warm s", "exact", "45°", "step s", "peak MB")
    for header in headers:
        table.add_column(header, justify="right" if header != "network" else "left")
    for name, row in results["networks"].items():  # type: ignore[attr-defined]
        if "parameters" not in row:
            table.add_row(name, str(row))
            continue
        exact = "claims none" if row["exact"] is None else f"{row['exact']:.0e}"
        size = (f"{row['parameters'] / 1e6:.2f} M", f"{row['multiply_adds'] / 1e9:.1f} G")
        times = (f"{row.get('build_cold_s')}", f"{row['build_warm_s']}")
        table.add_row(name, *size, *times, exact, f"{row['at_45']:.0%}", f"{row['step_s']}", f"{row['peak_mb']}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
