"""Networks that fail, importable by a process that a test starts."""

from __future__ import annotations

import os

from torch import Tensor, nn


class RaisingNetwork(nn.Linear):
    """Fails as a GPU without a kernel for it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image")


class AbortingNetwork(RaisingNetwork):
    """Ends its process as a driver may."""

    def forward(self, x: Tensor) -> Tensor:
        os.abort()
