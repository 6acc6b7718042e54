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
from galaxyhpc.models.profile import images_per_pass
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

USES = ("training", "inference")
MOST_BYTES = 1_000_000

log = logging.getLogger(__name__)


class PathsError(ValueError):
    """A paths.json that training did not write."""


def paths_file(run: RunDir) -> Path:
    """Return where a run keeps its choice."""
    return run.path / "paths.json"


def settle(run: RunDir, network: nn.Module, config: RunConfig, process: Process) -> None:
    """Let the network train as the run began to, choosing where it begins now: rank 0's answer holds for all."""
    names = list(selection.layers(network))
    mine: selection.Paths = {}
    if not names:
        return
    if process.writes:
        known = read(run)
        if known is None and not checkpoint.found(run):
            known = _chosen(network, config, process.device)
            write_text(paths_file(run), json.dumps(known, indent=1) + "\n")
        mine = _of(run, known, "training", names)
    told = process.total([float(mine.get(name, False)) for name in names])
    _apply(run, network, {name: value > 0 for name, value in zip(names, told, strict=True)}, process.device)


def restore(run: RunDir, network: nn.Module, device: torch.device) -> None:
    """Let the network be evaluated as the run says, on whatever machine.

    Raises
    ------
    PathsError, OSError
    """
    names = list(selection.layers(network))
    _apply(run, network, _of(run, read(run), "inference", names), device)


def read(run: RunDir) -> dict[str, selection.Paths] | None:
    """Return the choice for each use; None where there is no file.

    Raises
    ------
    PathsError, OSError
    """
    path = paths_file(run)
    if not path.exists() and not path.is_symlink():
        return None
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise _refused(run, "something else than a small file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _refused(run, "no JSON") from None
    if not isinstance(found, dict) or set(found) != set(USES) or not all(map(_is_choice, found.values())):
        raise _refused(run, "no choice of true or false for training and inference")
    return found


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and all(type(each) is bool for each in value.values())


def _refused(run: RunDir, what: str) -> PathsError:
    allowed = "what training wrote: bring it back from a copy, for without it all layers are dense, in other bits"
    return PathsError(f"{paths_file(run)}: found {what}; allowed: {allowed}")


def _of(run: RunDir, known: dict[str, selection.Paths] | None, use: str, names: list[str]) -> selection.Paths:
    if known is None:
        return {}
    if set(known[use]) != set(names):
        raise _refused(run, "other layers than the network's")
    return known[use]


def _chosen(network: nn.Module, config: RunConfig, device: torch.device) -> dict[str, selection.Paths]:
    if (asked := config.resources.convolution) != "auto":
        return dict.fromkeys(USES, dict.fromkeys(selection.layers(network), asked == "harmonic"))
    size, count = config.data.image_size, images_per_pass(config)
    low = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    step = selection.Images(count, size, math.ceil(config.train.batch_size / config.resources.tasks / count))
    batch = selection.Images(config.evaluate.batch_size, size)
    training = selection.choose(network, step, device, low, training=True)
    return {"training": training, "inference": selection.choose(network, batch, device, torch.float32, training=False)}


def _apply(run: RunDir, network: nn.Module, wanted: selection.Paths, device: torch.device) -> None:
    if not selection.apply(network, wanted, device):
        missing = "no Triton" if device.type == "cuda" else "no C++ compiler"
        log.warning("%s: %s here: all layers are dense, whose last bits differ", paths_file(run), missing)
