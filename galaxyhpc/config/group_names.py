"""Names of symmetry groups, without e2cnn: C4 has the quarter turns, D4 has those and reflections."""

from __future__ import annotations

import re


def check_group_name(name: str) -> str:
    """Return the name of a group, C1 to C64 or D1 to D64.

    Raises
    ------
    ValueError
        For any other name; the message is what is expected.
    """
    match = re.fullmatch(r"[CD]([1-9]\d?)", name)
    if match is None or int(match[1]) > 64:
        raise ValueError("C1 to C64 (rotations) or D1 to D64 (rotations and reflections)")
    return name


def is_subgroup(subgroup: str, group: str) -> bool:
    """Whether the rotations, and reflections, of one group are among those of the other."""
    return int(group[1:]) % int(subgroup[1:]) == 0 and (subgroup[0] == "C" or group[0] == "D")
