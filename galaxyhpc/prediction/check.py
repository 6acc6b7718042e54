"""Checks of a survey's prediction: every part is read to its last page, and compared with the plan."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

from galaxyhpc.prediction import part
from galaxyhpc.prediction.survey import SurveyDir, SurveyError

RERUN = "remove it and rerun predict, which makes it again"


class SurveyCheck(NamedTuple):
    """What is wrong with a prediction, a line each, and what is worth a note."""

    num_parts: int
    errors: list[str]  # each ends with what to do about it
    notes: list[str]


def check_survey(survey: SurveyDir) -> SurveyCheck:
    """Check the plan and all parts, and change nothing."""
    try:
        settings, units = survey.read_settings(), survey.read_units()
    except SurveyError as error:
        return SurveyCheck(0, [f"{error}; rerun predict"], [])
    errors, done, planned = [], survey.list_done(), {unit.number for unit in units}
    for unit in units:
        if unit.number in done:
            path, expected = survey.get_part(unit.number), part.make_metadata(unit, settings.identity)
            try:
                if not part.is_done(path, expected):
                    part.read_metadata(path)
                    errors.append(f"{path.name}: made of another input; {RERUN}")
                else:
                    parquet.read_table(path, page_checksum_verification=True)
            except SurveyError as error:
                errors.append(str(error))
            except (part.PartError, pa.ArrowException, OSError) as error:
                errors.append(f"{path.name}: damaged: {error}; {RERUN}")
    errors += [f"{survey.get_part(number).name}: of no unit of the plan; remove it" for number in done - planned]
    aside = survey.list_set_aside()
    notes = [f"{len(planned - done - aside.keys())} units left, {len(aside)} set aside"] if planned - done else []
    return SurveyCheck(len(done), errors, notes)
