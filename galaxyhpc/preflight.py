"""Every point of a sweep checked before anything is submitted; all problems are told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.config import ModelConfig, RunConfig

TOLERANCE = 1e-4  # relative change of an invariant network's logits under exact symmetries
SMALL = {"scale": 0.1, "width": "fields"}  # a narrow twin has the same symmetry and is checked in no time


SHARED = {"source", "demo", "validation_fraction", "test_fraction", "split_seed", "link_arcsec"}
SHARED |= {"conflicting_duplicates"}


class PreflightError(ValueError):
    """Points of a sweep that could not be carried out; one problem a line."""


@dataclass(frozen=True)
class Network:
    """What a network costs."""

    parameters: int
    multiply_adds: int  # per image, in inference


def check(runs: Sequence[RunConfig]) -> dict[str, Network]:
    """Return the network of each run by its id; every distinct one is built once, every data file looked at once.

    Raises
    ------
    PreflightError
    """
    problems = [_data_problem(source) for source in sorted({run.data.source for run in runs})]
    problems += _split_problems(runs)
    wanted = {(run.model, run.data.image_size) for run in runs}
    networks: dict[tuple[ModelConfig, int], Network] = {}
    for model, size in sorted(wanted, key=repr):
        try:
            networks[model, size] = _measure(model, size)
        except ValueError as error:
            problems.append(f"{model.group or ''} {model.architecture} at {size} px: {error}".strip())
    if found := [problem for problem in problems if problem]:
        raise PreflightError("\n".join(found))
    return {run.run_id: networks[run.model, run.data.image_size] for run in runs}


def _data_problem(source: str) -> str:
    from galaxyhpc.data import DataError, check_file

    try:
        if source != "demo":
            check_file(Path(source))
    except DataError as error:
        return str(error)
    return ""


def _split_problems(runs: Sequence[RunConfig]) -> list[str]:
    """All runs of a sweep share one split of the same galaxies, or their results could not be compared."""
    divided = [run.data.model_dump(include=SHARED) for run in runs]
    found = {name: sorted({str(data[name]) for data in divided}) for name in sorted(SHARED)}
    return [
        f"data.{name}: found {', '.join(values)} in one sweep; allowed is one value: make a sweep of each"
        for name, values in found.items()
        if len(values) > 1
    ]


def _measure(model: ModelConfig, size: int) -> Network:
    import torch

    from galaxyhpc.models import build_model, count_parameters, invariance_error, multiply_adds

    with torch.random.fork_rng(devices=[]):
        network = build_model(model, size)
        if model.group is not None and model.head == "pool":
            twin = build_model(model.model_copy(update=SMALL), 33)
            if (error := invariance_error(twin, model.group, 33)) > TOLERANCE:
                raise ValueError(f"its logits change by {error:.1e} under exact symmetries; allowed {TOLERANCE:.0e}")
    return Network(count_parameters(network), multiply_adds(network, size))
