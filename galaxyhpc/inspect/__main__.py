"""Visualize trained networks: `galaxyhpc inspect runs/SWEEP/RUN_ID` writes runs/SWEEP/RUN_ID/inspect/.

Writes features.h5 (features of the test galaxies, clean and corrupted), embedding.csv and its figure,
latent_distance.csv and its figure, gradcam.png, and inspect.html with all of them. Several runs, or a sweep, are
compared by latent distance alone, in SWEEP/inspect/; untrained runs of a sweep are skipped. Exit status 2: invalid
arguments or files; the reason is on stderr.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from galaxyhpc.config import conditions
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_flaw_of_division
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.inspect import page
from galaxyhpc.inspect.features import InspectError
from galaxyhpc.inspect.inputs import InspectContext, check_same_galaxies, load_context, load_or_compute_features
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import OVERWRITE_HELP, check_output, sanitize
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs

DEFAULT_CONDITIONS = ("rotation", "pedestal_noise", "shot_noise", "psf_moffat")


def inspect_run(run: RunDir, pairs: Sequence[Pair], options: argparse.Namespace, console: Console) -> Path:
    """Write everything about one run; return the page."""
    output = options.output or run.path / "inspect"
    context = load_context(run, get_device())
    page.check_indices(context, options.galaxies or ())
    pairs = select_possible(pairs, context, is_default=options.conditions is DEFAULT_CONDITIONS)
    features = load_or_compute_features(context, pairs, output / "features.h5", console)
    sections = [
        *page.write_embedding_section(context, features, output, console),
        *page.write_distance_section(page.make_distance_table(context, features), run.run_id, output),
        *page.write_gradcam_section(context, features, options.galaxies, output),
    ]
    lead = f"{context.label}, {context.classifier.image_size} px, weights {context.classifier.weights[:12]}."
    if flaw := read_flaw_of_division(run.sweep_dir / SPLIT_FILE_NAME):
        lead += f" FLAW: {flaw}."
    return page.write_page(output, f"Inside {run.run_id}", sections, context.generated, (lead,))


def compare_runs(runs: list[RunDir], pairs: Sequence[Pair], options: argparse.Namespace, console: Console) -> Path:
    """Compare trained runs by latent distance; return the page."""
    if options.galaxies:
        raise InspectError(f"--galaxies: got {len(runs)} runs; expected one run")
    check_same_galaxies(runs)
    tables, output = [], options.output or runs[0].sweep_dir / "inspect"
    for run in runs:
        context = load_context(run, get_device())
        directory = output / run.run_id if options.output else run.path / "inspect"
        possible = select_possible(pairs, context, is_default=options.conditions is DEFAULT_CONDITIONS)
        features = load_or_compute_features(context, possible, directory / "features.h5", console)
        tables.append(page.make_distance_table(context, features))
    table = page.disambiguate_labels(pd.concat(tables, ignore_index=True))
    title = f"{table['label'].nunique()} networks, {len(runs)} runs"
    sections = page.write_distance_section(table, title, output)
    return page.write_page(output, f"Inside {title}", sections, bool(table["generated"].any()), ())


def get_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_trained_runs(paths: Sequence[Path], console: Console) -> list[RunDir]:
    """Return the trained runs at these paths, each a run or a sweep.

    Raises
    ------
    RunDirError, NotTrainedError
    """
    trained_runs: dict[Path, RunDir] = {}
    for path in paths:
        runs = find_runs(path)
        trained = [run for run in runs if run.best_file.exists()]
        if not trained:
            message = f"{sanitize(str(path))}: training is not finished: no best.pt"
            raise NotTrainedError(f"{message} in any of {len(runs)} runs" if len(runs) > 1 else message)
        if len(trained) < len(runs):
            console.print(f"{sanitize(str(path))}: {len(trained)} of {len(runs)} runs are trained", soft_wrap=True)
        trained_runs |= {run.path: run for run in trained}
    return list(trained_runs.values())


def parse_conditions(names: Sequence[str]) -> list[Pair]:
    """Return every (condition, severity) of these conditions.

    Raises
    ------
    InspectError
    """
    for name in names:
        if not conditions.is_condition(name):
            expected = conditions.describe_expected(name)
            raise InspectError(f"--conditions: got {sanitize(name)!r}; expected {expected}")
    return list(dict.fromkeys(conditions.list_severity_pairs(names)))


def select_possible(pairs: Sequence[Pair], context: InspectContext, *, is_default: bool) -> list[Pair]:
    """Return the pairs that these images allow: without a pixel scale none in arcsec, which are refused if asked for.

    Raises
    ------
    InspectError
    """
    if not math.isnan(context.survey.pixel_scale_arcsec):
        return list(pairs)
    refused = [name for name, _ in pairs if conditions.needs_pixel_scale(name)]
    if refused and not is_default:
        got = f"{refused[0]}, whose lengths are in arcsec, and images of unknown scale"
        raise InspectError(f"--conditions: got {got}; expected other conditions, or a launch with data.field_arcsec")
    return [pair for pair in pairs if pair[0] not in refused]


def main(arguments: list[str] | None = None) -> int:
    """Inspect the runs named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc inspect", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_DIR", help="runs/SWEEP/RUN_ID or runs/SWEEP")
    parser.add_argument("--output", type=Path, metavar="DIR", help="output directory (RUN_DIR/inspect)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--galaxies", nargs="+", type=int, metavar="ROW", help="rows of the data file, for Grad-CAM")
    conditions_help = f"conditions of the features ({' '.join(DEFAULT_CONDITIONS)})"
    parser.add_argument("--conditions", nargs="+", default=DEFAULT_CONDITIONS, metavar="NAME", help=conditions_help)
    options, console = parser.parse_args(arguments), make_console()
    try:
        if options.output is not None:
            check_output(options.output, options.overwrite)
        pairs, runs = parse_conditions(options.conditions), find_trained_runs(options.paths, console)
        if len(runs) == 1:
            page_path = inspect_run(runs[0], pairs, options, console)
        else:
            page_path = compare_runs(runs, pairs, options, console)
    except (ValueError, OSError, NotTrainedError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    console.print(f"{page_path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
