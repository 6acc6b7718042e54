"""The table of conditions a network is measured under: one row each, known without torch.

A row says how severe and in what unit; what is done to the pixels is the function of the same name in `corruptions`.
Adding a condition is one row here and one function there. `a+b` is a condition too: a, then b on what a left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass  # status wants the console alone, at once

MAX_PARTS = 3  # of a combination


@dataclass(frozen=True)
class Condition:
    """Physical parameters by severity, their unit, and what is done, in words.

    `levels` are the severities that a combination takes, mildest first; the first five unless named.
    """

    parameters: dict[float, float]
    unit: str
    description: str
    levels: tuple[float, ...] = ()
    value_format: str = ""  # how a value is written, such as `quality {:g}`, where its unit does not simply follow


def _number_severities(*values: float) -> dict[float, float]:
    """Number parameters from 1, the mildest, on."""
    return {float(severity): float(parameter) for severity, parameter in enumerate(values, 1)}


def _make_angles(first_deg: float, last_deg: float) -> dict[float, float]:
    """Return angles in steps of 7.5 degrees, each its own severity."""
    steps = range(round(first_deg / 7.5), round(last_deg / 7.5) + 1)
    return {7.5 * step: 7.5 * step for step in steps}


_ROTATION_LEVELS_DEG = (7.5, 15.0, 22.5, 30.0, 45.0)
_SEEING_FWHM_ARCSEC = _number_severities(0.7, 1.0, 1.3, 1.6, 2.0)

CONDITIONS = {
    "clean": Condition({0.0: 0.0}, "", "the images as they are"),
    "rotation": Condition(
        _make_angles(0.0, 352.5), "degrees", "turned counter-clockwise inside the disc", _ROTATION_LEVELS_DEG
    ),
    "rotation_control": Condition(
        _make_angles(7.5, 82.5), "degrees", "turned there and back: interpolation alone", _ROTATION_LEVELS_DEG
    ),
    "flip": Condition(
        _number_severities(1, 2), "axis", "mirrored: 1 left-right, 2 upside-down", value_format="axis {:g}"
    ),
    "shift": Condition(_number_severities(1, 2, 4, 6, 8), "px", "moved along an axis, the sky mirrored at the edge"),
    "pedestal_noise": Condition(
        {snr: snr for snr in (0.75, 0.5, 0.25)}, "SNR", "the study's noise, really a pedestal", value_format="SNR {:g}"
    ),
    "shot_noise": Condition(
        _number_severities(0.5, 0.25, 0.1, 0.04, 0.02), "of the exposure time", "observed for a shorter time"
    ),
    "sky_noise": Condition(
        _number_severities(2, 4, 8, 16, 32),
        "DN",
        "Gaussian noise of this standard deviation",
        value_format="sigma {:g} DN",
    ),
    "sky_pedestal": Condition(_number_severities(5, 10, 20, 40, 80), "DN", "a brighter sky, left unsubtracted"),
    "sky_gradient": Condition(
        _number_severities(10, 20, 40, 80, 160), "DN", "a sky brightening from one edge to the other"
    ),
    "psf_gaussian": Condition(_SEEING_FWHM_ARCSEC, "arcsec FWHM", "blurred by a Gaussian"),
    "psf_moffat": Condition(_SEEING_FWHM_ARCSEC, "arcsec FWHM", "blurred by a Moffat function, which has wings"),
    "downsample": Condition(
        _number_severities(0.75, 0.5, 0.375, 0.25, 0.2), "of the pixels a side", "fewer pixels, averaged"
    ),
    "downsample_bilinear": Condition(
        _number_severities(0.75, 0.5, 0.25), "of the pixels a side", "fewer pixels, as the study"
    ),
    "bad_pixels": Condition(
        _number_severities(0.001, 0.003, 0.01, 0.03, 0.1), "of the pixels", "hot or dead, in each band"
    ),
    "cosmic_rays": Condition(
        _number_severities(1, 2, 4, 8, 16), "streaks", "cosmic rays, each in one band", value_format="streaks: {:g}"
    ),
    "saturation": Condition(_number_severities(200, 160, 120, 90, 65), "DN full well", "bright parts cut off"),
    "band_loss": Condition(
        _number_severities(0, 1, 2), "channel", "one band gone: 0 z, 1 r, 2 g", value_format="channel {:g}"
    ),
    "gain_error": Condition(
        _number_severities(0.05, 0.1, 0.2, 0.3, 0.4),
        "of ln gain",
        "each band mis-calibrated",
        value_format="sigma(ln gain) {:g}",
    ),
    "jpeg": Condition(
        _number_severities(75, 50, 30, 15, 8), "quality", "JPEG, decoded again", value_format="quality {:g}"
    ),
    "star": Condition(
        _number_severities(1, 5, 25, 125, 625),
        "x full scale",
        "a star beside the galaxy, saturated",
        value_format="peak {:g} x full scale",
    ),
}
CATEGORICAL_LABELS = {  # severities that are not more or less of the same
    "flip": {1.0: "left-right", 2.0: "upside-down"},
    "band_loss": {1.0: "no z", 2.0: "no r", 3.0: "no g"},
}
DEFAULT_CONDITIONS = (*CONDITIONS, "rotation+shot_noise", "psf_moffat+shot_noise")


def split_combination(name: str) -> tuple[str, ...]:
    """Return the names that a combination is made of; a plain condition is its only part."""
    return tuple(name.split("+"))


def is_condition(name: str) -> bool:
    """Whether a name is a row of the table, or a combination of different ones."""
    several = split_combination(name)
    if len(several) == 1:
        return name in CONDITIONS
    known = set(several) <= CONDITIONS.keys() - {"clean"}
    return known and len(several) == len(set(several)) <= MAX_PARTS


def get_levels(name: str) -> tuple[float, ...]:
    """Return the severities that a condition takes inside a combination, mildest first: five or fewer."""
    row = CONDITIONS[name]
    return row.levels or tuple(row.parameters)[:5]


def get_severities(name: str) -> tuple[float, ...]:
    """Return the severities a condition is measured at; those of a combination are 1, 2 ... up to 5."""
    several = split_combination(name)
    if len(several) == 1:
        return tuple(CONDITIONS[name].parameters)
    return tuple(float(k + 1) for k in range(min(len(get_levels(part)) for part in several)))


def list_severity_pairs(names: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Return every severity of these conditions, each with its condition."""
    return tuple((name, severity) for name in names for severity in get_severities(name))


def get_parameters(name: str, severity: float) -> list[tuple[str, float]]:
    """Return each part's name and parameter, in order."""
    several = split_combination(name)
    if len(several) == 1:
        return [(name, CONDITIONS[name].parameters[severity])]
    return [(part, CONDITIONS[part].parameters[get_levels(part)[round(severity) - 1]]) for part in several]


def get_parameter(name: str, severity: float) -> float:
    """Return the physical parameter of a severity in `unit(name)`; a combination has several, so its level."""
    several = get_parameters(name, severity)
    return several[0][1] if len(several) == 1 else severity


def get_unit(name: str) -> str:
    """Return the unit of `parameter`."""
    return CONDITIONS[name].unit if len(split_combination(name)) == 1 else "level of each"


def describe_severity(name: str, severity: float) -> str:
    """Say a severity in physical words: `1.3 arcsec FWHM + 0.1 of the exposure time`."""
    return " + ".join(
        (CONDITIONS[part].value_format or f"{{:g}} {get_unit(part)}").format(value)
        for part, value in get_parameters(name, severity)
    )


ROTATION_MEAN = ("rotation_mean", 0.0)  # over all planned angles; a row of its own, for it has its own interval
