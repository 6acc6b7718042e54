"""Kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="package", autouse=True)
def _prepare_language_once() -> Iterator[None]:
    """Save a fifth of the interpreter's time: it prepares its language for a kernel, and again for each call in it."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction as interpreted

    prepare_and_call = interpreted.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_ours = self.fn.__module__.startswith("galaxyhpc.")
        return self.rewrite()(*args, **kwargs) if is_ours else prepare_and_call(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreted, "__call__", call)
        yield
