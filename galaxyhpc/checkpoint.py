"""Checkpoints that cannot lie: written aside, fsynced, renamed, and verified by hash when loaded.

checkpoints/step_000840/ holds state.pt and MANIFEST.json (SHA-256, bytes, step, world size, run id). A directory that
does not agree with its manifest goes to checkpoints/quarantine/ and the previous one is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import torch

from galaxyhpc.rundir import RunDir, sync

KEPT = 2  # the newest may be damaged by what stopped the run


class CheckpointError(RuntimeError):
    """A checkpoint that does not agree with its manifest."""


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(run: RunDir, step: int, world: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint that appears whole, and remove all but the newest `KEPT`."""
    final = run.checkpoints / f"step_{step:08d}"
    if final.exists():
        return final  # the same step of the same run: the same bits
    aside = run.checkpoints / f".step_{step:08d}.{socket.gethostname()}.{os.getpid()}"
    _remove_leftovers(run)
    aside.mkdir(parents=True)
    torch.save(state, aside / "state.pt")
    sync(aside / "state.pt")
    manifest = {
        "sha256": sha256(aside / "state.pt"),
        "bytes": (aside / "state.pt").stat().st_size,
        "step": step,
        "world_size": world,
        "run_id": run.run_id,
        "torch": torch.__version__,
    }
    (aside / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))
    sync(aside / "MANIFEST.json")
    sync(aside)
    aside.rename(final)
    sync(run.checkpoints)
    for old in found(run)[:-KEPT]:
        shutil.rmtree(old)
    return final


def _remove_leftovers(run: RunDir) -> None:
    for aside in run.checkpoints.glob(".step_*"):  # of a process killed while it was saving
        shutil.rmtree(aside, ignore_errors=True)


def found(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, oldest first, none of them verified."""
    return sorted(run.checkpoints.glob("step_*"), key=lambda path: path.name)


def verify(path: Path, run_id: str) -> dict[str, Any]:
    """Return the manifest of a checkpoint directory whose contents agree with it.

    Raises
    ------
    CheckpointError
        Naming what disagrees.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / "MANIFEST.json").read_text())
        wanted = (manifest["run_id"], manifest["bytes"], manifest["sha256"])
        size = (path / "state.pt").stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error
    if wanted[0] != run_id:
        raise CheckpointError(f"it belongs to run {wanted[0]}")
    if size != wanted[1]:
        raise CheckpointError(f"state.pt has {size} bytes, the manifest says {wanted[1]}")
    if sha256(path / "state.pt") != wanted[2]:
        raise CheckpointError("state.pt does not have the SHA-256 that the manifest says")
    return manifest


def load_newest(run: RunDir) -> dict[str, Any] | None:
    """Return the state in the newest valid checkpoint, or None where there is none; changes nothing."""
    for path in reversed(found(run)):
        try:
            verify(path, run.run_id)
        except CheckpointError:
            continue
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return state
    return None


def quarantine_damaged(run: RunDir) -> list[str]:
    """Move damaged checkpoints out of the way, newest first, and say which and why: one line each."""
    lines = []
    for path in reversed(found(run)):
        try:
            verify(path, run.run_id)
            break
        except CheckpointError as error:
            away = run.checkpoints / "quarantine" / f"{path.name}.{time.time_ns()}"
            away.parent.mkdir(exist_ok=True)
            path.rename(away)
            lines.append(f"checkpoint {path.name} is damaged ({error}); it was moved to {away}")
    return lines
