"""Classify your own galaxies with trained models.

A few files, in this process: `galaxyhpc predict runs/SWEEP/RUN_ID images.h5 *.png catalogue.csv --output mine.csv`.
A survey, on Slurm or on this machine: `galaxyhpc predict RUN [RUN ...] --input SHARDS/*.parquet --output DIRECTORY`.
A table of some of its galaxies: `galaxyhpc predict DIRECTORY --select 'p_Merging > 0.9' --to mergers.fits`.

Files: HDF5 with `images` (N, S, S, 3), uint8 or floats in [0, 1]; images (PNG, JPEG, TIFF and WebP of 8 bits, FITS); a
directory, for all images below it; a catalogue (CSV, TSV, ECSV, FITS table, parquet) with a column of image files,
relative to its directory; parquet with images inside, or a directory of such shards. Columns are found as in the
training (data.columns), or named: `--columns file=cutout ra=RAJ2000 dec=DEJ2000`, and then every file must have them.
Labels are not needed. Images are square or cropped as in the training (data.crop), of any size, and should look like
the training images: the galaxy in the middle of a field of the same size on the sky. Bands and stretch of FITS are
those of the run (data.fits). Grey images are taken where the run was trained on such.

Writes one CSV row per galaxy: source and index (its row in it, from 0), id (the catalogue's, or the name of the image),
ra and dec in degrees where the source has them, and the probability of each class in a column `p_NAME`; the column
`note` marks images without a galaxy, blank or with an empty band, and pixels without a value, which are taken as sky.
The headers of all files are checked first. Exit status 2: nothing was written; each bad image has its line of the
reason. Exit status 1: --skip-bad left out images, and the column `error` says why.

With --input the galaxies are divided into units, each of which becomes a parquet file in DIRECTORY/parts. Jobs take
unit after unit; one that is killed loses only the unit at hand. Rerun the same command to resume: what is done and
still matches its input, the weights and the settings is left alone. `galaxyhpc status DIRECTORY` shows the progress.
Exit status 1: units were set aside, after three failures each.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from galaxyhpc.data import DataError
from galaxyhpc.data.survey.named_columns import parse_columns
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.launch.dispatch import add_executor_options
from galaxyhpc.predict import csv_table
from galaxyhpc.runtime.console import make_console
from galaxyhpc.runtime.lock import BusyError
from galaxyhpc.storage.files import OVERWRITE_HELP, check_output

FILES_HELP = "HDF5, an image, a directory, a catalogue (CSV, ECSV, FITS, parquet), parquet with images; globs may be "
FILES_HELP += "quoted; with --input, further runs"
COLUMNS_HELP = "columns of the files: KEY is file, id, ra or dec; without a NAME it is not used"
SURVEY_OPTIONS = ("profile", "embeddings", "hats", "max_parallel", "dry_run", "executor")


def main(arguments: list[str] | None = None) -> int:
    """Classify the galaxies named on the command line."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        options.columns = parse_columns(options.columns)
        _check_form(parser, options)
        if options.input:
            runs = [options.run, *map(Path, options.files)]
            return int(_import("predict.submit").predict_survey(runs, options.input, options.output, options))
        if options.select:
            return _select(options.run, options.select, options.to, options.overwrite)
        more = options.columns, options.skip_bad, options.overwrite
        return csv_table.classify_files(options.run, options.files, options.output, *more)
    except (ValueError, NotTrainedError, BusyError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _import(name: str) -> Any:
    """Return a module that needs the extra `survey`.

    Raises
    ------
    DataError
        It is not installed.
    """
    for package in ("pyarrow", "astropy_healpix"):  # the latter is for the report, long after the beginning
        if importlib.util.find_spec(package) is None:
            raise DataError(f"predict: got no {package}; expected the extra `survey`: `pip install galaxyhpc[survey]`")
    return importlib.import_module(f"galaxyhpc.{name}")


def _select(directory: Path, expression: str, output: Path, may_overwrite: bool) -> int:
    """Write the galaxies of a prediction that an expression is true for; return 1 if units are missing."""
    check_output(output, may_overwrite)
    selection = _import("prediction.selection").select(directory, expression, output)
    text = f"{output}: {selection.num_selected:,} of {selection.num_galaxies:,} galaxies"
    if selection.num_missing:
        text += f"; {selection.num_missing:,} of {selection.num_units:,} units are not done, and left out"
    make_console().print(text, soft_wrap=True)
    return 1 if selection.num_missing else 0


def _check_form(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options of the other form."""
    if options.input:
        if options.skip_bad:
            parser.error("--skip-bad: is for files; with --input each bad image has its reason in the column `error`")
        if options.output is None:
            parser.error("--input: got no --output; expected --output DIRECTORY")
        return
    if options.select or options.to:
        if not (options.select and options.to) or options.files:
            parser.error("--select and --to: expected both, behind one DIRECTORY of a prediction")
        if options.columns:
            parser.error("--columns: is for galaxies that are classified; --select takes the columns of the parts")
        return
    if not options.files:
        parser.error("got no FILE; expected files of galaxies, or --input")
    for name in SURVEY_OPTIONS:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: is for a survey; expected --input with it")
    options.output = options.output or Path("predictions.csv")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="galaxyhpc predict", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/SWEEP/RUN_ID, or the directory of a prediction")
    parser.add_argument("files", nargs="*", metavar="FILE", help=FILES_HELP)
    output_help = "CSV to write (predictions.csv), or with --input a directory"
    parser.add_argument("--output", type=Path, metavar="CSV", help=output_help)
    skip_help = "classify the others where images cannot be used, and list these in the column `error`"
    parser.add_argument("--columns", nargs="+", action="extend", default=[], metavar="KEY=NAME", help=COLUMNS_HELP)
    parser.add_argument("--skip-bad", action="store_true", help=skip_help)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    survey = parser.add_argument_group("a survey")
    add_executor_options(survey)
    add = survey.add_argument
    add("--input", nargs="+", metavar="SOURCE", help="HATS catalogue, shards, HDF5, catalogue of files, tar shards")
    add("--profile", type=Path, metavar="YAML", help="resource settings of a cluster, such as slurm/gpu.yaml")
    add("--embeddings", action="store_true", help="also write the pooled features of the first run")
    add("--hats", action="store_true", help="also write the predictions as a HATS catalogue, DIRECTORY/hats")
    add("--dry-run", action="store_true", help="only show units, cost, expected end and disk space")
    add = parser.add_argument_group("a selection of what was predicted: galaxyhpc predict DIRECTORY").add_argument
    add("--select", metavar="EXPRESSION", help="of columns of the parts, such as 'p_Merging > 0.9 and not blank'")
    add("--to", type=Path, metavar="FILE", help="the table to write, .csv or .fits")
    return parser


if __name__ == "__main__":
    sys.exit(main())
