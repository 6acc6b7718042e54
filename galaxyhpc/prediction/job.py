"""A task of a survey's prediction: it takes unit after unit until none is free, and writes a part for each.

Processes need not know of each other: a unit belongs to the one that holds its claim, a lock that ends with its
process, so a slow node holds no unit but its own, and a killed one's is taken over. Every start of a unit is recorded
before it and every failure after it; after three, killed processes included, the unit is set aside.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveySettings
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.job import StopSignal, read_time_limit
from galaxyhpc.runtime.lock import BusyError, find_holder, hold
from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.run_dir import RunDir

if TYPE_CHECKING:
    from galaxyhpc.data.survey.units import Unit
    from galaxyhpc.evaluation.trained_model import Classifier

STOP_MARGIN_SECONDS = 30.0  # between a batch and the time limit
UNIT_MARGIN = 1.2  # times the longest unit so far: what has to be left for another one
WAIT_SECONDS = 1.0


class StopRequested(Exception):
    """A unit was left because the job has to end."""


def run_task(run: RunDir, stop: StopSignal) -> bool:
    """Predict free units until there are none; False if it was asked to stop."""
    rank_info, survey = get_rank_info(), SurveyDir(run.sweep_dir)
    if rank_info.rank:
        read_time_limit(stop)
    else:
        run.record("started", job=rank_info.job_attempt, nodes=rank_info.node_names, pid=os.getpid())
    is_finished = predict_units(survey, run, stop, rank_info)
    if rank_info.rank == 0:
        _wait_for_other_ranks(run, rank_info, stop)
        if is_finished:
            run.record("predicted", **count_units(survey))
    return is_finished


def count_units(survey: SurveyDir) -> dict[str, int]:
    """Count the units that are done and those that are set aside."""
    done = survey.list_done()
    aside = [number for number, attempts in survey.list_attempted().items() if attempts.is_set_aside]
    return {"done": len(done), "set_aside": len(set(aside) - done)}


def predict_units(survey: SurveyDir, run: RunDir, stop: StopSignal, rank_info: RankInfo) -> bool:
    """Write the part of every unit that no other process works on; False if it was asked to stop."""
    settings, units = survey.read_settings(), survey.read_units()
    classifiers: list[Classifier] = []
    longest = 0.0
    for unit in iterate_free_units(survey, rotate(units, run, rank_info), settings):
        if stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS + UNIT_MARGIN * longest):
            return False
        start = time.monotonic()
        classifiers = classifiers or load_classifiers(settings, rank_info)
        if not predict_unit(survey, run, unit, settings, classifiers, stop):
            return False
        longest = max(longest, time.monotonic() - start)
    return True


def rotate(units: Sequence[Unit], run: RunDir, rank_info: RankInfo) -> list[Unit]:
    """Return all units from a place of this process's own on: processes that start together do not compete."""
    tasks = [path.name for path in sorted(run.sweep_dir.glob("task-*"))]
    index = tasks.index(run.path.name) if run.path.name in tasks else 0
    position = (index + rank_info.rank / rank_info.world_size) / max(len(tasks), 1)
    start = int(position * len(units))
    return [*units[start:], *units[:start]]


def iterate_free_units(survey: SurveyDir, units: Sequence[Unit], settings: SurveySettings) -> Iterator[Unit]:
    """Yield unit after unit that is not done, each while this process holds its claim; failed ones again later."""
    pending, queued = list(units), None
    while pending:
        later, num_yielded = [], 0
        for unit in pending:
            if _is_finished(survey, unit, settings):
                continue
            later.append(unit)
            claim = survey.get_claim(unit.number)
            if find_holder(claim, queued) is not None:
                continue
            claim.parent.mkdir(exist_ok=True)
            try:
                with hold(claim):
                    if not _is_finished(survey, unit, settings):
                        num_yielded += 1
                        yield unit
                    claim.unlink(missing_ok=True)
            except BusyError:
                continue
        pending = later
        if not num_yielded:
            if queued is not None or not slurm.is_up():
                return  # the rest is in other hands
            queued = slurm.get_queue() or {}  # where there is no flock, this tells the claims of killed jobs
        else:
            queued = None


def _is_finished(survey: SurveyDir, unit: Unit, settings: SurveySettings) -> bool:
    """Whether nothing is to be done for a unit: it has its part, or it failed too often."""
    from galaxyhpc.prediction import part

    if part.is_done(survey.get_part(unit.number), part.make_metadata(unit, settings.identity)):
        return True
    return survey.read_attempts(unit.number).is_set_aside


def load_classifiers(settings: SurveySettings, rank_info: RankInfo) -> list[Classifier]:
    """Load the networks onto the device of this process."""
    from pathlib import Path

    import torch

    from galaxyhpc.evaluation import trained_model

    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", rank_info.local_rank % num_gpus) if num_gpus else torch.device("cpu")
    return [trained_model.load(Path(path), device) for path in settings.runs]


def predict_unit(
    survey: SurveyDir,
    run: RunDir,
    unit: Unit,
    settings: SurveySettings,
    classifiers: Sequence[Classifier],
    stop: StopSignal,
) -> bool:
    """Write the part of a unit or record why that failed; False if it was left because the job has to end."""
    from galaxyhpc.prediction import part

    attempts, start = survey.read_attempts(unit.number), time.monotonic()
    survey.write_attempts(unit.number, Attempts(attempts.num_begun + 1, attempts.reasons))
    try:
        tables = _iterate_tables(unit, settings, classifiers, lambda: _should_stop(stop))
        metadata = part.make_metadata(unit, settings.identity)
        part.write_part(survey.get_part(unit.number), tables, metadata)
    except StopRequested:
        survey.write_attempts(unit.number, attempts)
        return False
    except Exception as error:  # of any library that reads or decodes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        survey.write_attempts(unit.number, Attempts(attempts.num_begun + 1, (*attempts.reasons, reason)))
        run.record("unit failed", unit=unit.number, source=unit.source, why=reason)
        return True
    survey.write_attempts(unit.number, Attempts())
    seconds = round(time.monotonic() - start, 3)
    run.record("unit", unit=unit.number, galaxies=unit.num_galaxies, seconds=seconds)
    return True


def _should_stop(stop: StopSignal) -> bool:
    return stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS)


def _iterate_tables(
    unit: Unit, settings: SurveySettings, classifiers: Sequence[Classifier], should_stop: Callable[[], bool]
) -> Iterator[object]:
    """Yield the predictions of a unit, batch by batch.

    Raises
    ------
    StopRequested
    """
    from galaxyhpc.data.survey.units import read_unit
    from galaxyhpc.prediction.columns import make_table
    from galaxyhpc.prediction.pipeline import classify_galaxies

    config, identity = classifiers[0].config.data, settings.identity
    galaxies = read_unit(unit, config, identity["allow_grey"])
    for batch in classify_galaxies(galaxies, classifiers, 0, None, identity["embeddings"]):
        yield make_table(batch, classifiers)
        if should_stop():
            raise StopRequested


def _wait_for_other_ranks(run: RunDir, rank_info: RankInfo, stop: StopSignal) -> None:
    """Wait until the other processes of this job have ended: its end would kill them, perhaps within a unit."""
    locks = [run.path / f".lock-{rank}" for rank in range(1, rank_info.world_size)]
    while any(find_holder(lock) is not None for lock in locks):
        if stop.should_exit or (stop.end_time is not None and stop.end_time - time.time() < STOP_MARGIN_SECONDS):
            return
        time.sleep(WAIT_SECONDS)
