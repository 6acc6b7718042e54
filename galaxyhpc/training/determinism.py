"""What torch is told for a training that ends with the same bits, twice and after a resume.

On a CPU our networks give the same bits without it. On a GPU:

* cuDNN takes deterministic algorithms and measures none: the fastest in a measurement is not the same every time.
* cuBLAS gets workspaces of a fixed size, without which it may split sums differently; products in bfloat16 are not
  summed in bfloat16, however they are split.
* Operations without a deterministic kernel are avoided: tests/training/test_step.py has the list. torch's own switch,
  `use_deterministic_algorithms`, stays off: it also replaces kernels that are deterministic for our indices, by sorts
  that read the indices on the host in some versions.

What remains: a convolution whose workspace does not fit into the memory left takes another algorithm. Such failed
allocations are counted and reported.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

CUBLAS_WORKSPACES = ":4096:8"  # eight of 4 MiB; NVIDIA's guide to cuBLAS, "Results reproducibility"

log = logging.getLogger(__name__)


def make_deterministic() -> None:
    """Set what torch computes with; call it before anything is computed on a GPU."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACES  # read at the first product


def describe_determinism() -> dict[str, Any]:
    """Return what is set, for the provenance of a run."""
    return {
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspaces": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "bfloat16_sums": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    }


def warn_of_failed_allocations(device: torch.device) -> None:
    """Warn where memory was too short for an algorithm of cuDNN, which then takes another one."""
    count = torch.cuda.memory_stats(device).get("num_ooms", 0) if device.type == "cuda" else 0
    if count:
        torch.cuda.reset_accumulated_memory_stats(device)
        log.warning(
            "%d allocations of GPU memory failed, so cuDNN took other algorithms: another run may differ in its last "
            "bits; set resources.micro_batch to half",
            count,
        )
