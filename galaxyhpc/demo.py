"""Write generated galaxies in the layout of Galaxy10_DECals.h5, so that everything runs without a download.

    galaxyhpc demo OUT.h5 --n 2000 --size 64 --seed 0

The images are those of a telescope and the Legacy Surveys' viewer: galaxies (`data.morphology`), atmosphere, sky and
shot noise, a colour-preserving arcsinh stretch. The file has the layout of the published one, duplicates included.
Images are simulated and stretched on at least 128 px, then averaged to the requested size, as the published images of
256 px are when they are resized. An image is a function of (seed, row, label) and the size.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from galaxyhpc.data.simulate import GENERATED_BY, DemoError, write_galaxies
from galaxyhpc.storage.files import OVERWRITE_HELP, OutputExistsError, check_output


def main(arguments: list[str] | None = None) -> int:
    """Write the file that the command line names; 2 if that is not possible."""
    parser = argparse.ArgumentParser(prog="galaxyhpc demo", description="Write a file of generated galaxies.")
    parser.add_argument("out", type=Path, metavar="OUT.h5")
    parser.add_argument("--n", type=int, default=2000, help="number of galaxies (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="image size in px (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    options = parser.parse_args(arguments)
    try:
        check_output(options.out, options.overwrite)
        write_galaxies(options.out, options.n, options.size, options.seed)
    except (DemoError, OutputExistsError, OSError) as error:
        print(f"{GENERATED_BY}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
