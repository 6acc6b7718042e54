"""`galaxyhpc.benchmark` for a torchvision from PyPI beside a CPU build of torch.

python tests/benchmarks/everything.py --out tests/benchmarks/cpu.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "process_start"))
import sitecustomize  # noqa: F401  # declares torchvision's operators

from galaxyhpc.benchmark.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
