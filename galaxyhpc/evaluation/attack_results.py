"""What the one-pixel attack on a run came to: attack.csv, and rates of success against the budget.

    attack.csv   one row per attacked galaxy, which are those that the network classifies rightly: row, label,
                 sky_group; success; queries, up to and with the first image that is misclassified, or the whole budget;
                 the pixel x (column), y (row), r, g, b (0 to 255) of that image, or of the one that came nearest; and
                 the class predicted of it. The first line, a comment, says of which weights, galaxies and settings.

The file grows with every few galaxies and appears whole each time. A damaged file counts as absent.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import AttackConfig
from galaxyhpc.evaluation.metrics import NUM_CLASSES
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

log = logging.getLogger(__name__)

SCHEMA = 1
COLUMNS = ("row", "label", "sky_group", "success", "queries", "x", "y", "r", "g", "b", "predicted")


@dataclass(frozen=True)
class AttackSpec:
    """What was attacked, and how."""

    run_id: str
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies
    population: int
    iterations: int
    galaxies: int  # most that were to be attacked

    @property
    def budget(self) -> int:
        """Images that the network may be asked about per galaxy."""
        return self.population * (self.iterations + 1)

    def is_same_attack(self, other: AttackSpec) -> bool:
        """Whether results of the one are results of the other, for the galaxies that are in both."""
        return {**asdict(self), "galaxies": 0} == {**asdict(other), "galaxies": 0}


@dataclass(frozen=True, eq=False)
class AttackResults:
    """The galaxies attacked so far: a table of COLUMNS."""

    spec: AttackSpec
    table: pd.DataFrame
    is_complete: bool


def get_attack_file(run: RunDir) -> Path:
    """Return where the attack on a run is kept."""
    return run.path / "attack.csv"


def make_empty_table() -> pd.DataFrame:
    """Return a table of no galaxies."""
    return pd.DataFrame({name: pd.Series(dtype=bool if name == "success" else np.int64) for name in COLUMNS})


def save(run: RunDir, results: AttackResults) -> None:
    """Write attack.csv, whole."""
    head = json.dumps({"schema": SCHEMA, **asdict(results.spec), "complete": results.is_complete})
    write_text(get_attack_file(run), f"# {head}\n" + results.table.sort_values("row").to_csv(index=False))


def read(run: RunDir) -> AttackResults | None:
    """Read attack.csv; None where it is absent or damaged, which is logged."""
    if not get_attack_file(run).exists():
        return None
    try:
        return parse(run)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        said = " ".join(str(error).split())[:200]
        log.warning("%s: damaged, taken for absent: %s", get_attack_file(run), said)
        return None


def read_finished_attack(run: RunDir, settings: AttackConfig, weights: str) -> AttackResults | None:
    """Return the complete attack on these weights as the settings want it; None where none is wanted, or there."""
    found = read(run) if settings.galaxies else None
    if found is None or not found.is_complete or found.spec.weights != weights:
        return None
    return found if settings.model_dump().items() <= asdict(found.spec).items() else None


def parse(run: RunDir) -> AttackResults:
    """Read attack.csv and check that each row is possible.

    Raises
    ------
    OSError, ValueError, LookupError, TypeError
        where it is not what `save` wrote
    """
    head, _, rest = get_attack_file(run).read_text(encoding="utf-8").partition("\n")
    said = json.loads(head.removeprefix("# "))
    if said.pop("schema") != SCHEMA or said["run_id"] != run.run_id:
        raise ValueError(f"it is of run {said['run_id']}")
    complete, source = bool(said.pop("complete")), AttackSpec(**said)
    table = pd.read_csv(StringIO(rest), dtype=dict(make_empty_table().dtypes))
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"found columns {', '.join(map(str, table.columns))}; wanted are {', '.join(COLUMNS)}")
    possible = (
        table["label"].between(0, NUM_CLASSES - 1)
        & table["predicted"].between(0, NUM_CLASSES - 1)
        & table["queries"].between(1, source.budget)
        & (table[["x", "y"]] >= 0).all(axis=1)
        & table[["r", "g", "b"]].isin(range(256)).all(axis=1)
        & (table["success"] == (table["predicted"] != table["label"]))
        & (table["success"] | (table["queries"] == source.budget))
    )
    if not possible.all() or table["row"].duplicated().any():
        raise ValueError("rows that cannot be, or a galaxy that stands in it twice")
    return AttackResults(source, table, complete)
