"""The directory of a survey's prediction: its settings, the plan of units, the parts, and the tasks that write them.

    settings.json       runs, weights and all that decides the bytes of a part
    units.parquet       the plan: one row per unit, written once
    parts/000012.parquet  the predictions of unit 12; appears whole
    attempts/000012.json  how often unit 12 was begun and why it failed; absent where it is done
    claims/000012       the lock of the process that works on unit 12
    report.html, hats/  what the last task makes of the parts
    plan.csv, task-0/   the jobs, each with its events and log, as the runs of a sweep

Torch-free, as `status` reads it; a job is given the path of its task and nothing else.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galaxyhpc.runtime.lock import find_holder
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError

if TYPE_CHECKING:
    from galaxyhpc.data.survey.unit import Unit

MAX_ATTEMPTS = 3  # of a unit, before it is set aside


class SurveyError(ValueError):
    """A directory that does not hold the prediction that was asked for."""


@dataclass(frozen=True)
class SurveySettings:
    """What a prediction is made of: `identity` decides the bytes of a part, paths and resources do not."""

    runs: tuple[str, ...]  # directories
    inputs: tuple[str, ...]  # files, directories or globs
    identity: dict[str, Any]  # weights by run id, temperatures, reading of the images, columns
    galaxies_per_unit: int  # about; the plan is made again with as many
    cpus_per_task: int = 1
    has_hats: bool = False  # a HATS catalogue is wanted, too


@dataclass(frozen=True)
class Attempts:
    """How often a unit was begun, and the reasons of its failures."""

    num_begun: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def is_set_aside(self) -> bool:
        return self.num_begun >= MAX_ATTEMPTS

    @property
    def reason(self) -> str:
        """The last failure; a killed process leaves none."""
        return self.reasons[-1] if self.reasons else f"its process was killed {self.num_begun} times"


@dataclass(frozen=True)
class SurveyDir:
    """The files of a survey's prediction."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "settings.json"

    @property
    def units_file(self) -> Path:
        return self.path / "units.parquet"

    @property
    def parts_dir(self) -> Path:
        return self.path / "parts"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def hats_dir(self) -> Path:
        return self.path / "hats"

    def get_part(self, number: int) -> Path:
        return self.parts_dir / f"{number:06}.parquet"

    @property
    def claims_dir(self) -> Path:
        return self.path / "claims"

    def get_claim(self, number: int) -> Path:
        return self.claims_dir / f"{number:06}"

    def get_attempts_file(self, number: int) -> Path:
        return self.path / "attempts" / f"{number:06}.json"

    def list_tasks(self) -> list[RunDir]:
        """Return the tasks of all submissions, by number."""
        numbers = sorted(int(path.name.removeprefix("task-")) for path in self.path.glob("task-*[0-9]"))
        return [self.get_task(number) for number in numbers]

    def get_task(self, number: int) -> RunDir:
        return RunDir(self.path / f"task-{number}")

    def list_done(self) -> set[int]:
        """Return the numbers of the units that have a part."""
        return _list_numbers(self.parts_dir, ".parquet")

    def list_set_aside(self) -> dict[int, Attempts]:
        """Return the units that were begun too often, without those that are done or at hand."""
        numbers = sorted(_list_numbers(self.path / "attempts", ".json"))
        attempts = {number: self.read_attempts(number) for number in numbers}
        return {
            number: value
            for number, value in attempts.items()
            if value.is_set_aside and not self.get_part(number).exists() and not find_holder(self.get_claim(number))
        }

    def is_finished(self, number: int) -> bool:
        """Whether nothing is to be done for a unit: it has its part, or it was begun too often."""
        return self.get_part(number).exists() or self.read_attempts(number).is_set_aside

    def read_attempts(self, number: int) -> Attempts:
        try:
            values = json.loads(self.get_attempts_file(number).read_text(encoding="utf-8"))
            return Attempts(int(values["num_begun"]), tuple(map(str, values["reasons"])))
        except FileNotFoundError:
            return Attempts()
        except (OSError, ValueError, TypeError, KeyError):  # damaged: as if it was begun once
            return Attempts(1)

    def write_attempts(self, number: int, attempts: Attempts) -> None:
        if attempts == Attempts():
            self.get_attempts_file(number).unlink(missing_ok=True)
        else:
            write_text(self.get_attempts_file(number), json.dumps(asdict(attempts)))

    def write_settings(self, settings: SurveySettings) -> None:
        write_text(self.settings_file, json.dumps(asdict(settings), indent=1) + "\n")

    def read_settings(self) -> SurveySettings:
        """Read settings.json.

        Raises
        ------
        SurveyError
        """
        try:
            values = json.loads(self.settings_file.read_text(encoding="utf-8"))
            paths = tuple(values["runs"]), tuple(values["inputs"])
            numbers = int(values["galaxies_per_unit"]), int(values["cpus_per_task"])
            return SurveySettings(*paths, dict(values["identity"]), *numbers, bool(values["has_hats"]))
        except FileNotFoundError:
            raise SurveyError(f"{self.path}: got no settings.json; expected the directory of a prediction") from None
        except (ValueError, TypeError, KeyError) as error:
            raise SurveyError(f"{self.settings_file}: got {error}; expected the file that predict wrote") from None

    def write_units(self, units: Sequence[Unit]) -> None:
        """Write the plan of units."""
        import pyarrow as pa
        from pyarrow import parquet

        columns = zip(*units, strict=True)
        table = pa.table(dict(zip(units[0]._fields, map(pa.array, columns), strict=True)))
        with atomic_write(self.units_file) as aside:
            parquet.write_table(table, aside)

    def read_units(self) -> list[Unit]:
        """Return the plan of units.

        Raises
        ------
        SurveyError
        """
        import pyarrow as pa
        from pyarrow import parquet

        from galaxyhpc.data.survey.unit import Unit

        try:
            columns = parquet.read_table(self.units_file).to_pydict()
            return [Unit(*row) for row in zip(*(columns[name] for name in Unit._fields), strict=True)]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise SurveyError(f"{self.units_file}: got {error}; expected the plan that predict wrote") from None

    def write_tasks(self, num_tasks: int) -> list[RunDir]:
        """Write plan.csv with this many tasks; return them."""
        tasks = [self.get_task(number) for number in range(num_tasks)]
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows([["run_id"], *([task.run_id] for task in tasks)])
        write_text(self.path / "plan.csv", rows.getvalue())
        for path in (self.claims_dir, *(task.path for task in tasks)):
            path.mkdir(exist_ok=True)
        return tasks

    def remove_leftovers(self) -> None:
        """Remove the claims and attempts of units that are done: of processes that were killed just after that."""
        numbers = _list_numbers(self.claims_dir, "") | _list_numbers(self.path / "attempts", ".json")
        for number in numbers & self.list_done():
            if find_holder(self.get_claim(number)) is None:
                for path in (self.get_attempts_file(number), *self.claims_dir.glob(f"{number:06}*")):
                    path.unlink(missing_ok=True)


def is_survey(path: Path) -> bool:
    """Whether a directory holds the prediction of a survey."""
    return (path / "settings.json").is_file() and (path / "units.parquet").is_file()


def refuse_survey(path: Path) -> None:
    """Refuse the directory of a prediction where runs are expected.

    Raises
    ------
    RunDirError
    """
    if is_survey(path):
        raise RunDirError(f"{path}: got the prediction of a survey; expected a sweep or a run; rerun predict to resume")


def _list_numbers(directory: Path, ending: str) -> set[int]:
    """Return the numbers in the names of the files in a directory; hidden ones are being written."""
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except FileNotFoundError:
        return set()
    stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return {int(stem) for stem in stems if stem.isdecimal()}
