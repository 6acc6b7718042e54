"""The settings of a run, frozen and checked when made, and the run id that follows from them.

The hash in a run's id covers every setting that decides the weights (`RunConfig.get_identity`); evaluation and
resources may change without making it another run. The path of the data is not part of it either: the fingerprint in
a sweep's split.csv identifies the galaxies it was trained on, and another file is refused there.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from galaxyhpc.config.class_names import GALAXY10_CLASSES, check_class_names
from galaxyhpc.config.conditions import DEFAULT_CONDITIONS, describe_expected, is_condition
from galaxyhpc.config.group_names import check_group_name, is_subgroup
from galaxyhpc.config.image_size import find_nearest_image_sizes, is_exact_image_size
from galaxyhpc.config.slurm_options import (
    AutoGigabytes,
    AutoMinutes,
    AutoNumGpus,
    Gigabytes,
    Minutes,
    NumGpus,
    SbatchOptions,
    SlurmToken,
    SrunArgument,
    fill_in_gpus_per_node,
)

SCHEMA_VERSION = 1  # to be raised when a setting changes its meaning: the same settings are then another run

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

BASELINES = ("resnet18", "resnet50", "wide_resnet50_2", "densenet121", "squeezenet1_1")  # torchvision's
Architecture = Literal[
    "steerable_cnn",
    "cnn",
    "e2wrn",
    "e2resnet",
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
    "densenet121",
    "squeezenet1_1",
]
_WIDTH_OPTIONS = ("width", "scale")
ARCHITECTURE_OPTIONS: dict[str, tuple[str, ...]] = {  # the options that each architecture takes
    "steerable_cnn": ("group", "head", *_WIDTH_OPTIONS),
    "cnn": ("head", *_WIDTH_OPTIONS),
    "e2wrn": ("group", "depth", "widen", "restriction", *_WIDTH_OPTIONS),
    "e2resnet": ("group", "depth", "blocks", "base_width", *_WIDTH_OPTIONS),
    **dict.fromkeys(BASELINES, ("pretrained",)),
}


def _check_condition(name: str) -> str:
    if not is_condition(name):
        raise ValueError(describe_expected(name))
    return name


def _check_conditions(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("at least one item, each once")
    return names


def _check_bands(bands: str) -> str:
    if re.fullmatch("[A-Za-z]{3}", bands) is None:
        raise ValueError("three letters, the bands for red, green and blue")
    return bands


def _check_source(source: str) -> str:
    if (path := Path(source)).anchor == str(path):
        raise ValueError(f"got {source}, a whole file system; expected a file, or the directory of the galaxies")
    return source


def _make_texts(names: Any) -> Any:
    """Take the classes 0 and 1 for what they are called in a catalogue."""
    if not isinstance(names, list | tuple):
        return names
    return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]


def _check_classes(names: tuple[str, ...]) -> tuple[str, ...]:
    return check_class_names(names) if names else names


# A setting's type checks whatever can be said about its value alone: each value of a sweep's file is checked by it.
GroupName = Annotated[str, AfterValidator(check_group_name)]
ConditionNames = Annotated[
    tuple[Annotated[str, AfterValidator(_check_condition)], ...], Field(strict=False), AfterValidator(_check_conditions)
]
Source = Annotated[str, Field(min_length=1), AfterValidator(_check_source)]
ClassNames = Annotated[
    tuple[str, ...], Field(strict=False), BeforeValidator(_make_texts), AfterValidator(_check_classes)
]


class BaseConfig(BaseModel):
    """Base of all settings: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class DemoConfig(BaseConfig):
    """Generated galaxies, used when `data.source` is `demo`."""

    galaxies: Annotated[int, Field(ge=100, le=10**6)] = 2000
    size: Annotated[int, Field(ge=32, le=256)] = 64  # px
    seed: Seed = 0


