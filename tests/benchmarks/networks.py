"""The table of all networks of the study: size, building, symmetry, a training step. Takes tens of minutes.

    python tests/benchmarks/networks.py OUT.json [PRESET ...]

Parameters and multiply-adds are those at the study's scale: 257 px, where every network is exact. A step is forward,
backward and AdamW on two images of 129 px, in a process of its own, the second of two; its memory is the process's
peak. Symmetry is that of preflight: a narrow twin at 33 px. Cold is with an empty cache of filter bases.
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
    if out == "one":
        print(json.dumps(measure(*names)))
        return
    found = {"machine": machine(), "networks": {}}
    if Path(out).exists():
        found = json.loads(Path(out).read_text())
    for name in track(names or PRESETS, "networks"):
        with tempfile.TemporaryDirectory() as cache:
            cold = one(name, "build", cache)
            found["networks"][name] = cold | one(name, "all", cache)
        Path(out).write_text(json.dumps(found, indent=1) + "\n")
    show(found)


def machine() -> dict[str, object]:
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def one(name: str, what: str, cache: str) -> dict[str, object]:
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "one", name, what]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode:
        return {"failed": answer.stderr.strip().splitlines()[-1][:200]}
    return json.loads(answer.stdout.splitlines()[-1])


def measure(name: str, what: str) -> dict[str, object]:
    import torch

    from galaxyhpc.models import profile
    from galaxyhpc.models.build_model import build_model
    from galaxyhpc.training.optimizer import make_optimizer

    settings = ModelConfig.model_validate(PRESETS[name])
    if settings.architecture in BASELINES:
        settings = settings.model_copy(update={"pretrained": False})  # weights decide nothing here
    begun = time.perf_counter()
    model = build_model(settings, STEP_SIZE)
    built = time.perf_counter() - begun
    if what == "build":
        return {"build_cold_s": round(built, 2)}
    counted = profile.profile_network(settings, SIZE)
    symmetry, problem = smoke_test.check_tiny_model(settings, TrainConfig())
    optimizer = make_optimizer(model, TrainConfig())
    images, labels = torch.rand(IMAGES, 3, STEP_SIZE, STEP_SIZE), torch.arange(IMAGES)
    for _ in range(2):
        begun = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        step = time.perf_counter() - begun
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "build_warm_s": round(built, 2),
        "exact": symmetry.exact_error,
        "at_45": symmetry.error_by_angle[45.0],
        "problem": problem,
        "step_s": round(step, 2),
        "peak_mb": int(peak.split()[1]) // 1024,
    }


def show(found: dict[str, object]) -> None:
    table = Table(title=str(found["machine"]))
    heads = ("network", "parameters", "multiply-adds", "build cold s", "warm s", "exact", "45°", "step s", "peak MB")
    for head in heads:
        table.add_column(head, justify="right" if head != "network" else "left")
    for name, row in found["networks"].items():  # type: ignore[attr-defined]
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
