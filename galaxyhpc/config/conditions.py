"""The conditions under which networks are evaluated: one row each, without torch.

A row holds the severities and their unit; the function of the same name in `evaluation.corruptions` changes the pixels.
To add a condition, add one row here, and there a function and its row in `CORRUPTIONS`. `a+b` is a condition too: b
applied to the result of a.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

MAX_PARTS = 3  # of a combination


@dataclass(frozen=True)
class Condition:
    """Physical parameters by severity, their unit, and a description of the change to the images.

    `levels` are the severities used in combinations, mildest first; by default the first five.
    """

    parameters: dict[float, float]
    unit: str
    description: str
    levels: tuple[float, ...] = ()
    value_format: str = ""  # such as `quality {:g}`; by default the value is followed by the unit


def _number_severities(*values: float) -> dict[float, float]:
    """Number parameters from severity 1, the mildest."""
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
        _make_angles(0.0, 352.5), "degrees", "rotated counter-clockwise inside the disc", _ROTATION_LEVELS_DEG
    ),
    "rotation_control": Condition(
        _make_angles(7.5, 82.5), "degrees", "rotated there and back: interpolation only", _ROTATION_LEVELS_DEG
    ),
    "flip": Condition(
        _number_severities(1, 2), "axis", "mirrored: 1 left-right, 2 upside-down", value_format="axis {:g}"
    ),
    "shift": Condition(_number_severities(1, 2, 4, 6, 8), "px", "shifted along an axis, with reflect padding"),
    "pedestal_noise": Condition(
        {snr: snr for snr in (0.75, 0.5, 0.25)},
        "SNR",
        "noise as in the study, in effect a pedestal",
        value_format="SNR {:g}",
    ),
    "shot_noise": Condition(
        _number_severities(0.5, 0.25, 0.1, 0.04, 0.02), "of the exposure time", "shorter exposure time"
    ),
    "sky_noise": Condition(
        _number_severities(2, 4, 8, 16, 32),
        "DN",
        "Gaussian noise of this standard deviation",
        value_format="sigma {:g} DN",
    ),
    "sky_pedestal": Condition(_number_severities(5, 10, 20, 40, 80), "DN", "a brighter sky, not subtracted"),
    "sky_gradient": Condition(
        _number_severities(10, 20, 40, 80, 160), "DN", "a sky brightening from one edge to the other"
    ),
    "psf_gaussian": Condition(_SEEING_FWHM_ARCSEC, "arcsec FWHM", "blurred by a Gaussian"),
    "psf_moffat": Condition(_SEEING_FWHM_ARCSEC, "arcsec FWHM", "blurred by a Moffat profile, which has wings"),
    "downsample": Condition(
        _number_severities(0.75, 0.5, 0.375, 0.25, 0.2), "of the pixels per side", "fewer pixels, averaged"
    ),
    "downsample_bilinear": Condition(
        _number_severities(0.75, 0.5, 0.25),
        "of the pixels per side",
        "fewer pixels, interpolated bilinearly as in the study",
    ),
    "bad_pixels": Condition(
        _number_severities(0.001, 0.003, 0.01, 0.03, 0.1), "of the pixels", "hot or dead, in each band"
    ),
    "cosmic_rays": Condition(
        _number_severities(1, 2, 4, 8, 16), "streaks", "cosmic rays, each in one band", value_format="streaks: {:g}"
    ),
    "saturation": Condition(_number_severities(200, 160, 120, 90, 65), "DN full well", "bright pixels clipped"),
    "band_loss": Condition(
        _number_severities(0, 1, 2), "channel", "one band missing: 0 z, 1 r, 2 g", value_format="channel {:g}"
    ),
    "gain_error": Condition(
        _number_severities(0.05, 0.1, 0.2, 0.3, 0.4),
        "of ln gain",
        "each band mis-calibrated",
        value_format="sigma(ln gain) {:g}",
    ),
    "jpeg": Condition(
        _number_severities(75, 50, 30, 15, 8), "quality", "JPEG compression", value_format="quality {:g}"
    ),
    "star": Condition(
        _number_severities(1, 5, 25, 125, 625),
        "x full scale",
        "a star beside the galaxy, saturated",
        value_format="peak {:g} x full scale",
    ),
}
CATEGORICAL_LABELS = {  # severities without an order
    "flip": {1.0: "left-right", 2.0: "upside-down"},
    "band_loss": {1.0: "no z", 2.0: "no r", 3.0: "no g"},
}
ARCSEC_CONDITIONS = ("psf_gaussian", "psf_moffat", "cosmic_rays", "star")  # need the pixel scale of the images
DEFAULT_CONDITIONS = (*CONDITIONS, "rotation+shot_noise", "psf_moffat+shot_noise")


def split_combination(name: str) -> tuple[str, ...]:
    """Return the names of the parts of a combination; a single condition is its only part."""
    return tuple(name.split("+"))


def is_condition(name: str) -> bool:
    """Whether a name is a row of the table, or a combination of different ones."""
    parts = split_combination(name)
    if len(parts) == 1:
        return name in CONDITIONS
    are_known = set(parts) <= CONDITIONS.keys() - {"clean"}
    return are_known and len(parts) == len(set(parts)) <= MAX_PARTS


def describe_expected(name: str) -> str:
    """Describe what `is_condition` accepts, and suggest the nearest name."""
    near = [match for part in split_combination(name) for match in get_close_matches(part, CONDITIONS, 1)]
    hint = f"; did you mean {'+'.join(near)}?" if is_condition("+".join(near)) else ""
    combination = f"2 to {MAX_PARTS} different ones (not clean) joined by +, such as rotation+shot_noise"
    return f"one of {', '.join(CONDITIONS)}, or {combination}{hint}"


def needs_pixel_scale(name: str) -> bool:
    """Whether a condition, or a part of it, has lengths in arcsec."""
    return not set(split_combination(name)).isdisjoint(ARCSEC_CONDITIONS)


def get_levels(name: str) -> tuple[float, ...]:
    """Return the at most five severities of a condition inside a combination, mildest first."""
    condition = CONDITIONS[name]
    return condition.levels or tuple(condition.parameters)[:5]


def get_severities(name: str) -> tuple[float, ...]:
    """Return the severities a condition is evaluated at; those of a combination are 1, 2 ... up to 5."""
    parts = split_combination(name)
    if len(parts) == 1:
        return tuple(CONDITIONS[name].parameters)
    return tuple(float(k + 1) for k in range(min(len(get_levels(part)) for part in parts)))


def list_severity_pairs(names: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Return every pair of condition and severity."""
    return tuple((name, severity) for name in names for severity in get_severities(name))


def get_parameters(name: str, severity: float) -> list[tuple[str, float]]:
    """Return the name and the physical parameter of each part, in order."""
    parts = split_combination(name)
    if len(parts) == 1:
        return [(name, CONDITIONS[name].parameters[severity])]
    return [(part, CONDITIONS[part].parameters[get_levels(part)[round(severity) - 1]]) for part in parts]


def get_parameter(name: str, severity: float) -> float:
    """Return the physical parameter of a severity in the unit of `get_unit`; of a combination, its level."""
    parameters = get_parameters(name, severity)
    return parameters[0][1] if len(parameters) == 1 else severity


def get_unit(name: str) -> str:
    """Return the unit of `get_parameter`."""
    return CONDITIONS[name].unit if len(split_combination(name)) == 1 else "level of each"


def describe_severity(name: str, severity: float) -> str:
    """Describe a severity physically: `1.3 arcsec FWHM + 0.1 of the exposure time`."""
    return " + ".join(
        (CONDITIONS[part].value_format or f"{{:g}} {get_unit(part)}").format(value)
        for part, value in get_parameters(name, severity)
    )


ROTATION_MEAN = (
    "rotation_mean",
    0.0,
)  # mean over all evaluated angles; a row of its own, with its own confidence interval
