"""Labels from the names or numbers of classes, and given splits from the names of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from galaxyhpc.config.class_names import check_class_names
from galaxyhpc.data import DataError
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.data.split_file import SPLITS

SPLIT_NAMES = {**{name: name for name in SPLITS}, "training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {"dev": "validation", "testing": "test"}  # the names that others use
MAX_LISTED = 12  # classes in a message

Locate = Callable[[int], str]  # from a row to where it stands


def make_labels(
    path: Path, key: str, texts: np.ndarray, selected: Sequence[str], locate: Locate
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an (N,) label for each text, and the names of the classes in the order of their labels.

    Without `selected` the classes are all the texts, sorted, numbers by value. With it they are these, in this order,
    and galaxies of other classes, or of none, have the label -1.

    Raises
    ------
    DataError
        If a text is missing, or a selected class has no galaxy.
    """
    texts = _format_whole_numbers(texts)
    names = tuple(selected) or _sort_names(set(texts.tolist()))
    if not selected:
        _check_present(path, key, texts, locate)
        try:
            check_class_names(names)
        except ValueError as error:
            raise DataError(f"{path}: {key}: {error}") from None
    elif absent := [name for name in names if name not in set(texts.tolist())]:
        known = [name for name in _sort_names(set(texts.tolist())) if name]
        listed = ", ".join(known[:MAX_LISTED]) + (", ..." if len(known) > MAX_LISTED else "")
        raise make_error(path, "data.classes", f"{absent[0]!r}, of which {key} has no galaxy", f"some of {listed}")
    number_by_name = {name: number for number, name in enumerate(names)}
    return np.array([number_by_name.get(text, -1) for text in texts.tolist()], dtype=np.int64), names


def _format_whole_numbers(texts: np.ndarray) -> np.ndarray:
    """Write whole numbers as such, 1.0 as 1, if all texts are numbers."""
    formatted = {"": ""}
    for text in set(texts.tolist()) - {""}:
        try:
            number = float(text)
        except ValueError:
            return texts
        formatted[text] = str(int(number)) if number.is_integer() else text
    return np.array([formatted[text] for text in texts.tolist()], dtype=str)


def _sort_names(names: set[str]) -> tuple[str, ...]:
    """Sort by value if all are numbers, otherwise as text."""
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def _check_present(path: Path, key: str, texts: np.ndarray, locate: Locate) -> None:
    """Refuse missing labels; negative numbers stand for them in many catalogues."""
    advice = "a class for each galaxy, or the classes to train on in data.classes, which leaves out the others"
    for row in np.flatnonzero(np.char.startswith(texts, "-") | (texts == "")):
        text = str(texts[row])
        if not text or text[1:].isdecimal():
            raise make_error(path, key, f"{text or 'nothing'} in {locate(int(row))}", advice)


def parse_splits(path: Path, key: str, texts: np.ndarray, locate: Locate) -> np.ndarray:
    """Return one of SPLITS for each text, such as `validation` for `val`.

    Raises
    ------
    DataError
    """
    expected = "train, validation or test; data.columns.split='' divides the galaxies anew"
    splits = np.array([SPLIT_NAMES.get(text.lower(), "") for text in texts.tolist()])
    for row in np.flatnonzero(splits == ""):
        raise make_error(path, key, f"{texts[row] or 'nothing'} in {locate(int(row))}", expected)
    if absent := {"train", "test"} - set(splits.tolist()):
        raise make_error(path, key, f"no galaxy for {absent.pop()}", expected)
    return splits