class ColumnsConfig(BaseConfig):
    """Names of the columns of a catalogue. By default they are found by common names; empty: not used."""

    file: str | None = None  # the image of a galaxy: the name of its file or, in parquet, the image itself
    label: str | None = None
    id: str | None = None
    ra: str | None = None  # degrees
    dec: str | None = None  # degrees
    group: str | None = None  # galaxies of one group stay in one split
    split: str | None = None  # train, validation, test
    redshift: str | None = None


class FitsConfig(BaseConfig):
    """FITS images: the bands that become red, green and blue, and the stretch of their flux to 0 to 255."""

    # letters of the header's BANDS, for red, green and blue; the same one three times makes grey images
    bands: Annotated[str, AfterValidator(_check_bands)] = "zrg"
    # legacy: of the Legacy Surveys' viewer, for nanomaggies in g, r and z; lupton: keeps colours; asinh: band by band
    stretch: Literal["legacy", "lupton", "asinh"] = "legacy"
    scale: Annotated[float, Field(gt=0.0)] = 1.0  # multiplies the flux; lupton and asinh: white is about 1 / scale
    Q: Annotated[float, Field(gt=0.0)] | None = None  # of the arcsinh; none: legacy 20, lupton 8, asinh 10

    @model_validator(mode="after")
    def _check_legacy_bands(self) -> FitsConfig:
        if self.stretch == "legacy" and (others := sorted(set(self.bands) - set("grz"))):
            raise ValueError(f"stretch legacy is for bands g, r and z; got {others[0]}: choose lupton or asinh")
        return self

    @property
    def softening(self) -> float:
        """Q in numbers."""
        return self.Q or {"legacy": 20.0, "lupton": 8.0, "asinh": 10.0}[self.stretch]


