"""Fast equivariant layers on top of e2cnn: groups, convolutions, pooling, batch normalization, fused blocks.

A library of its own: of the project it imports only `config.group_names`, `storage.files` and `runtime.native`.
Networks built from these layers live in `models`. `accelerate`, `restore` and `report` serve networks of e2cnn's
and escnn's modules; they are imported on use, because they need e2cnn. escnn is never imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from galaxyhpc.steerable.acceleration import accelerate as accelerate
    from galaxyhpc.steerable.acceleration import report as report
    from galaxyhpc.steerable.acceleration import restore as restore


def __getattr__(name: str) -> Any:
    if name not in ("accelerate", "report", "restore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from galaxyhpc.steerable import acceleration

    return getattr(acceleration, name)
