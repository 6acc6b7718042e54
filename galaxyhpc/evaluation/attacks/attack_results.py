"""Results of the one-pixel attack on a run: attack.csv.

    attack.csv   one row per attacked galaxy, each correctly classified when clean: row, label, sky_group; success;
                 queries, up to and including the first misclassified image, or the whole budget; the pixel x (column),
                 y (row), r, g, b (0 to 255) of that image, or of the one with the lowest probability of the true
                 class; and the class predicted for it. The first line is a comment: weights, data and settings.

The file is replaced, atomically, after every chunk of galaxies. A corrupt file is treated as absent.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.class_names import MAX_CLASSES
from galaxyhpc.config.schema import AttackConfig
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

log = logging.getLogger(__name__)

SCHEMA = 1
COLUMNS = ("row", "label", "sky_group", "success", "queries", "x", "y", "r", "g", "b", "predicted")


@dataclass(frozen=True)
class AttackSpec:
    """Weights, data and settings of an attack."""

    run_id: str
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies
    population: int
    iterations: int
    galaxies: int  # maximum number to attack

    @property
    def budget(self) -> int:
        """Maximum number of queries of the network per galaxy."""
        return self.population * (self.iterations + 1)

    def is_same_attack(self, other: AttackSpec) -> bool:
        """Whether both give the same results for the galaxies in both."""
        return {**asdict(self), "galaxies": 0} == {**asdict(other), "galaxies": 0}


@dataclass(frozen=True, eq=False)
class AttackResults:
    """Galaxies attacked so far: a table of COLUMNS."""

    spec: AttackSpec
    table: pd.DataFrame
    is_complete: bool


def get_attack_file(run: RunDir) -> Path:
    """Return the path of a run's attack.csv."""
    return run.path / "attack.csv"


def make_empty_table() -> pd.DataFrame:
    """Return a table of no galaxies."""
    return pd.DataFrame({name: pd.Series(dtype=bool if name == "success" else np.int64) for name in COLUMNS})


def save(run: RunDir, results: AttackResults) -> None:
    """Write attack.csv, atomically."""
    head = json.dumps({"schema": SCHEMA, **asdict(results.spec), "complete": results.is_complete})
    write_text(get_attack_file(run), f"# {head}\n" + results.table.sort_values("row").to_csv(index=False))


def read(run: RunDir) -> AttackResults | None:
    """Read attack.csv; None where it is absent or, with a warning, corrupt."""
    if not get_attack_file(run).exists():
        return None
    try:
        return parse(run)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        log.warning("%s: ignored: corrupt: %s", get_attack_file(run), " ".join(str(error).split())[:200])
        return None


def read_finished_attack(run: RunDir, settings: AttackConfig, weights: str) -> AttackResults | None:
    """Return the complete attack on these weights with these settings; None where none is configured or finished."""
    results = read(run) if settings.galaxies else None
    if results is None or not results.is_complete or results.spec.weights != weights:
        return None
    return results if settings.model_dump().items() <= asdict(results.spec).items() else None


def parse(run: RunDir, num_classes: int = MAX_CLASSES) -> AttackResults:
    """Read attack.csv and validate each row.

    Raises
    ------
    OSError, ValueError, LookupError, TypeError
        if it is not as `save` writes it
    """
    header, _, rows = get_attack_file(run).read_text(encoding="utf-8").partition("\n")
    fields = json.loads(header.removeprefix("# "))
    if fields.pop("schema") != SCHEMA or fields["run_id"] != run.run_id:
        raise ValueError(f"results of run {fields['run_id']}")
    is_complete, spec = bool(fields.pop("complete")), AttackSpec(**fields)
    table = pd.read_csv(StringIO(rows), dtype=dict(make_empty_table().dtypes))
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"got columns {', '.join(map(str, table.columns))}; expected {', '.join(COLUMNS)}")
    is_valid = (
        table["label"].between(0, num_classes - 1)
        & table["predicted"].between(0, num_classes - 1)
        & table["queries"].between(1, spec.budget)
        & (table[["x", "y"]] >= 0).all(axis=1)
        & table[["r", "g", "b"]].isin(range(256)).all(axis=1)
        & (table["success"] == (table["predicted"] != table["label"]))
        & (table["success"] | (table["queries"] == spec.budget))
    )
    if not is_valid.all() or table["row"].duplicated().any():
        raise ValueError("invalid rows, or a duplicate galaxy")
    return AttackResults(spec, table, is_complete)
