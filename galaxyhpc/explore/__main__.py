"""Show what would be learned from: `galaxyhpc explore SOURCE [--set data.columns.label=type]`.

SOURCE: an HDF5 file laid out as Galaxy10_DECals.h5; a catalogue of image files (CSV, ECSV, FITS, parquet); a directory
with a subdirectory of images per class; parquet with images inside; a sweep file, whose data settings then count; or
`demo`. Writes one self-contained HTML page: class counts, examples, sky, redshifts, brightness and signal-to-noise,
duplicates and overlapping frames, and the split that a launch makes. The source is converted once, in the cache of
launches. Exit status 2: nothing was written; the reason is on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from rich.progress import Progress

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.config.sweep import load_data_config, load_sweep
from galaxyhpc.data import DataError
from galaxyhpc.data.galaxies import fill_in_classes, get_source_path, prepare
from galaxyhpc.data.sources.hdf5 import SIZE_RANGE_PX
from galaxyhpc.data.sources.open_source import open_source
from galaxyhpc.explore import findings, page
from galaxyhpc.explore.dataset_summary import DatasetSummary, summarize_dataset
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import OVERWRITE_HELP, check_output, sanitize, write_text
from galaxyhpc.storage.sweep_dir import make_absolute, resolve_path

MAX_DEFAULT_SIZE_PX = 128  # of images without --size: a quarter of the published bytes


def make_data_config(source: str, image_size: int | None, cache: Path, overrides: Sequence[str] = ()) -> DataConfig:
    """Return a launch's settings for a source or a sweep, at `image_size`, or its own up to MAX_DEFAULT_SIZE_PX.

    `overrides` are `dotted.key=value` each, as those of a launch.

    Raises
    ------
    DataError, RunDirError, SweepError
    """
    if image_size is not None and not SIZE_RANGE_PX[0] <= image_size <= SIZE_RANGE_PX[1]:
        raise DataError(f"--size: got {image_size}; expected {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px")
    is_sweep = source.lower().endswith((".yaml", ".yml"))
    data = load_sweep(Path(source), overrides).runs[0].data if is_sweep else load_data_config(source, overrides)
    config = make_absolute(data).model_copy(update={"cache": str(resolve_path(cache, "--cache"))})
    if is_sweep or any(text.startswith("data.image_size=") for text in overrides):
        size = config.image_size
    elif source == "demo":
        size = config.demo.size
    else:
        size = open_source(Path(config.source), config).size or MAX_DEFAULT_SIZE_PX
    return fill_in_classes(config.model_copy(update={"image_size": image_size or min(size, MAX_DEFAULT_SIZE_PX)}))


def explore(config: DataConfig, output: Path) -> DatasetSummary:
    """Write the page of a dataset, atomically, and return its summary.

    Raises
    ------
    DataError, OSError
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=output.parent):
        pass  # fails before minutes of work if the directory is not writable
    galaxies, console = prepare(config), make_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("measuring", total=len(galaxies.labels))
        summary = summarize_dataset(get_source_path(config), galaxies, config, lambda count: bar.advance(task, count))
    write_text(output, page.render(summary))
    return summary


def _check_page_name(path: Path) -> None:
    name = sanitize(str(path))
    if path.suffix.lower() != ".html":  # never overwrite data
        raise DataError(f"--output: got {name}; expected a name that ends in .html")
    if path.is_dir():
        raise DataError(f"--output: got {name}, a directory; expected a file")


def main(arguments: list[str] | None = None) -> int:
    """Explore the file named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc explore", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="galaxies, or a sweep file; demo: generated galaxies")
    parser.add_argument(
        "--output", type=Path, default="explore.html", metavar="HTML", help="page to write (%(default)s)"
    )
    size_help = f"side of an image (as in the source, up to {MAX_DEFAULT_SIZE_PX})"
    parser.add_argument("--size", type=int, metavar="PX", help=size_help)
    set_help = "a setting of the data, such as data.columns.label=type or data.crop=center; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    cache_help = "directory of converted galaxies (%(default)s)"
    parser.add_argument("--cache", type=Path, default="runs/.cache", metavar="DIR", help=cache_help)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    options = parser.parse_args(arguments)
    try:
        _check_page_name(options.output)
        check_output(options.output, options.overwrite)
        summary = explore(make_data_config(options.source, options.size, options.cache, options.set), options.output)
    except (ValueError, OSError) as error:
        print(sanitize(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    console = make_console()
    for line in (f"{options.output}: {findings.format_title(summary)}", *findings.describe_findings(summary)):
        console.print(line, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
