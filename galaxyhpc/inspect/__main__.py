"""Looks inside trained networks: `python -m galaxyhpc.inspect runs/SWEEP/RUN_ID` writes runs/SWEEP/RUN_ID/inspect/.

features.h5 (what the network sees in the test galaxies, clean and corrupted), embedding.csv and its figure,
latent_distance.csv and its figure, gradcam.png, and inspect.html with all of them. Several runs, or a sweep, are
compared by latent distance alone, in SWEEP/inspect/; runs of a sweep that are not trained yet are left out. Exit
status 2: what was asked for cannot be done, and why is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from galaxyhpc.config import conditions
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.inspect import page
from galaxyhpc.inspect.features import InspectError
from galaxyhpc.inspect.inputs import check_same_galaxies, load_context, load_or_compute_features
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs

DEFAULT_CONDITIONS = ("rotation", "pedestal_noise", "shot_noise", "psf_moffat")


def inspect_run(run: RunDir, pairs: Sequence[Pair], options: argparse.Namespace, console: Console) -> Path:
    """Write everything about one run; return the page."""
    output = options.output or run.path / "inspect"
    looked = load_context(run, get_device())
    page.check_indices(looked, options.galaxies or ())
    found = load_or_compute_features(looked, pairs, output / "features.h5", console)
    sections = [
        *page.write_embedding_section(looked, found, output, console),
        *page.write_distance_section(page.make_distance_table(looked, found), run.run_id, output),
        *page.write_gradcam_section(looked, found, options.galaxies, output),
    ]
    lead = (f"{looked.label}, {looked.classifier.image_size} px, weights {looked.classifier.weights[:12]}.",)
    return page.write_page(output, f"Inside {run.run_id}", sections, looked.generated, lead)


def compare_runs(runs: list[RunDir], pairs: Sequence[Pair], options: argparse.Namespace, console: Console) -> Path:
    """Compare trained runs by latent distance; return the page."""
    if options.galaxies:
        raise InspectError(f"--galaxies: found {len(runs)} runs; allowed: rows to look at in one run alone")
    check_same_galaxies(runs)
    tables, output = [], options.output or runs[0].sweep_dir / "inspect"
    for run in runs:
        looked = load_context(run, get_device())
        place = output / run.run_id if options.output else run.path / "inspect"
        tables.append(
            page.make_distance_table(looked, load_or_compute_features(looked, pairs, place / "features.h5", console))
        )
    table = page.disambiguate_labels(pd.concat(tables, ignore_index=True))
    title = f"{table['label'].nunique()} networks, {len(runs)} runs"
    sections = page.write_distance_section(table, title, output)
    return page.write_page(output, f"Inside {title}", sections, bool(table["generated"].any()), ())


def get_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_trained_runs(paths: Sequence[Path], console: Console) -> list[RunDir]:
    """Return the runs named, and the trained ones of sweeps.

    Raises
    ------
    rundir.NoRunError, evaluate.NotTrainedError
    """
    found: dict[Path, RunDir] = {}
    for path in paths:
        several = find_runs(path)
        trained = [run for run in several if run.best_file.exists()]
        if not trained:
            what = f"{sanitize(str(path))}: not trained to its end yet: there is no best.pt"
            raise NotTrainedError(f"{what} in any of {len(several)} runs" if len(several) > 1 else what)
        if len(trained) < len(several):
            console.print(f"{sanitize(str(path))}: {len(trained)} of {len(several)} runs are trained", soft_wrap=True)
        found |= {run.path: run for run in trained}
    return list(found.values())


def parse_conditions(names: Sequence[str]) -> list[Pair]:
    """Return every severity of these conditions.

    Raises
    ------
    LatentError
    """
    for name in names:
        if not conditions.is_condition(name):
            allowed = f"{', '.join(conditions.CONDITIONS)}, or several of them joined by +"
            raise InspectError(f"--conditions: found {sanitize(name)!r}; allowed: {allowed}")
    return list(dict.fromkeys(conditions.list_severity_pairs(names)))


def main(arguments: list[str] | None = None) -> int:
    """Look into the runs named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc inspect", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_DIR", help="runs/SWEEP/RUN_ID or runs/SWEEP")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(RUN_DIR/inspect)")
    parser.add_argument("--galaxies", nargs="+", type=int, metavar="ROW", help="of the data file, for Grad-CAM")
    parser.add_argument(
        "--conditions", nargs="+", default=DEFAULT_CONDITIONS, metavar="NAME", help=f"({' '.join(DEFAULT_CONDITIONS)})"
    )
    options, console = parser.parse_args(arguments), make_console()
    try:
        pairs, runs = parse_conditions(options.conditions), find_trained_runs(options.paths, console)
        one = len(runs) == 1
        written = inspect_run(runs[0], pairs, options, console) if one else compare_runs(runs, pairs, options, console)
    except (ValueError, OSError, NotTrainedError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    console.print(f"{written}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
