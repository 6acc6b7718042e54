"""Steps of the campaign in their order, with the time that each may take, and the size of what is measured."""

from __future__ import annotations

from typing import NamedTuple

GRACE_SECONDS = 20.0  # that a step may exceed its limit before it is killed
TINY_LIMIT_FACTOR = 8  # Triton's interpreter is slow
COMPILED_GROUPS = ("D16", "D8", "C16", "D4", "C8", "C4")  # whose kernels are compiled beforehand
NETWORKS_DIR = "networks"  # in the directory of results, of those that are built beforehand


class Step(NamedTuple):
    """A function of a module in this directory, and its limit."""

    function: str  # module.function
    limit_seconds: float


CHECKS = {  # right or wrong: side by side, nothing is timed
    "warm": Step("checks.compile_kernels", 90),
    "smoke": Step("checks.compare_with_float64", 90),
    "bits": Step("training_checks.compare_bits", 60),
    "resume": Step("training_checks.kill_and_resume", 110),
    "pair": Step("training_checks.compare_two_processes", 60),
    "compile": Step("timings.compile_limits", 120),  # nothing to check either
    "build": Step("e2cnn_networks.build_networks", 60),  # nothing to check, but to do meanwhile
}
TIMINGS = {  # one after the other, alone on the machine, the most valuable first
    "ceilings": Step("timings.measure_ceilings", 15),
    "steps": Step("timings.time_training_steps", 150),
    "graphs": Step("training_steps.compare_graphs", 40),
    "profile": Step("timings.profile_steps", 40),
    "e2cnn": Step("timings.time_e2cnn", 50),
    "layers": Step("layer_timings.time_layers", 45),
    "inference": Step("timings.time_inference", 45),
    "data": Step("timings.time_data", 15),
    "accelerated": Step("user_timings.time_accelerated_networks", 50),
    "survey": Step("user_timings.time_survey", 40),
    "fused": Step("layer_timings.time_fused_convolutions", 90),
    "selection": Step("timings.try_selection", 60),
    "prediction": Step("timings.compare_prediction", 70),
    "compiled": Step("timings.time_compiled_steps", 150),
}


class Scale(NamedTuple):
    """The size of networks and batches."""

    image_size: int  # px
    batch_size: int
    micro_batch: int  # images of a pass, as in sweeps/all_groups.yaml
    field_factor: float  # of the study's fields
    networks: tuple[str, ...]  # groups and cnn
    smoke_groups: tuple[str, ...]
    smoke_fields: tuple[int, ...]  # of the blocks that are compared with float64
    smoke_side: int  # px
    round_seconds: float


FULL = Scale(
    *(255, 128, 32, 1.0, (*COMPILED_GROUPS, "D2", "C2", "C1", "cnn")),
    *(("C4", "D4", "D8", "D16"), (12, 24, 48), 17, 0.6),
)
TINY = Scale(33, 4, 2, 0.03, ("C4", "cnn"), ("C4",), (2, 3, 2), 9, 0.0)
