"""Two tiers: which parameters and how many examples are left to the full one (GALAXYHPC_TEST_EVERYTHING=1)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

IS_FULL_TIER = os.environ.get("GALAXYHPC_TEST_EVERYTHING") == "1"

GROUPS_OF_FAST_TIER = ("C1", "C4", "D4", "D16")  # trivial, rotations, with reflections, the largest


def slow_unless(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return parameters of `pytest.mark.parametrize`; those not among `fast` are marked slow."""
    return [value if value in fast else slow(*(value if isinstance(value, tuple) else (value,))) for value in values]


def slow(*values: Any) -> Any:
    """Return one parameter that only the full tier has."""
    return pytest.param(*values, marks=pytest.mark.slow)


def num_examples(full: int) -> int:
    """Return how many examples hypothesis draws: all in the full tier, a tenth in the fast one."""
    return full if IS_FULL_TIER else max(10, full // 10)


def skip_or_fail(reason: str) -> None:
    """Skip a test, or fail it where skipping is forbidden."""
    if IS_FULL_TIER:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
