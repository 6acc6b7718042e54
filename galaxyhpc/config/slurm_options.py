"""Types of the resource settings, and the further options of sbatch and srun that a user may give.

Any option is handed on, and `sbatch --test-only` judges it, except those that galaxyhpc sets itself: an option that has
a setting is refused with the setting's name, and one that jobs, resumption or status depend on is refused by its own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Minutes = Annotated[int, Field(ge=2, le=10**6)]
Gigabytes = Annotated[float, Field(ge=0.01, le=10**6)]
NumGpus = Annotated[int, Field(ge=0, le=10**6)]
_TOKEN = r"""[^\s"'#\\\x00-\x1f]+"""  # written unquoted in an sbatch file
SlurmToken = Annotated[str, Field(pattern=f"^{_TOKEN}$")]


def _get_tag(value: object) -> str:
    return "auto" if value == "auto" else "number"


Auto = Annotated[Literal["auto"], Tag("auto")]  # replaced by a number when a sweep is launched
AutoMinutes = Annotated[Annotated[Minutes, Tag("number")] | Auto, Discriminator(_get_tag)]
AutoGigabytes = Annotated[Annotated[Gigabytes, Tag("number")] | Auto, Discriminator(_get_tag)]
AutoNumGpus = Annotated[Annotated[NumGpus, Tag("number")] | Auto, Discriminator(_get_tag)]

_GPUS_SETTING = "gpus_per_node, and a type of GPU as sbatch.gres"
_SETTING_OF_SBATCH_OPTION = {
    "account": "account",
    "constraint": "constraint",
    "cpus-per-gpu": "cpus_per_task",
    "cpus-per-task": "cpus_per_task",
    "exclude": "exclude_nodes",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"), _GPUS_SETTING),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_gb"),
    "nodes": "nodes",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "tasks_per_node"),
    "partition": "partition",
    "qos": "qos",
    "requeue": "requeue",
    "time": "time_minutes",
    "tres-per-task": "cpus_per_task",
}
_OWN_SBATCH_OPTIONS = (
    *("array", "clusters", "comment", "dependency", "error", "export", "export-file", "help", "job-name"),
    *("kill-on-invalid-dep", "no-requeue", "open-mode", "output", "parsable", "quiet", "signal", "test-only", "usage"),
    *("version", "wait", "wrap"),
)
_SETTING_OF_SRUN_OPTION = {
    "cpus-per-task": "cpus_per_task",
    "nodes": "nodes",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "tasks_per_node"),
    "time": "time_minutes",
}
_OWN_SRUN_OPTIONS = (
    *("error", "export", "export-file", "help", "input", "job-name", "jobid", "kill-on-bad-exit", "multi-prog"),
    *("no-kill", "open-mode", "output", "pty", "signal", "test-only", "unbuffered", "usage", "version", "wait"),
)
_OPTION_NAME = r"[a-z][a-z0-9]+(?:-[a-z0-9]+)*"
_GPUS_PATTERN = re.compile(r"(?P<kind>(?:gres[/:])?gpu(?::(?!\d+(?:,|$))[^:,]+)?)(?::(?P<number>\d+))?")


def _find_expected(name: str, settings: dict[str, str], own_options: tuple[str, ...]) -> str:
    """Return how to give an option that is refused here, also where its name is abbreviated; '' for any other."""
    for option, setting in settings.items():
        if option.startswith(name):
            return f"as resources.{setting}"
    own = next((option for option in own_options if option.startswith(name)), "")
    return own and f"to be left out: galaxyhpc sets --{own} itself"


class SbatchOptions(BaseModel):
    """Options of sbatch by their long names; `true` is an option without a value, `false` leaves one out."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        check_options({name: [value] for name, value in (self.model_extra or {}).items()})
        return self

    @property
    def requested(self) -> dict[str, str | int]:
        """The options to hand to sbatch."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not False}


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of sbatch by name, each with a value or a list of its values; an error has the path of a value."""
    errors = [
        InitErrorDetails(type=PydanticCustomError("option", "{text}", {"text": text}), loc=(name, *index), input=value)
        for name, values in options.items()
        for *index, value in (enumerate(values) if isinstance(values, list) and values else [(values,)])
        if (text := _find_expected_option(name, value))
    ]
    if errors:
        raise ValidationError.from_exception_data(SbatchOptions.__name__, errors)
    return options


def _find_expected_option(name: str, value: object) -> str:
    """Return what is expected instead of this option of sbatch; '' if nothing is wrong with it."""
    if not re.fullmatch(_OPTION_NAME, name):
        similar = name.strip("-").replace("_", "-")
        return f"under the long name of an option of sbatch, such as {similar if '-' in similar else 'mail-user'}"
    if expected := _find_expected(name, _SETTING_OF_SBATCH_OPTION, _OWN_SBATCH_OPTIONS):
        return expected
    if isinstance(value, bool | int) or (isinstance(value, str) and re.fullmatch(_TOKEN, value)):
        is_unclear = name == "gres" and len(_find_gpus(value)) > 1
        return "to name one kind of GPU: write a rule for each" if is_unclear else ""
    return "to be text without spaces, quotes, # and backslashes, an integer, true or false"


def _check_srun_argument(argument: str) -> str:
    match = re.fullmatch(f"--({_OPTION_NAME})(?:={_TOKEN})?", argument)
    if match is None:
        raise ValueError("one word each: --option or --option=value")
    if expected := _find_expected(match[1], _SETTING_OF_SRUN_OPTION, _OWN_SRUN_OPTIONS):
        raise ValueError(expected)
    return argument


SrunArgument = Annotated[str, AfterValidator(_check_srun_argument)]


def _find_gpus(gres: object) -> list[re.Match[str]]:
    """Return the GPUs among generic resources, such as `gpu:a100:2` in `gpu:a100:2,nvme:1`."""
    matches = map(_GPUS_PATTERN.fullmatch, gres.split(",") if isinstance(gres, str) else ())
    return [match for match in matches if match]


def has_gpus(gres: object) -> bool:
    """Whether these generic resources include GPUs."""
    return bool(_find_gpus(gres))


def set_num_gpus(gres: str, num_gpus: int) -> str:
    """Return generic resources with this number of GPUs: `gpu:a100,nvme` becomes `gpu:a100:2,nvme`."""
    matches = ((item, _GPUS_PATTERN.fullmatch(item)) for item in gres.split(","))
    return ",".join(f"{match['kind']}:{num_gpus}" if match else item for item, match in matches)


def fill_in_gpus_per_node(settings: dict[str, Any]) -> dict[str, Any]:
    """Return resources with the number of GPUs that `sbatch.gres` names, so that it need not be given twice.

    Raises
    ------
    ValueError
        They name two numbers.
    """
    options = settings.get("sbatch", {})
    gres = (options.requested if isinstance(options, SbatchOptions) else options).get("gres")
    num_gpus = settings.get("gpus_per_node", 0)
    for match in _find_gpus(gres)[:1]:
        number = match["number"]
        if number and num_gpus not in (0, "auto", int(number)):
            expected = f"expected one number, or the type alone: {match['kind']}"
            raise ValueError(f"gpus_per_node is {num_gpus} and sbatch.gres is {gres}; {expected}")
        if number or num_gpus == 0:
            return settings | {"gpus_per_node": int(number or 1)}
    return settings
