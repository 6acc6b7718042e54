"""`galaxyhpc.benchmark` where torchvision comes from PyPI and torch is a CPU build: the two are reconciled first.

python tests/benchmarks/everything.py --out tests/benchmarks/cpu.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "torchvision_operators"))
import sitecustomize  # noqa: F401  # declares torchvision's operators

from galaxyhpc.benchmark.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
