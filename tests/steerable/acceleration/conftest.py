"""Convolutions are dense unless a test says otherwise: to choose, they measure the machine for many seconds."""

from __future__ import annotations

import pytest

from galaxyhpc.steerable.acceleration.convolution import FastConv


@pytest.fixture(autouse=True)
def _dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastConv, "harmonic", False)
