"""Time and memory of a report: `python tests/benchmarks/aggregate.py [OUT.json] [--runs N]`, on generated inputs.

1,000 runs (200 networks, 5 seeds) of 100 epochs, each evaluated on 3,547 galaxies under 123 conditions; predictions are
copies of eight templates without logits, which a report never reads. Every report is made by its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from galaxyhpc.config import conditions
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.evaluation import results
from galaxyhpc.storage.run_dir import RunDir

GROUPS = [None, *(f"C{n}" for n in range(1, 17)), *(f"D{n}" for n in range(1, 9))]  # 25
RATES = [round(1e-3 * 1.5**n, 6) for n in range(8)]
GALAXIES = 3547
CONDITIONS = conditions.DEFAULT_CONDITIONS[: conditions.DEFAULT_CONDITIONS.index("saturation") + 1]
PAIRS = [(name, severity) for name in CONDITIONS for severity in conditions.get_severities(name)]  # 123


def make_config(group: str | None, rate: float, seed: int) -> RunConfig:
    model = {"architecture": "steerable_cnn" if group else "cnn", "group": group}
    settings = {
        "model": model,
        "seed": seed,
        "train": {"learning_rate": rate},
        "evaluate": {"conditions": list(CONDITIONS)},
    }
    return RunConfig.model_validate(settings)


def save_template(run: RunDir, number: int) -> None:
    """Save the results of a network with an accuracy of 70 to 90 % on clean galaxies."""
    rng = np.random.default_rng(number)
    labels = rng.integers(10, size=GALAXIES).astype(np.uint8)
    logits = {}
    for index, pair in enumerate(PAIRS):
        is_correct = rng.random(GALAXIES) < 0.7 + 0.025 * number - 0.002 * index
        predicted = np.where(is_correct, labels, rng.integers(10, size=GALAXIES))
        logits[pair] = (3 * np.eye(10)[predicted] + rng.normal(size=(GALAXIES, 10))).astype(np.float32)
    indices = np.arange(GALAXIES, dtype=np.int32)
    results.save(run, results.RunLogits(indices, labels, indices // 2, logits, "a" * 64, "f" * 64, True, 1.5))


def write_run(run: RunDir, config: RunConfig, base: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.config_file.write_text(config.model_dump_json())
    run.results_file.write_text(base.results_file.read_text().replace(base.run_id, run.run_id))
    with h5py.File(base.predictions_file) as source, h5py.File(run.predictions_file, "w", libver="v110") as file:
        for name in source:
            if name != "logits":
                source.copy(name, file)
        file.attrs.update(dict(source.attrs) | {"run_id": run.run_id})
    numbers = {"train_loss": 1.0, "train_accuracy": 0.7, "validation_loss": 1.1, "validation_accuracy": 0.65}
    run.metrics_file.write_text("".join(json.dumps({"epoch": epoch, **numbers}) + "\n" for epoch in range(100)))
    run.record("evaluated")


def generate(sweep: Path, number: int) -> None:
    bases = [RunDir(sweep.parent / f"base{n}") for n in range(8)]
    for n, base in enumerate(bases):
        base.path.mkdir(parents=True)
        save_template(base, n)
    rows = []
    for group, rate, seed in list(product(GROUPS, RATES, range(5)))[:number]:
        config = make_config(group, rate, seed)
        run, model = RunDir(sweep / config.run_id), config.model
        write_run(run, config, bases[len(rows) % len(bases)])
        network = (model.architecture, model.group or "", model.width, model.head, model.scale)
        rows.append((run.run_id, *network, config.data.image_size, seed, 380000, 10**8, "demo"))
    names = "run_id arch group width head scale image_size seed parameters multiply_adds data"
    pd.DataFrame(rows, columns=names.split()).to_csv(sweep / "plan.csv", index=False)


def time_report(*arguments: str) -> dict[str, float]:
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "galaxyhpc.aggregate", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    seconds = time.monotonic() - start
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--directory", type=Path, help="kept, and used again where it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sweep = (options.directory or Path(scratch)) / "perf"
        if not sweep.exists():
            generate(sweep, options.runs)
        results = {
            "runs": options.runs,
            "conditions": len(PAIRS),
            "galaxies": GALAXIES,
            "machine": f"{os.cpu_count()} CPU cores",
            "without_intervals": time_report(str(sweep), "--no-intervals"),
            "with_intervals": time_report(str(sweep)),
        }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
