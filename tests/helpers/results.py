"""Simulated results of an evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np

from galaxyhpc.evaluation.results import RunLogits

PAIRS = [("clean", 0.0), ("rotation", 7.5), ("shot_noise", 3.0)]


def make_run_logits(pairs: list[tuple[str, float]] = PAIRS, n: int = 40, weights: str = "a" * 64) -> RunLogits:
    """Make random logits of `n` galaxies that favour the true class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=n).astype(np.uint8)
    return RunLogits(
        rows=rng.permutation(5000)[:n].astype(np.int32),
        labels=labels,
        groups=np.arange(n, dtype=np.int32) // 2,
        logits={pair: (rng.normal(size=(n, 10)) + np.eye(10)[labels]).astype(np.float32) for pair in pairs},
        weights=weights,
        fingerprint="f" * 64,
        generated=False,
    )


def is_same(one: RunLogits, other: RunLogits | None) -> bool:
    """Whether the results in memory and those read are equal."""
    if other is None or list(one.logits) != list(other.logits):
        return False
    arrays = all(np.array_equal(one.logits[pair], other.logits[pair]) for pair in one.logits)
    common = [f.name for f in dataclasses.fields(RunLogits) if f.name != "logits"]
    return arrays and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in common)
