"""Generated galaxies in the layout of Galaxy10_DECals.h5, so that everything runs without a download.

    python -m galaxyhpc.demo OUT.h5 --n 2000 --size 64 --seed 0

Knows how a telescope and the Legacy Surveys' picture viewer turn light (`morphology`) into pictures: atmosphere, sky
and shot noise, colour-preserving arcsinh stretch; and how the published file is laid out, duplicates included.
Not obvious: light is drawn and stretched on at least 128 px and the PICTURE is then averaged down, because that is
what making the published 256 px pictures smaller does. A picture is a function of (seed, row, label) and the size.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from galaxyhpc.data.simulate import GENERATED_BY, DemoError, write_galaxies


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="galaxyhpc demo", description="Write generated galaxies.")
    parser.add_argument("out", type=Path, metavar="OUT.h5")
    parser.add_argument("--n", type=int, default=2000, help="galaxies (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="px per side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other galaxies (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        write_galaxies(chosen.out, chosen.n, chosen.size, chosen.seed)
    except (DemoError, OSError) as error:
        print(f"{GENERATED_BY}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
