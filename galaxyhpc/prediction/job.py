"""A task of a survey's prediction: it takes unit after unit until none is free, and writes a part for each.

Processes need not know of each other: a unit belongs to the one that holds its claim, a lock that ends with its
process, so a slow node holds no unit but its own, and a killed one's is taken over. Every start of a unit is recorded
before it and every failure after it; after three, killed processes included, the unit is set aside.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveyError, SurveySettings
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.job import StopSignal, classify_error, read_time_limit
from galaxyhpc.runtime.lock import BusyError, find_holder, hold
from galaxyhpc.runtime.parallel import count_cores
from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.run_dir import RunDir

if TYPE_CHECKING:
    from pyarrow import Table

    from galaxyhpc.data.survey.unit import Unit
    from galaxyhpc.evaluation.typicality import Typicality
    from galaxyhpc.prediction.pipeline import Pipeline

SIGNAL_SECONDS = 150.0  # before a time limit, at most, Slurm asks to stop: 90, up to a minute earlier
STOP_MARGIN_SECONDS = 30.0  # between a batch and the time limit
UNIT_MARGIN = 1.2  # times the longest unit so far: what has to be left for another one
WAIT_SECONDS = 1.0
MAX_REASON_CHARS = 300


class StopRequested(Exception):
    """A unit was left because the job has to end, after a number of galaxies."""

    def __init__(self, num_galaxies: int) -> None:
        super().__init__(num_galaxies)
        self.num_galaxies = num_galaxies


class TimeLimitError(RuntimeError):
    """A time limit that is too short for a unit."""


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
            run.record("predicted", done=len(survey.list_done()), set_aside=len(survey.list_set_aside()))
    return is_finished


def run_last_task(run: RunDir, stop: StopSignal) -> bool:
    """Predict what the other tasks have left, then summarize the parts; False if it was asked to stop."""
    if not run_task(run, stop):
        return False
    write_summaries(SurveyDir(run.sweep_dir))
    return True


def write_summaries(survey: SurveyDir) -> None:
    """Write the report, and the HATS catalogue if it is wanted and nothing is left to predict.

    Raises
    ------
    HatsError
        No galaxy has a position.
    """
    from galaxyhpc.prediction.hats_catalogue import write_hats_catalogue
    from galaxyhpc.prediction.report.page import write_report

    write_report(survey)
    numbers, done = [unit.number for unit in survey.read_units()], survey.list_done()
    parts = [survey.get_part(number) for number in numbers if number in done]
    if survey.read_settings().has_hats and all(survey.is_finished(number) for number in numbers):
        shutil.rmtree(survey.hats_dir, ignore_errors=True)
        write_hats_catalogue(parts, survey.hats_dir, survey.path.name)


def predict_units(survey: SurveyDir, run: RunDir, stop: StopSignal, rank_info: RankInfo) -> bool:
    """Write the part of every unit that no other process works on; False if it was asked to stop.

    Raises
    ------
    TimeLimitError
        The time limit ended before the first unit was done, as it would the next time.
    """
    settings, units, longest = survey.read_settings(), survey.read_units(), 0.0
    with ExitStack() as stack:
        predictor = None
        for unit in iterate_free_units(survey, rotate(units, run, rank_info)):
            if stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS + UNIT_MARGIN * longest):
                return False
            start = time.monotonic()
            if predictor is None:  # not before there is a unit: loading takes seconds
                predictor = stack.enter_context(open_predictor(settings, rank_info))
            try:
                if not predict_unit(survey, run, unit, predictor, stop):
                    return False
            except StopRequested as stopped:
                if not longest and stop.end_time is not None:
                    check_time_limit(unit, stopped.num_galaxies, time.monotonic() - start, stop.end_time - time.time())
                return False
            longest = max(longest, time.monotonic() - start)
    return not stop.is_requested


def check_time_limit(unit: Unit, num_done: int, seconds: float, seconds_left: float) -> None:
    """Refuse to go on if a limit, and not a preemption before it, left a unit after these galaxies and seconds.

    Raises
    ------
    TimeLimitError
    """
    if seconds_left < SIGNAL_SECONDS:
        needed = math.ceil((seconds * unit.num_galaxies / num_done * UNIT_MARGIN + SIGNAL_SECONDS) / 60)
        got = f"a limit that ended at galaxy {num_done:,} of {unit.num_galaxies:,} of the first unit"
        raise TimeLimitError(f"time_minutes: got {got}; expected {needed} or more: set it in the profile, and rerun")


def rotate(units: Sequence[Unit], run: RunDir, rank_info: RankInfo) -> list[Unit]:
    """Return all units from a place of this process's own on: processes that start together do not compete."""
    tasks = SurveyDir(run.sweep_dir).list_tasks()
    index = tasks.index(run) if run in tasks else 0
    position = (index + rank_info.rank / rank_info.world_size) / max(len(tasks), 1)
    start = int(position * len(units))
    return [*units[start:], *units[:start]]


def iterate_free_units(survey: SurveyDir, units: Sequence[Unit]) -> Iterator[Unit]:
    """Yield unit after unit that is not done, each while this process holds its claim; failed ones again later."""
    pending, queued = list(units), None
    while pending:
        later, num_yielded = [], 0
        for unit in pending:
            if survey.is_finished(unit.number):
                continue
            later.append(unit)
            claim = survey.get_claim(unit.number)
            if find_holder(claim, queued) is not None:
                continue
            try:
                with hold(claim):
                    if not survey.is_finished(unit.number):
                        num_yielded += 1
                        yield unit
                    claim.unlink(missing_ok=True)
            except BusyError:
                continue
        pending = later
        if num_yielded:
            queued = None
        elif queued is None and slurm.is_up():
            queued = slurm.get_queue() or {}  # where there is no flock, this tells the claims of ended jobs
        else:
            return  # the rest is in other hands