class DataConfig(BaseConfig):
    """Source and size of the images, and the division into training, validation and test galaxies."""

    # demo, or a path: an HDF5 file laid out as Galaxy10_DECals.h5; a catalogue (CSV, ECSV, FITS, parquet) of image
    # files; a directory with a subdirectory of images per class; parquet with images inside, or a directory of those
    source: Source = "demo"
    # names in the order of their labels, which galaxies of other classes are left out for; empty: those of the source,
    # which a launch fills in where they are not Galaxy10's
    classes: ClassNames = ()
    columns: ColumnsConfig = ColumnsConfig()
    images: str = ""  # directory that a catalogue's image files are relative to; empty: that of the catalogue
    crop: Literal["none", "center"] = "none"  # center: of images that are not square, which are refused otherwise
    fits: FitsConfig = FitsConfig()
    # side of an image on the sky, for the conditions in arcsec; none: what the source says
    field_arcsec: Annotated[float, Field(gt=0.0, le=36000.0)] | None = None
    cache: str = ""  # directory of converted images; empty: .cache beside the sweeps
    image_size: Annotated[int, Field(ge=1, le=2049)] = 65  # px
    validation_fraction: OpenFraction = 0.1
    test_fraction: OpenFraction = 0.2
    fold: Annotated[int, Field(ge=0, le=4)] = 0  # of five: the test set; fold 0 is that of a run without folds
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # fraction of the training galaxies that is used
    split_seed: Seed = 0
    link_arcsec: Annotated[float, Field(ge=0.0, le=3600.0)] = 67.0  # galaxies closer than this stay in the same split
    # galaxies with the same pixels or position, of two labels or in two parts of the source's own split; there, nearly
    # the same pixels count too where positions are unknown; to refuse them, a launch converts the images first
    conflicting_duplicates: Literal["drop", "keep", "refuse"] = "drop"
    demo: DemoConfig = DemoConfig()

    @model_validator(mode="after")
    def _check_training_fraction(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction > 0.9:
            raise ValueError("validation_fraction + test_fraction must be at most 0.9")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the galaxies, in the order of their labels."""
        return self.classes or GALAXY10_CLASSES

    @property
    def has_folds(self) -> bool:
        """Whether the galaxies are divided into five folds of which one is the test set, half of one for validation."""
        return (self.validation_fraction, self.test_fraction) == (0.1, 0.2)

    @model_validator(mode="after")
    def _check_fold(self) -> DataConfig:
        if self.fold and not self.has_folds:
            fractions = f"{self.validation_fraction:g} and {self.test_fraction:g}"
            raise ValueError(f"fold needs validation_fraction 0.1 and test_fraction 0.2 (one of five); got {fractions}")
        return self


class ModelConfig(BaseConfig):
    """Architecture, group and size of the network; `presets.PRESETS` holds those of the study."""

    architecture: Architecture = "steerable_cnn"
    group: GroupName | None = None  # C1, C2, ... or D1, D2, ...; none for conventional networks
    width: Literal["fields", "parameters", "multiply_adds"] = "fields"  # the size that equals that of the C1 network
    scale: Annotated[float, Field(gt=0.0, le=8.0)] = 1.0  # multiplies the number of fields of every layer
    head: Literal["pool", "flatten"] = "pool"  # flatten is the study's; it is not invariant
    depth: Annotated[int, Field(ge=10, le=1000)] | None = None  # e2wrn: 6n + 4 layers; e2resnet: 18 or 50
    widen: Annotated[int, Field(ge=1, le=100)] | None = None  # e2wrn: times as wide as a ResNet
    # e2wrn: the groups of stages 2 and 3
    restriction: Annotated[tuple[GroupName, ...], Field(strict=False, max_length=2)] = ()
    # e2resnet: blocks of each of the four stages; none: those of a ResNet
    blocks: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    base_width: PositiveInt | None = None  # e2resnet: fields of the first stage; none: 64
    pretrained: bool | Annotated[str, Field(min_length=1)] = False  # baselines: ImageNet weights, or a file
    opening: Annotated[int, Field(ge=0, le=32)] = 0  # px, radius of a morphological opening of the input

    @model_validator(mode="after")
    def _check_architecture_options(self) -> ModelConfig:
        options = ARCHITECTURE_OPTIONS[self.architecture]
        if ("group" in options) != (self.group is not None):
            problem = "takes no group" if self.group else "needs a group, such as C4 or D8"
            raise ValueError(f"architecture {self.architecture} {problem}")
        for name, field in type(self).model_fields.items():
            if name in ("architecture", "opening", *options) or getattr(self, name) == field.default:
                continue
            raise ValueError(f"architecture {self.architecture} takes no {name}")
        return self

    @model_validator(mode="after")
    def _check_depth(self) -> ModelConfig:
        if self.architecture == "e2wrn" and (self.depth is None or self.depth % 6 != 4 or self.widen is None):
            raise ValueError("architecture e2wrn needs depth, one of 10, 16, 22, 28 ..., and widen, such as 8")
        if self.architecture == "e2resnet" and self.depth not in (18, 50):
            raise ValueError("architecture e2resnet needs depth, 18 (basic blocks) or 50 (bottlenecks)")
        if len(self.blocks) not in (0, 4):
            raise ValueError("blocks needs 4 numbers, the blocks of each stage")
        return self

    @model_validator(mode="after")
    def _check_restriction(self) -> ModelConfig:
        for group, subgroup in pairwise((self.group, *self.restriction) if self.group else ()):
            if not is_subgroup(subgroup, group):
                raise ValueError(f"restriction {subgroup} is no subgroup of {group}")
        return self

    @property
    def without_pretrained(self) -> ModelConfig:
        """The same network with random initial weights, to load trained weights into."""
        return self.model_copy(update={"pretrained": False})

    @property
    def invariance_group(self) -> GroupName | None:
        """The group under which the logits do not change; none where the network is not invariant."""
        return None if self.head == "flatten" else (self.group, *self.restriction)[-1]

    @property
    def name(self) -> str:
        """Architecture and size, without the group: `steerable_cnn`, `e2wrn28-10`, `e2resnet18`."""
        return self.architecture + "-".join(str(part) for part in (self.depth, self.widen) if part)

    @property
    def group_label(self) -> str:
        """The group and its restrictions: `D8`, `D8D4D1`; empty for conventional networks."""
        return "".join(filter(None, (self.group, *self.restriction)))


class AugmentConfig(BaseConfig):
    """Training augmentation: one affine map per sample."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 180.0  # degrees, drawn from +-rotation
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1  # fraction of the side, drawn from +-shift in x and y
    flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3  # probability of each of the two flips


class TrainConfig(BaseConfig):
    """Optimizer, learning rate schedule and everything else of the training."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 128  # GLOBAL: all processes together
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    body_learning_rate: Annotated[float, Field(ge=0.0)] | None = None  # pretrained body; 0: frozen; none: a tenth
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    momentum: Fraction = 0.9  # sgd only
    schedule: Literal["constant", "multistep", "cosine"] = "multistep"
    milestones: Annotated[tuple[OpenFraction, ...], Field(strict=False)] = (0.25, 0.5, 0.75)  # of all steps
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # factor at each milestone
    warmup: Fraction = 0.0  # fraction of the steps with a linearly rising learning rate
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    ema_decay: OpenFraction | None = None  # such as 0.999; the averaged weights are validated and saved
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    early_stopping: PositiveInt | None = None  # epochs without a better validation accuracy
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"  # tf32: of a GPU's products; elsewhere float32
    sync_batchnorm: bool = False


class AttackConfig(BaseConfig):
    """The one-pixel attack; population and iterations default to those of the study (arXiv:2311.01500)."""

    galaxies: Annotated[int, Field(ge=0, le=10**9)] = 0  # at most, balanced over the classes; 0: no attack
    population: Annotated[int, Field(ge=4, le=10**6)] = 400
    iterations: Annotated[int, Field(ge=0, le=10**6)] = 200


class EvaluateConfig(BaseConfig):
    """Conditions under which a finished run is evaluated; see `conditions.CONDITIONS`."""

    conditions: ConditionNames = DEFAULT_CONDITIONS
    batch_size: PositiveInt = 256
    attack: AttackConfig = AttackConfig()


class RequestedResources(BaseConfig):
    """Resources of a job in Slurm's terms; `auto` leaves a number to the cost model.

    Not part of a run's identity, though batch statistics are those of one process and forward pass: keep `micro_batch`
    and the number of tasks equal where networks are compared, or set `train.sync_batchnorm`.
    """

    nodes: PositiveInt = 1
    tasks_per_node: PositiveInt = 1  # one process each; one per GPU
    gpus_per_node: AutoNumGpus = 0  # auto: 1, or more (and as many tasks) if a run takes over a day on one
    cpus_per_task: PositiveInt = 1
    memory_gb: AutoGigabytes | None = None  # per node
    time_minutes: AutoMinutes = 720
    partition: SlurmToken | None = None
    account: SlurmToken | None = None
    qos: SlurmToken | None = None
    constraint: SlurmToken | None = None
    exclude_nodes: Annotated[tuple[SlurmToken, ...], Field(strict=False)] = ()
    # options of sbatch that have no setting, by long name: {gres: "gpu:a100:1", reservation: x, mail-user: y@z}
    sbatch: SbatchOptions = SbatchOptions()
    srun: Annotated[tuple[SrunArgument, ...], Field(strict=False)] = ()  # further arguments: [--cpu-bind=cores]
    # expedite: after a node failure ahead of all other jobs, where Slurm >= 25.11 allows it; Slurm then holds a job
    # that fails by itself in the queue: scancel it
    requeue: Literal["normal", "expedite"] = "normal"
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()  # shell commands before srun: modules, environments
    micro_batch: Annotated[int, Field(ge=3)] | None = None  # images per process and pass; gradients accumulate
    # chosen when a run begins; fused: harmonic, on a GPU in one kernel in half precision, which auto does not choose
    convolution: Literal["auto", "dense", "harmonic", "fused"] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 10.0  # between checkpoints, besides one per epoch

    @property
    def num_tasks(self) -> int:
        """Number of processes of a job: the world size."""
        return self.nodes * self.tasks_per_node

    @model_validator(mode="before")
    @classmethod
    def _fill_in_gpus_per_node(cls, settings: Any) -> Any:
        return fill_in_gpus_per_node(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="after")
    def _check_auto_gpus(self) -> Self:
        if self.gpus_per_node == "auto" and self.num_tasks > 1:
            raise ValueError("gpus_per_node auto chooses tasks_per_node too: leave it and nodes at 1, or set all three")
        return self

    @property
    def resolved(self) -> ResourcesConfig:
        """The same resources in numbers.

        Raises
        ------
        pydantic.ValidationError
            Where something is still `auto`.
        """
        return ResourcesConfig.model_validate(self.model_dump())


class ResourcesConfig(RequestedResources):
    """Resources requested from Slurm, all in numbers."""

    gpus_per_node: NumGpus = 0
    memory_gb: Gigabytes | None = None
    time_minutes: Minutes = 720


class RunConfig(BaseConfig):
    """All settings of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: RequestedResources = RequestedResources()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _check_image_size(self) -> RunConfig:
        size, architecture = self.data.image_size, self.model.architecture
        if not is_exact_image_size(size, architecture):
            nearest = ", ".join(map(str, find_nearest_image_sizes(size, architecture)))
            if size < 32:
                raise ValueError(f"data.image_size {size} is too small for {architecture}; smallest size: {nearest}")
            raise ValueError(
                f"data.image_size {size} is not exact under quarter turns for {architecture}; "
                f"nearest exact sizes: {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _check_batch_size(self) -> RunConfig:
        size, tasks = self.train.batch_size, self.resources.num_tasks
        if size < 2 * tasks:  # batch norm needs two images
            raise ValueError(f"train.batch_size {size} is shared by {tasks} processes; each needs at least 2 images")
        return self

    @model_validator(mode="after")
    def _check_body_learning_rate(self) -> RunConfig:
        if self.train.body_learning_rate is not None and not self.model.pretrained:
            raise ValueError(f"body_learning_rate is for pretrained networks; {self.model_tag} is not pretrained")
        return self

    @property
    def model_tag(self) -> str:
        """Readable name of the network: `D8-steerable_cnn`, `D8D4D1-e2wrn16-8`, `cnn`."""
        return "-".join(part for part in (self.model.group_label, self.model.name) if part)

    def get_identity(self) -> dict[str, Any]:
        """Return all settings that decide the weights, and no others."""
        parts = self.model_dump(mode="json", include={"data", "model", "train", "augment", "seed"})
        for name in ("cache", "classes", "columns", "images", "field_arcsec"):
            del parts["data"][name]
        if self.data.crop == "none":
            del parts["data"]["crop"]
        if self.data.fits == FitsConfig():
            del parts["data"]["fits"]
        if self.data.class_names != GALAXY10_CLASSES:
            parts["data"]["classes"] = list(self.data.class_names)  # as JSON reads it back from a checkpoint
        if isinstance(self.model.pretrained, str):
            parts["model"]["pretrained"] = "file"  # its path decides nothing
        if parts["data"]["source"] == "demo":
            return {"schema": SCHEMA_VERSION, **parts}
        parts["data"]["source"] = "file"  # the fingerprint in split.csv identifies the file
        del parts["data"]["demo"]
        return {"schema": SCHEMA_VERSION, **parts}

    @property
    def run_id(self) -> str:
        """Readable tag, seed and the first 8 hexadecimal digits of the identity's SHA-256."""
        text = json.dumps(self.get_identity(), sort_keys=True, separators=(",", ":"))
        return f"{self.model_tag}-s{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted key: text."""
    if not isinstance(settings, dict):
        return {prefix: str(settings)}
    flat: dict[str, str] = {}
    for name, part in settings.items():
        flat |= flatten(part, f"{prefix}.{name}".lstrip("."))
    return flat
