"""Which layers of a run are computed without their dense filter: chosen when it begins, and kept beside its weights.

The two ways agree to rounding, so that a run that changed them on the way would end with other bits. `paths.json` holds
the choice for training and for inference, layer by layer; all processes, all later starts and all that load the weights
follow it. A run without the file, begun before there was a choice, is dense.
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
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

PHASES = ("training", "inference")
MAX_FILE_BYTES = 1_000_000

log = logging.getLogger(__name__)


class KernelChoiceError(ValueError):
    """A paths.json that training did not write."""


def get_choice_path(run: RunDir) -> Path:
    """Return where a run keeps its choice."""
    return run.path / "paths.json"


def select_and_save(run: RunDir, network: nn.Module, config: RunConfig, process: Process) -> None:
    """Let the network train as the run began to, choosing where it begins now: rank 0's answer holds for all."""
    names = list(selection.get_steerable_layers(network))
    mine: selection.KernelChoice = {}
    if not names:
        return
    if process.is_main:
        known = read_choice(run)
        if known is None and not checkpoint.list_checkpoints(run):
            known = _choose_kernels(network, config, process.device)
            write_text(get_choice_path(run), json.dumps(known, indent=1) + "\n")
        mine = _get_phase_choice(run, known, "training", names)
    told = process.all_reduce_sum([float(mine.get(name, False)) for name in names])
    _apply_choice(run, network, {name: value > 0 for name, value in zip(names, told, strict=True)}, process.device)


def load_selection(run: RunDir, network: nn.Module, device: torch.device) -> None:
    """Let the network be evaluated as the run says, on whatever machine.

    Raises
    ------
    PathsError, OSError
    """
    names = list(selection.get_steerable_layers(network))
    _apply_choice(run, network, _get_phase_choice(run, read_choice(run), "inference", names), device)


def read_choice(run: RunDir) -> dict[str, selection.KernelChoice] | None:
    """Return the choice for each use; None where there is no file.

    Raises
    ------
    PathsError, OSError
    """
    path = get_choice_path(run)
    if not path.exists() and not path.is_symlink():
        return None
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise _make_error(run, "something else than a small file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _make_error(run, "no JSON") from None
    if not isinstance(found, dict) or set(found) != set(PHASES) or not all(map(_is_valid_choice, found.values())):
        raise _make_error(run, "no choice of true or false for training and inference")
    return found


def _is_valid_choice(value: Any) -> bool:
    return isinstance(value, dict) and all(type(each) is bool for each in value.values())


def _make_error(run: RunDir, got: str) -> KernelChoiceError:
    allowed = "what training wrote: bring it back from a copy, for without it all layers are dense, in other bits"
    return KernelChoiceError(f"{get_choice_path(run)}: found {got}; allowed: {allowed}")


def _get_phase_choice(
    run: RunDir, choice: dict[str, selection.KernelChoice] | None, phase: str, layer_names: list[str]
) -> selection.KernelChoice:
    if choice is None:
        return {}
    if set(choice[phase]) != set(layer_names):
        raise _make_error(run, "other layers than the network's")
    return choice[phase]


def _choose_kernels(network: nn.Module, config: RunConfig, device: torch.device) -> dict[str, selection.KernelChoice]:
    if (asked := config.resources.convolution) != "auto":
        return dict.fromkeys(PHASES, dict.fromkeys(selection.get_steerable_layers(network), asked == "harmonic"))
    size, count = config.data.image_size, get_micro_batch_size(config)
    low = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    step = selection.BatchShape(count, size, math.ceil(config.train.batch_size / config.resources.num_tasks / count))
    batch = selection.BatchShape(config.evaluate.batch_size, size)
    training = selection.choose_kernels(network, step, device, low, is_training=True)
    return {
        "training": training,
        "inference": selection.choose_kernels(network, batch, device, torch.float32, is_training=False),
    }


def _apply_choice(run: RunDir, network: nn.Module, choice: selection.KernelChoice, device: torch.device) -> None:
    if not selection.apply_choice(network, choice, device):
        missing = "no Triton" if device.type == "cuda" else "no C++ compiler"
        log.warning("%s: %s here: all layers are dense, whose last bits differ", get_choice_path(run), missing)