@contextmanager
def open_predictor(settings: SurveySettings, rank_info: RankInfo) -> Iterator[Predictor]:
    """Load the networks onto the device of this process, with the workers that decode for them.

    Raises
    ------
    SurveyError
        The weights are not those of the plan.
    """
    import torch

    from galaxyhpc.evaluation import trained_model
    from galaxyhpc.evaluation.typicality import get_typicality
    from galaxyhpc.prediction.pipeline import Pipeline

    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", rank_info.local_rank % num_gpus) if num_gpus else torch.device("cpu")
    torch.set_num_threads(1)  # a sum depends on the number of threads, and workers have one each
    classifiers = [trained_model.load(Path(path), device) for path in settings.runs]
    weights = {classifier.run.run_id: classifier.weights for classifier in classifiers}
    if weights != settings.identity["weights"]:
        raise SurveyError(f"{', '.join(settings.runs)}: got weights that changed since the plan; run predict again")
    num_workers = min(settings.cpus_per_task, count_cores())
    typicality = get_typicality(classifiers[0]) if settings.identity["typicality"] else None
    with_features = settings.identity["embeddings"] or typicality is not None
    with Pipeline(classifiers, num_workers if num_workers > 1 else 0, None, with_features) as pipeline:
        yield Predictor(settings, pipeline, typicality)


@dataclass(frozen=True)
class Predictor:
    """Networks that are loaded, and what they are for."""

    settings: SurveySettings
    pipeline: Pipeline
    typicality: Typicality | None

    def iterate_tables(self, unit: Unit, should_stop: Callable[[], bool]) -> Iterator[Table]:
        """Yield the predictions of a unit, batch by batch.

        Raises
        ------
        StopRequested
        """
        from galaxyhpc.data.survey.named_columns import name_columns
        from galaxyhpc.data.survey.units import read_unit
        from galaxyhpc.prediction.columns import make_table

        classifiers, identity = self.pipeline.classifiers, self.settings.identity
        num_galaxies, galaxies = 0, read_unit(unit, name_columns(self.pipeline.decoder.config, identity["columns"]))
        for batch in self.pipeline.classify(galaxies, unit.source):
            yield make_table(batch, classifiers, self.typicality, identity["embeddings"])
            num_galaxies += len(batch.rows)
            if should_stop():
                raise StopRequested(num_galaxies)


def predict_unit(survey: SurveyDir, run: RunDir, unit: Unit, predictor: Predictor, stop: StopSignal) -> bool:
    """Write the part of a unit or record why that failed; False if workers ended because the job has to.

    Raises
    ------
    StopRequested
    """
    from galaxyhpc.prediction import part
    from galaxyhpc.prediction.workers import WorkerError

    attempts, start = survey.read_attempts(unit.number), time.monotonic()
    begun = Attempts(attempts.num_begun + 1, attempts.reasons)
    survey.write_attempts(unit.number, begun)
    if attempts.num_begun:  # what a killed process has left
        for path in survey.parts_dir.glob(f".{survey.get_part(unit.number).name}.*"):
            path.unlink(missing_ok=True)
    metadata = part.make_metadata(unit, predictor.settings.identity)
    tables = predictor.iterate_tables(unit, lambda: _should_stop(stop))
    num_galaxies = None if unit.kind == "tar" else unit.num_galaxies  # those of an archive are an estimate
    try:
        count = part.write_part(survey.get_part(unit.number), tables, metadata, num_galaxies)
    except StopRequested:
        survey.write_attempts(unit.number, attempts)
        raise
    except Exception as error:  # of any library that reads or decodes
        if isinstance(error, WorkerError):
            time.sleep(WAIT_SECONDS)  # TERM may have reached the workers first
        if stop.should_exit:
            survey.write_attempts(unit.number, attempts)
            return False
        _record_failure(survey, run, unit, begun, error)
        if classify_error(error) in ("memory", "disk"):
            raise  # of this machine: it would set all units aside
        return True
    survey.write_attempts(unit.number, Attempts())
    run.record("unit", unit=unit.number, galaxies=count, seconds=round(time.monotonic() - start, 3))
    return True


def _record_failure(survey: SurveyDir, run: RunDir, unit: Unit, begun: Attempts, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_CHARS]
    with suppress(OSError):  # such as a full disk, which the job reports
        survey.write_attempts(unit.number, Attempts(begun.num_begun, (*begun.reasons, reason)))
        run.record("unit failed", unit=unit.number, source=unit.source, why=reason)


def _should_stop(stop: StopSignal) -> bool:
    return stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS)


def _wait_for_other_ranks(run: RunDir, rank_info: RankInfo, stop: StopSignal) -> None:
    """Wait until the other processes of this job have ended: its end would kill them, perhaps within a unit."""
    locks = [run.path / f".lock-{rank}" for rank in range(1, rank_info.world_size)]
    while any(find_holder(lock) is not None for lock in locks):
        if stop.should_exit or (stop.end_time is not None and stop.end_time - time.time() < STOP_MARGIN_SECONDS):
            return
        time.sleep(WAIT_SECONDS)
