"""Checkpoints: written to a temporary directory, fsynced, renamed, and verified by hash when loaded.

checkpoints/step_00000840/ holds state.pt and MANIFEST.json (SHA-256, bytes, step, world size, run id, settings). A
checkpoint that does not match its manifest moves to checkpoints/quarantine/ and the previous one is loaded. The hash
is computed in memory, before writing, so it also detects a disk that stored something else.
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
    """A checkpoint that does not match its manifest or cannot be loaded."""


class ConfigChangedError(RuntimeError):
    """A run whose config.json no longer has the settings that its checkpoints were trained with."""


def save(
    run: RunDir, step: int, world_size: int, state: dict[str, Any], settings: dict[str, Any] | None = None
) -> Path:
    """Write a checkpoint atomically, and remove all but the newest `MAX_CHECKPOINTS`.

    `settings` are those that decide the weights, kept for `check_config_unchanged`.

    Raises
    ------
    OSError
        The disk is full: nothing is left of the new checkpoint, and the older ones stay.
    """
    final = run.checkpoint_dir / f"step_{step:08d}"
    if final.exists():
        return final  # the same step of the same run has the same bits
    temporary = run.checkpoint_dir / f".step_{step:08d}.{socket.gethostname()}.{os.getpid()}"
    _remove_leftovers(run)
    try:
        _write_checkpoint(
            temporary, state, {"step": step, "world_size": world_size, "run_id": run.run_id, "settings": settings}
        )
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(run.checkpoint_dir)
    for old_checkpoint in list_checkpoints(run)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(old_checkpoint)
    return final


def _write_checkpoint(directory: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write and fsync state.pt and its manifest."""
    directory.mkdir(parents=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)  # into memory: on a full disk torch.save raises no OSError
    content = buffer.getbuffer()
    (directory / "state.pt").write_bytes(content)
    fsync(directory / "state.pt")
    digest = hashlib.sha256(content).hexdigest()
    manifest = {"sha256": digest, "bytes": len(content), **metadata, "torch": torch.__version__}
    (directory / "MANIFEST.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fsync(directory / "MANIFEST.json")
    fsync(directory)


def _remove_leftovers(run: RunDir) -> None:
    """Remove the temporary directories of processes that were killed while saving."""
    for directory in run.checkpoint_dir.glob(".step_*"):
        shutil.rmtree(directory, ignore_errors=True)


def list_checkpoints(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, oldest first, without verifying them."""
    return sorted(run.checkpoint_dir.glob("step_*"), key=lambda path: path.name)


def verify(path: Path, run_id: str) -> dict[str, Any]:
    """Return the manifest of a checkpoint directory after comparing the contents with it.

    Raises
    ------
    CheckpointError
        Naming the first mismatch.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        expected_run_id, expected_size, digest = manifest["run_id"], manifest["bytes"], manifest["sha256"]
        size = (path / "state.pt").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error
    if expected_run_id != run_id:
        raise CheckpointError(f"belongs to run {expected_run_id}")
    if size != expected_size:
        raise CheckpointError(f"state.pt has {size} bytes; the manifest says {expected_size}")
    if sha256(path / "state.pt") != digest:
        raise CheckpointError("state.pt does not have the SHA-256 of the manifest")
    return manifest


def latest_valid(run: RunDir) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest valid checkpoint and its manifest, or None; change nothing."""
    for path in reversed(list_checkpoints(run)):
        try:
            return path, verify(path, run.run_id)
        except CheckpointError:
            continue
    return None


def load_latest(run: RunDir) -> dict[str, Any] | None:
    """Return the state in the newest valid checkpoint, or None; change nothing.

    Raises
    ------
    CheckpointError
        state.pt matches its manifest but is not what training writes.
    """
    valid = latest_valid(run)
    if valid is None:
        return None
    try:
        state: dict[str, Any] = torch.load(valid[0] / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # the manifest matches: not damaged, but written by another program
        reason = f"{type(error).__name__}, and nothing in it was executed; expected what training writes: move it away"
        raise CheckpointError(f"{valid[0]}: cannot be loaded: {reason}") from error
    return state


def check_config_unchanged(run: RunDir, config: RunConfig) -> None:
    """Check that the settings that decide the weights are those of the run's checkpoints.

    Resources, evaluation and the path of the data may change: `RunConfig.get_identity` leaves them out.

    Raises
    ------
    ConfigChangedError
        Naming each setting that changed.
    """
    valid = latest_valid(run)
    recorded = flatten(valid[1].get("settings") or {}) if valid else {}
    current = flatten(config.get_identity())
    changes = [
        f"{key}: got {current.get(key, 'none')}; expected {recorded.get(key, 'none')}, as in the checkpoints"
        for key in sorted(recorded.keys() | current.keys())
        if recorded and recorded.get(key) != current.get(key)
    ]
    if not changes and config.run_id != run.run_id:
        changes = [f"these are the settings of {config.run_id}"]
    if changes:
        raise ConfigChangedError(
            f"{run.config_file}: changed since the run started ({'; '.join(changes)}); launch the sweep again to "
            "restore the file, or give the changed settings to a sweep of another name"
        )


def quarantine_damaged(run: RunDir) -> list[str]:
    """Move damaged checkpoints to checkpoints/quarantine/, newest first; return one line about each."""
    lines = []
    for path in reversed(list_checkpoints(run)):
        try:
            verify(path, run.run_id)
            break
        except CheckpointError as error:
            quarantine_path = run.checkpoint_dir / "quarantine" / f"{path.name}.{time.time_ns()}"
            quarantine_path.parent.mkdir(exist_ok=True)
            path.rename(quarantine_path)
            lines.append(f"checkpoint {path.name} is damaged ({error}); moved to {quarantine_path}")
    return lines
