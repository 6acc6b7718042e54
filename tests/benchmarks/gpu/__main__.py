"""Measure this project on one GPU within minutes: the most telling first, every number on the disk at once.

    python tests/benchmarks/gpu --out OUT --seconds 470 --sample sample.h5         # all steps
    python tests/benchmarks/gpu --out OUT --steps compiled,e2cnn                   # some
    python tests/benchmarks/gpu --out OUT --tiny                                   # on a CPU, to see that it runs

First, side by side, what is right or wrong: kernels are compiled, outputs, gradients and bits compared, a training is
killed and resumed, two processes share the GPU. Then, one after the other, what is timed. A step that fails, hangs or
loses the GPU ends alone: the next one begins in a new process. OUT/results.jsonl gets a line for each number,
OUT/table.txt a table at the end. The exit status is 0 if no step failed, else 1.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from processes import EXIT_DEVICE_LOST, Settings, run_one_by_one, run_side_by_side
from results import read_results, record
from schedule import CHECKS, NETWORKS_DIR, TIMINGS
from table import format_results

if TYPE_CHECKING:
    from campaign import Campaign

# What some steps import: with neither internet nor an installation, each has to be brought along
PACKAGES = (
    *("torch", "triton", "numpy", "pydantic", "e2cnn", "scipy", "sympy"),  # of all steps
    *("h5py", "pandas", "rich", "submitit", "filelock", "astropy"),  # of data, resume and prediction
)
MIN_STEP_SECONDS = 5.0  # for which a step is worth starting


def main() -> int:
    """Run the command line; return its exit status."""
    options = _parse_options()
    settings = Settings(options.out, time.time() + options.seconds, options.tiny, options.sample, options.networks)
    if options.run:
        return run_steps(settings, options.steps)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the sessions of steps end, too
    options.out.mkdir(parents=True, exist_ok=True)
    num_before = len(read_results(options.out))
    record(options.out, "campaign", missing_packages=[name for name in PACKAGES if find_spec(name) is None])
    try:
        run_side_by_side(settings, [step for step in CHECKS if step in options.steps])
        run_one_by_one(settings, [step for step in TIMINGS if step in options.steps])
    finally:
        shutil.rmtree(options.out / NETWORKS_DIR, ignore_errors=True)  # gigabytes
    lines = list(format_results(read_results(options.out)))
    (options.out / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(any("failed" in line for line in read_results(options.out)[num_before:]))


def run_steps(settings: Settings, steps: list[str]) -> int:
    """Run steps in this process, as long as its device is usable; return the exit status."""
    from campaign import Campaign  # imports torch, which the waiting process does without
    from networks import use_gpu_kernels_on_cpu

    for step in steps:
        if time.time() > settings.deadline - MIN_STEP_SECONDS:
            break
        start = time.time()
        deadline = min(settings.deadline, start + settings.get_limit(step))
        campaign = Campaign(settings.out_dir, step, deadline, settings.is_tiny, settings.sample, settings.networks)
        if settings.is_tiny:
            use_gpu_kernels_on_cpu()
        record(settings.out_dir, step, event="start")
        if not (campaign.is_cuda or settings.is_tiny):
            record(settings.out_dir, step, failed="torch sees no GPU; expected one, or --tiny")
            return 0
        if not run_step(campaign):
            return EXIT_DEVICE_LOST
        record(settings.out_dir, step, event="end", seconds=round(time.time() - start, 1))
    return 0


def run_step(campaign: Campaign) -> bool:
    """Run a step; return whether the next one can run in this process."""
    module, function = (CHECKS | TIMINGS)[campaign.step].function.split(".")
    try:
        getattr(import_module(module), function)(campaign)
    except Exception as error:  # the next step begins nevertheless
        traceback.print_exc()
        record(campaign.out_dir, campaign.step, failed=f"{type(error).__name__}: {error}"[:300])
    return campaign.is_device_usable()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = [*CHECKS, *TIMINGS]
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--seconds", type=float, default=470.0, help="for all steps (%(default)s)")
    parser.add_argument("--steps", default=",".join(steps), help="only these (%(default)s)")
    parser.add_argument("--sample", type=Path, help="galaxies to train on, laid out as Galaxy10_DECals.h5")
    parser.add_argument("--networks", default="", help="whose training steps are timed, as D16,C4,cnn (all)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on a CPU, in Triton's interpreter")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)  # steps in this process
    options = parser.parse_args()
    options.steps = options.steps.split(",")
    if unknown := [step for step in options.steps if step not in steps]:
        parser.error(f"--steps: got {', '.join(unknown)}; expected some of {', '.join(steps)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
