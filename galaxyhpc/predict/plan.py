"""The plan of a survey's prediction: what it is made of, its units, and which of them are done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from galaxyhpc.config.schema import ColumnsConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.split_file import SPLIT_FILE_NAME
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.data.survey.units import GALAXIES_PER_UNIT
from galaxyhpc.evaluation import typicality
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.prediction import part
from galaxyhpc.prediction.pipeline import make_decoder
from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveyError, SurveySettings, is_survey
from galaxyhpc.storage.sweep_dir import get_report_records


def make_settings(
    classifiers: Sequence[Classifier],
    inputs: Sequence[str],
    columns: ColumnsConfig,
    with_embeddings: bool,
    galaxies_per_unit: int = GALAXIES_PER_UNIT,
) -> SurveySettings:
    """Return what decides the bytes of the parts, given the absolute paths of the inputs.

    Raises
    ------
    DataError
        The runs do not see the same images.
    """
    decoder = make_decoder(classifiers)
    identity = {
        "weights": {classifier.run.run_id: classifier.weights for classifier in classifiers},
        "temperatures": {classifier.run.run_id: classifier.temperature for classifier in classifiers},
        "classes": list(decoder.config.class_names),
        "crop": decoder.config.crop,
        "fits": decoder.config.fits.model_dump(mode="json"),
        "columns": columns.model_dump(mode="json"),
        "allow_grey": decoder.allow_grey,
        "embeddings": with_embeddings,
        "typicality": has_typicality(classifiers[0]),
    }
    paths = tuple(str(classifier.run.path) for classifier in classifiers)
    return SurveySettings(paths, tuple(inputs), identity, galaxies_per_unit)


def has_typicality(classifier: Classifier) -> bool:
    """Whether the typicality of a run is known, or its galaxies are there, so that a task can compute it."""
    run, data = classifier.run, classifier.config.data
    if typicality.load(run, classifier.weights) is not None:
        return True
    try:
        if (run.sweep_dir / SPLIT_FILE_NAME).is_file():
            open_dataset(data, run.sweep_dir)  # once, with a progress bar, before the tasks start
            return True
    except (DataError, OSError):
        pass
    return False


def find_pending(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Return the units without a part, and those whose part does not match; changes nothing.

    Raises
    ------
    SurveyError
        The prediction was begun with other settings or inputs, or a part was made with others.
    """
    if is_survey(survey.path):
        _check_same_survey(survey, settings, units)
    missing, stale, existing = [], [], survey.list_done()
    for unit in units:
        if unit.number not in existing:
            missing.append(unit)
        elif not part.is_done(survey.get_part(unit.number), part.make_metadata(unit, settings.identity)):
            stale.append(unit)
    return missing, stale


def write_plan(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit], stale: Sequence[Unit]) -> None:
    """Write the settings and the units; parts that do not match are removed, units that were set aside come again."""
    for unit in stale:  # and no others: a job may just have written them
        survey.get_part(unit.number).unlink(missing_ok=True)
    for number in survey.list_set_aside():
        survey.write_attempts(number, Attempts())
    survey.write_units(units)
    survey.write_settings(settings)


def _check_same_survey(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> None:
    """Refuse other settings, and other inputs than those whose parts are there; a file may have changed."""
    old, advice = survey.read_settings(), "expected another --output, or --overwrite"
    if old.identity != settings.identity:
        difference = part.describe_difference(old.identity, settings.identity)
        raise SurveyError(f"{survey.path}: begun with other settings: {difference}; {advice}")
    planned = {(unit.number, unit.source) for unit in survey.read_units()}
    if other := sorted(planned ^ {(unit.number, unit.source) for unit in units}):
        raise SurveyError(
            f"{survey.path}: begun with other inputs, such as unit {other[0][0]}, {other[0][1]}; {advice}"
        )


def remove_results(survey: SurveyDir) -> None:
    """Remove the parts, the plan and the records of an earlier prediction."""
    records = [run.path for run in (*survey.list_tasks(), get_report_records(survey.path))]
    for path in (survey.parts_dir, survey.claims_dir, survey.path / "attempts", survey.hats_dir, *records):
        shutil.rmtree(path, ignore_errors=True)
    for path in (survey.settings_file, survey.units_file, survey.report_file):
        path.unlink(missing_ok=True)
