"""Names of the classes that galaxies are divided into, in the order of their labels 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence

GALAXY10_CLASSES: tuple[str, ...] = (
    *("Disturbed", "Merging", "Round Smooth", "In-between Round Smooth", "Cigar Shaped Smooth"),
    *("Barred Spiral", "Unbarred Tight Spiral", "Unbarred Loose Spiral"),
    *("Edge-on without Bulge", "Edge-on with Bulge"),
)
MIN_CLASSES, MAX_CLASSES = 2, 1000
MAX_NAME_LENGTH = 100  # characters


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names if a network can be trained on them.

    Raises
    ------
    ValueError
        If there are too few or too many, or a name is empty, doubled or not printable.
    """
    if not MIN_CLASSES <= len(names) <= MAX_CLASSES:
        raise ValueError(f"got {len(names)} classes; expected {MIN_CLASSES} to {MAX_CLASSES}")
    for name in names:
        if name != name.strip() or not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
            expected = f"1 to {MAX_NAME_LENGTH} printable characters, without spaces around them"
            raise ValueError(f"got class name {name!r}; expected {expected}")
    if doubled := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ValueError(f"got class name {doubled!r} twice; expected names that differ")
    return tuple(names)


def get_probability_columns(class_names: Sequence[str], is_calibrated: bool) -> list[str]:
    """Return the names of the columns with the probabilities of the classes: those not calibrated are called raw.

    `p_` and the name of the class, with _ for spaces unless two classes would have one column.
    """
    underscored = [name.replace(" ", "_") for name in class_names]
    endings = underscored if len(set(underscored)) == len(class_names) else class_names
    return [f"{'' if is_calibrated else 'raw_'}p_{ending}" for ending in endings]
