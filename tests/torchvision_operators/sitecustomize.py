"""Lets PyPI's torchvision be imported beside a CPU build of torch, where its operators do not load.

No network of ours uses them. conftest.py imports this, and Python does so by itself at the start of every process
whose PYTHONPATH names this folder. galaxyhpc never does it: it tells how to install the torchvision that fits.
"""

from __future__ import annotations

import sys


class Operators:
    """Declares what torchvision looks for, at the moment it is about to look."""

    library = None  # what is declared ends with it

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision._meta_registrations":
            return
        import torch

        if not hasattr(torch.ops.torchvision, "nms"):
            cls.library = torch.library.Library("torchvision", "DEF")
            cls.library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            cls.library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")


sys.meta_path.insert(0, Operators)
