"""The hardware and software of a benchmark."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from galaxyhpc.storage.provenance import collect_provenance


def describe_environment(device: str, threads: int) -> dict[str, Any]:
    """Describe the device, the software and the state of the code."""
    provenance = collect_provenance()
    name = torch.cuda.get_device_name() if device == "cuda" else get_processor_name()
    return {
        "device": device,
        "name": name,
        "processor": get_processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": provenance["commit"],
        "uncommitted": provenance["uncommitted"],
    }


def get_processor_name() -> str:
    """Return the CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
