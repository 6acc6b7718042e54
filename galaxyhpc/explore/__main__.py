"""Looks at a file of galaxies: `python -m galaxyhpc.explore FILE.h5 [--output explore.html]`; FILE may be `demo`.

One HTML page with all in it: layout, class counts, examples, sky, redshifts, brightness and signal-to-noise, duplicates
and overlapping frames, and the split as a launch makes it with the default settings. The file is converted once, where
launches keep their converted files. Exit status 2: nothing was written, and why is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryFile

from rich.progress import Progress

from galaxyhpc.config.schema import DataConfig, DemoConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import get_source_path, prepare
from galaxyhpc.data.galaxy10 import SIZE_RANGE_PX, read_metadata
from galaxyhpc.explore import page
from galaxyhpc.explore.dataset_summary import DatasetSummary, summarize_dataset
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import sanitize, write_text

MAX_DEFAULT_SIZE_PX = (
    128  # px, of what is looked at where no size is asked for: a quarter of the bytes that are published
)


def make_data_config(file: str, image_size: int | None, cache: Path) -> DataConfig:
    """Return a launch's settings for this file, its galaxies at `size` or at their own up to LARGEST px.

    Raises
    ------
    DataError
    """
    if image_size is not None and not SIZE_RANGE_PX[0] <= image_size <= SIZE_RANGE_PX[1]:
        raise DataError(f"--size: found {image_size}; allowed {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px")
    side = DemoConfig().size if file == "demo" else read_metadata(Path(file).expanduser()).size
    return DataConfig(
        source=file, cache=str(cache.expanduser().absolute()), image_size=image_size or min(side, MAX_DEFAULT_SIZE_PX)
    )


def explore(config: DataConfig, output: Path) -> DatasetSummary:
    """Write the page about these galaxies, whole or not at all, and return what it tells.

    Raises
    ------
    DataError, OSError
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=output.parent):
        pass  # where nothing can be written, that shows before minutes of work
    galaxies, console = prepare(config), make_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("measuring", total=len(galaxies.labels))
        facts = summarize_dataset(get_source_path(config), galaxies, config, lambda done: bar.advance(task, done))
    write_text(output, page.render(facts))
    return facts


def _check_output(path: Path) -> None:
    shown = sanitize(str(path))
    if path.suffix.lower() != ".html":  # no data are ever written over
        raise DataError(f"--output: found {shown}; allowed: a name that ends in .html")
    if path.is_dir():
        raise DataError(f"--output: found {shown}, a directory; allowed: a file")


def main(arguments: list[str] | None = None) -> int:
    """Explore the file named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc explore", description=__doc__)
    parser.add_argument("file", metavar="FILE.h5", help="laid out as Galaxy10_DECals.h5; demo: generated galaxies")
    parser.add_argument("--output", type=Path, default=Path("explore.html"), metavar="HTML", help="(%(default)s)")
    parser.add_argument(
        "--size", type=int, metavar="PX", help=f"side of a picture (as in the file, up to {MAX_DEFAULT_SIZE_PX})"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/.cache"), metavar="DIR", help="of converted galaxies (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        _check_output(options.output)
        facts = explore(make_data_config(options.file, options.size, options.cache), options.output)
    except (ValueError, OSError) as error:
        print(sanitize(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    console = make_console()
    for line in (f"{options.output}: {page.format_title(facts)}", *page.describe_findings(facts)):
        console.print(line, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
