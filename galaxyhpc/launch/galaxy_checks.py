"""Checks the galaxies of a sweep before a launch: that jobs can read and divide them, as the runs so far did.

From the columns of the file, or its converted form, and one slice of its pixels: 1.3 s for the published file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from galaxyhpc.config.conditions import needs_pixel_scale
from galaxyhpc.config.schema import DataConfig, RunConfig
from galaxyhpc.launch.problem import Problem

if TYPE_CHECKING:
    import pandas as pd

COMMON_DATA_SETTINGS = {"source", "demo", "validation_fraction", "test_fraction", "split_seed", "link_arcsec"}
COMMON_DATA_SETTINGS |= {"conflicting_duplicates", "classes", "columns", "images", "crop", "field_arcsec"}
MAX_SHOWN_CHARACTERS = 200  # of a setting: names of a thousand classes are one


def get_distinct_data(configs: Sequence[RunConfig]) -> list[DataConfig]:
    """Return the data settings of a sweep, each once."""
    return list(dict.fromkeys(config.data for config in configs))


def check_common_split(configs: Sequence[RunConfig]) -> list[Problem]:
    """Check that all runs share one split of the same galaxies: otherwise their results cannot be compared."""
    settings = [data.model_dump(include=COMMON_DATA_SETTINGS) for data in get_distinct_data(configs)]
    values_by_name = {name: sorted({str(data[name]) for data in settings}) for name in sorted(COMMON_DATA_SETTINGS)}
    return [
        Problem(
            f"data.{name}",
            f"got {', '.join(value[:MAX_SHOWN_CHARACTERS] for value in values)}",
            "expected one value per sweep: launch a sweep for each",
        )
        for name, values in values_by_name.items()
        if len(values) > 1
    ]


def fill_in_class_names(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the runs with the names of their source's classes where the sweep gives none.

    They are part of a run's identity, and the size of its network. A source that cannot be read stays as it is: the
    checks of all runs report it.
    """
    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxies import fill_in_classes

    filled_in: dict[DataConfig, DataConfig] = {}
    for members in _group_by_common_settings(get_distinct_data(configs)):
        names = members[0].classes
        with suppress(DataError):
            names = fill_in_classes(members[0]).classes
        filled_in |= {data: data.model_copy(update={"classes": names}) for data in members}
    return [config.model_copy(update={"data": filled_in[config.data]}) for config in configs]


def divide_galaxies(configs: Sequence[RunConfig], problems: list[Problem]) -> dict[DataConfig, pd.DataFrame]:
    """Return the division of the galaxies by settings; add a problem where a job could not read or divide them.

    A file that serves several image sizes or folds is read once.
    """
    from galaxyhpc.data import DataError
    from galaxyhpc.data.dataset import divide_before_conversion

    tables: dict[DataConfig, pd.DataFrame] = {}
    for members in _group_by_common_settings(get_distinct_data(configs)):
        source = members[0].source
        try:
            tables |= divide_before_conversion(members)
        except DataError as error:
            message, _, advice = str(error).removeprefix(f"{source}: ").partition("; ")
            problems.append(Problem(f"data.source: {source}", message, advice))
    return tables


def _group_by_common_settings(settings: Sequence[DataConfig]) -> list[list[DataConfig]]:
    groups: dict[str, list[DataConfig]] = {}
    for data in settings:
        groups.setdefault(data.model_dump_json(include=COMMON_DATA_SETTINGS), []).append(data)
    return list(groups.values())


def check_pixel_scale(configs: Sequence[RunConfig]) -> Iterator[Problem]:
    """Yield a problem if conditions in arcsec are asked for of images whose size on the sky is unknown."""
    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxies import read_field_arcsec

    names = {name: None for config in configs for name in config.evaluate.conditions if needs_pixel_scale(name)}
    for members in _group_by_common_settings(get_distinct_data(configs)) if names else ():
        with suppress(DataError):  # another check reports it
            if math.isnan(read_field_arcsec(members[0])):
                message = f"got {', '.join(names)}, which need the pixel scale that {members[0].source} does not say"
                advice = "expected data.field_arcsec=SIDE_OF_AN_IMAGE, or evaluate.conditions without them"
                yield Problem("evaluate.conditions", message, advice)


def check_training_galaxies(configs: Sequence[RunConfig], tables: dict[DataConfig, pd.DataFrame]) -> Iterator[Problem]:
    """Yield a problem for each label fraction that leaves a process less than the two images of a batch norm."""
    from galaxyhpc.data.split import select_training_indices

    for data, table in tables.items():
        num_galaxies = len(select_training_indices(table, data))
        num_tasks = max(config.resources.num_tasks for config in configs if config.data == data)
        if num_galaxies < 2 * num_tasks:
            message = f"got {data.label_fraction:g}, which leaves {num_galaxies} training galaxies"
            yield Problem("data.label_fraction", message, f"expected 2 or more for each of {num_tasks} processes")


def check_galaxies_unchanged(data: DataConfig, directory: Path) -> Problem | None:
    """Return a problem if the sweep was started with other galaxies, or another split of them."""
    from galaxyhpc.data.dataset import format_split_settings
    from galaxyhpc.data.galaxies import open_converted
    from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_header

    path = directory / SPLIT_FILE_NAME
    if not path.exists():
        return None
    header, settings = read_split_header(path), format_split_settings(data)
    advice = "restore the old data, or launch under another name (--set name=...)"
    if header.get("settings") != settings:
        message = f"made with {header.get('settings', 'unknown settings')}, now {settings}"
        return Problem(str(path), message, advice)
    galaxies, old = open_converted(data), header.get("fingerprint", "unknown")
    if galaxies is None:
        change = "labels or positions of" if _has_different_columns(path, data) else ""
    else:
        change = f"fingerprint {galaxies.fingerprint[:12]} of" if galaxies.fingerprint != old else ""
    message = f"made from galaxies {old[:12]} ({header.get('source', 'unknown')}), now other {change} {data.source}"
    return Problem(str(path), message, advice) if change else None


def _has_different_columns(path: Path, data: DataConfig) -> bool:
    """Compare labels and positions of a split with a file that is not converted yet; for demo galaxies, the number."""
    import numpy as np

    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxies import read_columns
    from galaxyhpc.data.split_file import read_split_table

    try:
        table = read_split_table(path)
    except DataError:  # damaged
        return True
    if data.source == "demo":
        return len(table) != data.demo.galaxies
    columns = read_columns(data)
    new = np.stack([columns.labels, columns.ra, columns.dec])
    old = table[["label", "ra", "dec"]].to_numpy().T
    return old.shape != new.shape or not np.allclose(old, new, rtol=0, atol=1e-9, equal_nan=True)
