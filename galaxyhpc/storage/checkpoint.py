"""Checkpoints that cannot lie: written aside, fsynced, renamed, and verified by hash when loaded.

checkpoints/step_000840/ holds state.pt and MANIFEST.json (SHA-256, bytes, step, world size, run id, settings). A
directory that does not agree with its manifest goes to checkpoints/quarantine/ and the previous one is taken. The
hash is that of what was meant to be written: a disk that stores something else is found out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import torch

from galaxyhpc.config.schema import RunConfig, flatten
from galaxyhpc.storage.files import fsync, sha256
from galaxyhpc.storage.run_dir import RunDir

MAX_CHECKPOINTS = 2  # the newest may be damaged by what stopped the run


class CheckpointError(RuntimeError):
    """A checkpoint that does not agree with its manifest."""


class ConfigChangedError(RuntimeError):
    """A run whose settings are no longer those it was begun with."""


def save(
    run: RunDir, step: int, world_size: int, state: dict[str, Any], settings: dict[str, Any] | None = None
) -> Path:
    """Write a checkpoint that appears whole, and remove all but the newest `KEPT`.

    `settings` are those that decide the weights, kept for `refuse_drift`. Where the disk is full (OSError) nothing
    is left of the new one and the older ones stay.
    """
    final = run.checkpoint_dir / f"step_{step:08d}"
    if final.exists():
        return final  # the same step of the same run: the same bits
    aside = run.checkpoint_dir / f".step_{step:08d}.{socket.gethostname()}.{os.getpid()}"
    _remove_leftovers(run)
    try:
        _write_checkpoint(
            aside, state, {"step": step, "world_size": world_size, "run_id": run.run_id, "settings": settings}
        )
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync(run.checkpoint_dir)
    for old in list_checkpoints(run)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(old)
    return final


def _write_checkpoint(directory: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write state.pt and its manifest, durably."""
    directory.mkdir(parents=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)  # into memory: to a full disk it would raise something that does not say so
    content = buffer.getbuffer()
    (directory / "state.pt").write_bytes(content)
    fsync(directory / "state.pt")
    digest = hashlib.sha256(content).hexdigest()
    manifest = {"sha256": digest, "bytes": len(content), **metadata, "torch": torch.__version__}
    (directory / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))
    fsync(directory / "MANIFEST.json")
    fsync(directory)


def _remove_leftovers(run: RunDir) -> None:
    for aside in run.checkpoint_dir.glob(".step_*"):  # of a process killed while it was saving
        shutil.rmtree(aside, ignore_errors=True)


def list_checkpoints(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, oldest first, none of them verified."""
    return sorted(run.checkpoint_dir.glob("step_*"), key=lambda path: path.name)


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error
    if wanted[0] != run_id:
        raise CheckpointError(f"it belongs to run {wanted[0]}")
    if size != wanted[1]:
        raise CheckpointError(f"state.pt has {size} bytes, the manifest says {wanted[1]}")
    if sha256(path / "state.pt") != wanted[2]:
        raise CheckpointError("state.pt does not have the SHA-256 that the manifest says")
    return manifest


def latest_valid(run: RunDir) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest valid checkpoint and its manifest, or None where there is none; changes nothing."""
    for path in reversed(list_checkpoints(run)):
        try:
            return path, verify(path, run.run_id)
        except CheckpointError:
            continue
    return None


def load_latest(run: RunDir) -> dict[str, Any] | None:
    """Return the state in the newest valid checkpoint, or None where there is none; changes nothing.

    Raises
    ------
    CheckpointError
    """
    valid = latest_valid(run)
    if valid is None:
        return None
    try:
        state: dict[str, Any] = torch.load(valid[0] / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # its manifest agrees, so that it was not damaged but made by somebody else
        said = f"{type(error).__name__}, nothing of it was executed; allowed: what training wrote: move it away"
        raise CheckpointError(f"{valid[0]}: cannot be loaded: {said}") from error
    return state


def check_config_unchanged(run: RunDir, config: RunConfig) -> None:
    """Raise where settings that decide the weights are not those that the run was begun with, naming each.

    Where a run is computed, how it is evaluated and where its data lie may change: `RunConfig.identity` leaves them
    out.

    Raises
    ------
    DriftError
    """
    valid = latest_valid(run)
    was = flatten(valid[1].get("settings") or {}) if valid else {}
    now = flatten(config.get_identity())
    found = [
        f"{key}: begun with {was.get(key, 'none')}, config.json says {now.get(key, 'none')}"
        for key in sorted(was.keys() | now.keys())
        if was and was.get(key) != now.get(key)
    ]
    if not found and config.run_id != run.run_id:
        found = [f"these are the settings of {config.run_id}"]
    if found:
        raise ConfigChangedError(
            f"{run.config_file}: changed after the run was begun ({'; '.join(found)}); launch the sweep again, which "
            "writes the file anew, or ask for other settings in a sweep of another name"
        )


def quarantine_damaged(run: RunDir) -> list[str]:
    """Move damaged checkpoints out of the way, newest first, and say which and why: one line each."""
    lines = []
    for path in reversed(list_checkpoints(run)):
        try:
            verify(path, run.run_id)
            break
        except CheckpointError as error:
            away = run.checkpoint_dir / "quarantine" / f"{path.name}.{time.time_ns()}"
            away.parent.mkdir(exist_ok=True)
            path.rename(away)
            lines.append(f"checkpoint {path.name} is damaged ({error}); it was moved to {away}")
    return lines
