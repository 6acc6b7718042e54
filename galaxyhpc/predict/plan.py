"""The plan of a survey's prediction: what it is made of, its units, and which of them are done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.prediction import part
from galaxyhpc.prediction.pipeline import make_decoder
from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveyError, SurveySettings, is_survey
from galaxyhpc.storage.sweep_dir import resolve_path


def make_settings(classifiers: Sequence[Classifier], inputs: Sequence[str], with_embeddings: bool) -> SurveySettings:
    """Return what decides the bytes of the parts.

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
        "columns": decoder.config.columns.model_dump(mode="json"),
        "allow_grey": decoder.allow_grey,
        "embeddings": with_embeddings,
    }
    paths = tuple(str(classifier.run.path) for classifier in classifiers)
    return SurveySettings(paths, tuple(str(resolve_path(text, "--input")) for text in inputs), identity)


def find_pending(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> list[Unit]:
    """Return the units whose part does not exist or does not match; changes nothing.

    Raises
    ------
    SurveyError
        The prediction was begun with other settings or inputs, or a part was made with others.
    """
    if is_survey(survey.path):
        _check_same_survey(survey, settings, units)
    return [
        unit
        for unit in units
        if not part.is_done(survey.get_part(unit.number), part.make_metadata(unit, settings.identity))
    ]


def write_plan(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit], pending: Sequence[Unit]) -> None:
    """Write the settings and the units; parts that do not match are removed, units that were set aside come again."""
    for unit in pending:
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
    """Remove the parts and the plan of an earlier prediction."""
    for path in (survey.parts_dir, survey.claims_dir, survey.path / "attempts"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (survey.settings_file, survey.units_file, survey.report_file):
        path.unlink(missing_ok=True)
