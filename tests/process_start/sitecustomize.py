"""What processes of the tests do at their start: conftest.py imports this; Python does, by PYTHONPATH.

PyPI's torchvision can be imported beside a CPU build of torch, where its operators do not load: no network of ours uses
them. galaxyhpc never does this: it tells how to install the torchvision that fits. With GALAXYHPC_TEST_WITHOUT_FIGURES
reports have no figures, which take most of their time.
"""

from __future__ import annotations

import os
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


class NoFigures:
    """Empties the list of figures, at the moment it is about to be used."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name == "galaxyhpc.report.html_report":
            from galaxyhpc.report import figures

            figures.FIGURES.clear()


def leave_out_figures_if_asked() -> None:
    """Do so in this process, unless reports are loaded already."""
    if "GALAXYHPC_TEST_WITHOUT_FIGURES" in os.environ:
        sys.meta_path.insert(0, NoFigures)


sys.meta_path.insert(0, Operators)
leave_out_figures_if_asked()
