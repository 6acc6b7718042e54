"""The networks of the study (arXiv:2311.01500) by the names its code gave them: each a set of model settings.

`model.preset: d4resnet18` in a sweep is replaced by the settings below; explicit settings win. The e2wrn networks are
those of Weiler and Cesa (2019, arXiv:1911.08251).
"""

from __future__ import annotations

from typing import Any


def _make_steerable_cnn(group: str) -> dict[str, Any]:
    return {"architecture": "steerable_cnn", "group": group}


def _make_wide_resnet(depth: int, widen: int, group: str, *restriction: str) -> dict[str, Any]:
    size = {"architecture": "e2wrn", "depth": depth, "widen": widen, "group": group}
    return {**size, "restriction": list(restriction)} if restriction else size


def _make_resnet(depth: int, group: str, base_width: int | None = None, *blocks: int) -> dict[str, Any]:
    size: dict[str, Any] = {"architecture": "e2resnet", "depth": depth, "group": group}
    options = {"base_width": base_width, "blocks": list(blocks)}
    return size | {name: value for name, value in options.items() if value}


def _make_pretrained(architecture: str) -> dict[str, Any]:
    return {"architecture": architecture, "pretrained": True}


PRESETS: dict[str, dict[str, Any]] = {
    **{group: _make_steerable_cnn(group) for group in ("C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16")},
    "CNN": {"architecture": "cnn"},
    "WRN16d8d4d1": _make_wide_resnet(16, 8, "D8", "D4", "D1"),
    "WRN16d8d4d4": _make_wide_resnet(16, 8, "D8", "D4", "D4"),
    "WRN16d1d1d1": _make_wide_resnet(16, 8, "D1"),
    "WRN28_10_d8d4d1": _make_wide_resnet(28, 10, "D8", "D4", "D1"),
    "WRN28_7_d8d4d1": _make_wide_resnet(28, 7, "D8", "D4", "D1"),
    "WRN28_10_c8c4c1": _make_wide_resnet(28, 10, "C8", "C4", "C1"),
    "WRN28_10_d1d1d1": _make_wide_resnet(28, 10, "D1"),
    "c1resnet18": _make_resnet(18, "C1", 80),
    "d1resnet18": _make_resnet(18, "D1", 54),
    "c4resnet18": _make_resnet(18, "C4", 54),
    "d4resnet18": _make_resnet(18, "D4", 54),
    "small_c4resnet18": _make_resnet(18, "C4", 5, 1, 1, 1, 1),
    "c4resnet50": _make_resnet(50, "C4"),
    "c2resnet50": _make_resnet(50, "C2", None, 3, 2, 2, 2),
    "d4resnet50": _make_resnet(50, "D4", None, 3, 2, 2, 2),
    "small_c4resnet50": _make_resnet(50, "C4", None, 3, 2, 2, 2),
    "ResNet18": _make_pretrained("resnet18"),
    "ResNet50": _make_pretrained("resnet50"),
    "WRN50_2": _make_pretrained("wide_resnet50_2"),
    "densenet121": _make_pretrained("densenet121"),
}
