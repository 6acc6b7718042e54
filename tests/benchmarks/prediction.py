"""Predicted and measured time of a training epoch. A minute or two on a CPU, less than one on a GPU.

    python tests/benchmarks/prediction.py OUT.json [--device cuda --size 255 --group C4]

The network is measured as in `galaxyhpc.benchmark`, the time of an epoch is predicted, and a run of four epochs on
generated galaxies is trained by `jobs.train`. The measured epoch is the median of those after the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from galaxyhpc.benchmark import forecast
from galaxyhpc.benchmark.environment import describe_environment
from galaxyhpc.benchmark.implementations import Case
from galaxyhpc.benchmark.pipelines import training
from galaxyhpc.benchmark.timing import PARTS, TimingBudget, compare_implementations
from galaxyhpc.config.schema import (
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

EPOCHS, GALAXIES = 4, {"cpu": 400, "cuda": 800}
BUDGET = TimingBudget(3, 0.5)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--size", type=int, default=255 if on_gpu else 33)
    parser.add_argument("--group", default="C4")
    parser.add_argument("--scale", type=float, default=1.0 if on_gpu else 0.5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {"machine": describe_environment(options.device, options.threads), "networks": {}}
    model = ModelConfig(group=options.group, scale=options.scale)
    case = Case(model, options.size, options.batch, options.device, on_gpu, options.threads)
    config = make_config(case)
    results["networks"]["one"] = compare_implementations(case, ["ours"], PARTS, BUDGET, lambda results: None)
    results["data"] = training.measure_pipeline(options.size, options.batch, options.device, BUDGET)
    (prediction,) = forecast.forecast_runs([config], forecast.parse_benchmark(results))
    epoch_seconds = train(config)
    measured = median(epoch_seconds[1:])
    results |= {"predicted_epoch_s": prediction.epoch_seconds, "measured_epoch_s": measured, "epochs_s": epoch_seconds}
    results |= {"predicted_to_measured": prediction.epoch_seconds / measured}
    write_text(options.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: value for key, value in results.items() if "epoch" in key or "_to_" in key}))


def make_config(case: Case) -> RunConfig:
    """Return the settings of a short run of the measured network."""
    return RunConfig(
        model=case.model,
        data=DataConfig(
            image_size=case.image_size,
            demo=DemoConfig(galaxies=GALAXIES[case.device], size=32 if case.image_size == 33 else 64),
        ),
        train=TrainConfig(epochs=EPOCHS, batch_size=case.batch_size, precision=case.precision),
        evaluate=EvaluateConfig(conditions=("clean",)),
        resources=ResourcesConfig(cpus_per_task=case.num_threads, gpus_per_node=1 if case.device == "cuda" else 0),
    )


def train(config: RunConfig) -> list[float]:
    """Train; return the recorded seconds of each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "sweep" / config.run_id)
        data = config.data.model_copy(update={"cache": folder})
        write_text(run.config_file, config.model_copy(update={"data": data}).model_dump_json())
        subprocess.run([sys.executable, "-m", "jobs.train", str(run.path)], check=True)
        return [event["seconds"] for event in run.read_events() if event["event"] == "epoch"]


if __name__ == "__main__":
    main()
