"""How a run's network computes: the precision of float32 products, and the layers without a dense filter.

A GPU's products of float32 are TF32 (10 bits of mantissa) only in a training with `train.precision: tf32`; trainings in
other precisions, evaluations and all uses of trained weights have full float32.

The kernels agree to rounding, so that a run that changed them would not resume bit-for-bit. `paths.json` holds
the choice for training and for inference, layer by layer; all processes, later starts and readers of the weights follow
it. A run without the file, started before there was a choice, is dense.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.models.profile import get_micro_batch_size
from galaxyhpc.runtime import native
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.steerable.kernels import cpu, selection
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

PHASES = ("training", "inference")
KERNELS: dict[str, selection.LayerKernel] = {"dense": False, "harmonic": True, "fused": "fused"}  # of a layer
MAX_FILE_BYTES = 1_000_000

log = logging.getLogger(__name__)


class KernelChoiceError(ValueError):
    """A damaged paths.json."""


def get_choice_path(run: RunDir) -> Path:
    """Return the file of a run's choice."""
    return run.path / "paths.json"


def select_and_save(run: RunDir, network: nn.Module, config: RunConfig, process: Process) -> None:
    """Apply the run's stored choice to the network, or choose and save at its start; rank 0 decides for all."""
    names = list(selection.get_steerable_layers(network))
    training_choice: selection.KernelChoice = {}
    _set_tf32(config.train.precision == "tf32")
    if not names:
        return
    if process.is_main:
        choice = read_choice(run)
        if choice is None and not checkpoint.list_checkpoints(run):
            choice = _choose_kernels(network, config, process.device)
            write_text(get_choice_path(run), json.dumps(choice, indent=1) + "\n")
        training_choice = _get_phase_choice(run, choice, "training", names)
    kernels = list(KERNELS.values())
    sums = process.all_reduce_sum([float(kernels.index(training_choice.get(name, False))) for name in names])
    shared_choice = {name: kernels[round(value)] for name, value in zip(names, sums, strict=True)}
    _apply_choice(run, network, shared_choice, process.device)


def load_selection(run: RunDir, network: nn.Module, device: torch.device) -> None:
    """Apply the run's choice for inference to the network, on any machine.

    Raises
    ------
    KernelChoiceError, OSError
    """
    names = list(selection.get_steerable_layers(network))
    _set_tf32(False)
    _apply_choice(run, network, _get_phase_choice(run, read_choice(run), "inference", names), device)


def describe_kernels(network: nn.Module) -> str:
    """Describe how many of a network's steerable layers are harmonic, and fused; "" where it has none."""
    layers = selection.get_steerable_layers(network).values()
    num_fused = sum(layer.is_fused for layer in layers)
    num_harmonic = sum(layer.harmonic for layer in layers) - num_fused
    fused_text = f", {num_fused} fused" if num_fused else ""
    return f"{num_harmonic} of {len(layers)} layers harmonic{fused_text}" if layers else ""


def _set_tf32(is_allowed: bool) -> None:
    """Decide for matrix products and convolutions alike; torch's defaults allow it in convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = is_allowed
    torch.backends.cudnn.allow_tf32 = is_allowed


def read_choice(run: RunDir) -> dict[str, selection.KernelChoice] | None:
    """Return the choice for training and for inference; None where there is no file.

    Raises
    ------
    KernelChoiceError, OSError
    """
    path = get_choice_path(run)
    if not path.exists() and not path.is_symlink():
        return None
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise _make_error(run, "a directory or a large file")
    try:
        choice = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _make_error(run, "invalid JSON") from None
    if not isinstance(choice, dict) or set(choice) != set(PHASES) or not all(map(_is_valid_choice, choice.values())):
        raise _make_error(run, "values other than true, false or fused for each layer, in training and inference")
    return choice


def _is_valid_choice(value: Any) -> bool:
    return isinstance(value, dict) and all(type(kernel) is bool or kernel == "fused" for kernel in value.values())


def _make_error(run: RunDir, got: str) -> KernelChoiceError:
    advice = "the file that training wrote; restore it from a copy: without it all layers are dense"
    return KernelChoiceError(f"{get_choice_path(run)}: got {got}; expected {advice}")


def _get_phase_choice(
    run: RunDir, choice: dict[str, selection.KernelChoice] | None, phase: str, layer_names: list[str]
) -> selection.KernelChoice:
    if choice is None:
        return {}
    if set(choice[phase]) != set(layer_names):
        raise _make_error(run, "layers that differ from the network's")
    return choice[phase]


def _choose_kernels(network: nn.Module, config: RunConfig, device: torch.device) -> dict[str, selection.KernelChoice]:
    if (convolution := config.resources.convolution) != "auto":
        return dict.fromkeys(PHASES, dict.fromkeys(selection.get_steerable_layers(network), KERNELS[convolution]))
    size, micro_batch = config.data.image_size, get_micro_batch_size(config)
    num_micro_batches = math.ceil(config.train.batch_size / config.resources.num_tasks / micro_batch)
    training = selection.BatchShape(micro_batch, size, num_micro_batches)
    inference = selection.BatchShape(config.evaluate.batch_size, size)
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    choice = {"training": selection.choose_kernels(network, training, device, dtype, is_training=True)}
    _set_tf32(False)  # as in every evaluation
    choice["inference"] = selection.choose_kernels(network, inference, device, torch.float32, is_training=False)
    _set_tf32(config.train.precision == "tf32")
    return choice


def _apply_choice(run: RunDir, network: nn.Module, choice: selection.KernelChoice, device: torch.device) -> None:
    if not selection.apply_choice(network, choice, device):
        missing = "no Triton" if device.type == "cuda" else native.explain_missing(cpu.SOURCE)
        log.warning("%s: all layers are dense, results differ by rounding: %s", get_choice_path(run), missing)
