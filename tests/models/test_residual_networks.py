"""All networks of the study: their sizes are those of the originals, their symmetry is what they claim, on any size."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import e2cnn.nn
import numpy as np
import pytest
import torch
from helpers.tiers import slow
from torch import Tensor, nn

import galaxyhpc.steerable.compat  # noqa: F401  (bases that are on the disk do without it)
from galaxyhpc.config.presets import PRESETS
from galaxyhpc.config.schema import (
    BASELINES,
    DataConfig,
    DemoConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    find_nearest_image_sizes,
    is_exact_image_size,
)
from galaxyhpc.models.build_model import FAMILIES, build_model, count_parameters
from galaxyhpc.models.equivariance import invariance_error, measure_rotation_sensitivity
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.layers import Restriction, SteerableConv
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.trainer import train
from galaxyhpc.verify_resume import hash_outputs

OTHERS: dict[str, dict[str, Any]] = {}  # networks outside the study
OURS = [name for name, settings in (PRESETS | OTHERS).items() if settings["architecture"] not in BASELINES]
EQUIVARIANT = [name for name in OURS if name != "CNN"]


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


def model(name: str, **more: Any) -> ModelConfig:
    return ModelConfig.model_validate((PRESETS | OTHERS)[name] | more)


def narrow(name: str, size: int = 33) -> nn.Module:
    return build_model(model(name, scale=0.03), size)


def parameters(settings: ModelConfig) -> int:
    with torch.device("meta"):
        return count_parameters(build_model(settings, 257))


def test_there_are_31_presets_and_all_are_settings_that_hold_at_257_pixels() -> None:
    assert len(PRESETS) == 31
    for name in PRESETS:
        RunConfig.model_validate({"model": model(name), "data": {"image_size": 257}})


# Of the originals, counted on e2cnn's own modules built as their example and the study's code build them


def regular(space: Any, count: float) -> Any:
    return e2cnn.nn.FieldType(space, [space.regular_repr] * int(count))


def wide_block(source: Any, target: Any, inner: Any, stride: int) -> int:
    """Count a block's parameters."""
    rotations = source.gspace.fibergroup.order() // (2 if "Flip" in type(source.gspace).__name__ else 1)
    size = 3 if rotations in (1, 2, 4) else 5

    def convolution(a: Any, b: Any, k: int) -> int:
        options = {"bias": False, "initialize": False, "frequencies_cutoff": lambda radius: 3 * radius}
        return int(e2cnn.nn.R2Conv(a, b, k, **options).weights.numel())

    shortcut = convolution(source, target, 1) if stride > 1 or source != target else 0
    return (
        convolution(source, inner, size)
        + convolution(inner, target, size)
        + shortcut
        + 2 * len(source)
        + 2 * len(inner)
    )


def original_wide_resnet(depth: int, widen: int, n: int, reflections: bool, steps: list[int | None]) -> int:
    """Count the parameters of e2cnn's example; `steps` are the rotations left before stages 2 and 3."""
    spaces = {(True, 1): e2cnn.gspaces.Flip2dOnR2, (False, 1): e2cnn.gspaces.TrivialOnR2}
    make_space = e2cnn.gspaces.FlipRot2dOnR2 if reflections else e2cnn.gspaces.Rot2dOnR2
    space = spaces[reflections, 1]() if n == 1 else make_space(n)
    colours = e2cnn.nn.FieldType(space, [space.trivial_repr] * 3)
    current = regular(space, 16 / np.sqrt(space.fibergroup.order()))
    limit = {"frequencies_cutoff": lambda radius: 3 * radius}
    total = int(e2cnn.nn.R2Conv(colours, current, 5, bias=False, initialize=False, **limit).weights.numel())
    for stage, planes in enumerate((16 * widen, 32 * widen, 64 * widen)):
        num_rotations = steps[stage - 1] if stage else None
        if num_rotations is not None:
            restrict = e2cnn.nn.RestrictionModule(current, (0, num_rotations) if reflections else num_rotations)
            current = e2cnn.nn.DisentangleModule(restrict.out_type).out_type
            space = current.gspace
        root = np.sqrt(space.fibergroup.order())
        main = regular(space, planes / root)
        for block in range((depth - 4) // 6):
            last = stage == 2 and block == (depth - 4) // 6 - 1
            trivial = e2cnn.nn.FieldType(space, [space.trivial_repr] * int(planes * root))
            target = trivial if last else main
            total += wide_block(current, target, main, 2 if block == 0 else 1)
            current = target
    return total + 2 * len(current) + current.size * 10 + 10


@pytest.mark.parametrize(
    ("settings", "n", "reflections", "steps"),
    [
        (("D8", "D4", "D1"), 8, True, [4, 1]),
        (("D8", "D4", "D4"), 8, True, [4, None]),
        (("D1",), 1, True, [None, None]),
        (("C8", "C4", "C1"), 8, False, [4, 1]),
    ],
)
@pytest.mark.parametrize(("depth", "widen"), [slow(16, 2), (10, 3)])
def test_a_wide_resnet_has_as_many_parameters_as_e2cnns(
    settings: tuple[str, ...], n: int, reflections: bool, steps: list[int | None], depth: int, widen: int
) -> None:
    ours = ModelConfig(architecture="e2wrn", depth=depth, widen=widen, group=settings[0], restriction=settings[1:])
    assert parameters(ours) == original_wide_resnet(depth, widen, n, reflections, steps)


def original_resnet(group: str, depth: int, width: int, blocks: tuple[int, ...]) -> int:
    """Count the parameters of the study's e2resnet.py, without the biases that a batch norm follows and undoes."""
    space = groups.make_gspace(group)

    def convolution(a: int, b: int, k: int) -> int:
        options = {"bias": False, "initialize": False}
        return int(e2cnn.nn.R2Conv(regular(space, a), regular(space, b), k, **options).weights.numel()) + 2 * b

    colours = e2cnn.nn.FieldType(space, [space.trivial_repr] * 3)
    stem = e2cnn.nn.R2Conv(colours, regular(space, width), 7, bias=False, initialize=False)
    total, inputs, expansion = int(stem.weights.numel()) + 2 * width, width, 1 if depth == 18 else 2
    for stage, repeats in enumerate(blocks):
        planes = width * 2**stage
        for block in range(repeats):
            outputs = expansion * planes
            if (stage > 0 and block == 0) or inputs != outputs:
                total += convolution(inputs, outputs, 1)
            if depth == 18:
                total += convolution(inputs, planes, 3) + convolution(planes, planes, 3)
            else:
                total += convolution(inputs, planes, 1) + convolution(planes, planes, 3)
                total += convolution(planes, outputs, 1)
            inputs = outputs
    return total + inputs * 10 + 10


@pytest.mark.parametrize("group", ["C1", "C4", "D4"])
@pytest.mark.parametrize(
    ("depth", "blocks"), [(18, (2, 2, 2, 2)), (18, (1, 1, 1, 1)), (50, (3, 4, 6, 3)), (50, (3, 2, 2, 2))]
)
def test_a_resnet_has_as_many_parameters_as_the_studys(group: str, depth: int, blocks: tuple[int, ...]) -> None:
    ours = ModelConfig(architecture="e2resnet", group=group, depth=depth, blocks=blocks, base_width=3)
    assert parameters(ours) == original_resnet(group, depth, 3, blocks)


COUNTED = {
    "C1": 398_698,
    "C2": 780_586,
    "C4": 1_544_362,
    "C8": 3_071_914,
    "C16": 6_127_018,
    "D1": 780_586,
    "D2": 1_544_362,
    "D4": 3_071_914,
    "D8": 6_127_018,
    "D16": 12_237_226,
    "CNN": 589_750,
    "WRN16d8d4d1": 11_957_234,
    "WRN16d8d4d4": 10_791_956,
    "WRN16d1d1d1": 10_017_717,
    "WRN28_10_d8d4d1": 37_183_014,
    "WRN28_7_d8d4d1": 18_195_726,
    "WRN28_10_c8c4c1": 37_170_767,
    "WRN28_10_d1d1d1": 32_789_495,
    "c1resnet18": 11_734_730,
    "d1resnet18": 10_687_906,
    "c4resnet18": 21_360_466,
    "d4resnet18": 42_705_586,
    "small_c4resnet18": 82_130,
    "c4resnet50": 51_739_402,
    "c2resnet50": 14_738_186,
    "d4resnet50": 58_852_106,
    "small_c4resnet50": 29_442_826,
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_networks_of_the_study_are_as_large_as_their_docstrings_tell(name: str) -> None:
    num_parameters, settings = parameters(model(name)), model(name)
    assert num_parameters == COUNTED[name]
    docstring = sys.modules[FAMILIES[settings.architecture].build.__module__].__doc__
    assert docstring is not None and f"{num_parameters / 1e6:.1f}" in docstring, f"{num_parameters / 1e6:.1f}"


# Symmetry


@pytest.mark.parametrize(
    ("name", "to"), [("D8", "D4"), ("D8", "D1"), ("C8", "C4"), ("C8", "C1"), ("D4", "C4"), ("D6", "D3")]
)
def test_a_restricted_regular_field_is_regular_fields_of_the_subgroup_side_by_side(name: str, to: str) -> None:
    """As e2cnn's matrices of both groups say it, element by element."""
    space, inner = groups.make_gspace(name), groups.make_gspace(to)
    order = list(groups.get_restriction_permutation(name, to))
    representation, inner_representation = space.regular_repr, inner.regular_repr
    copies = groups.group_order(name) // groups.group_order(to)
    step = groups.count_rotations(name) // groups.count_rotations(to)
    for element in inner.fibergroup.elements:
        turned = element if isinstance(element, int) else element[-1]
        mirrored = element[0] if isinstance(element, tuple) else int(to == "D1" and element)
        if to == "D1":  # e2cnn has it as a group of two elements
            turned, mirrored = 0, int(element)
        above = (mirrored, turned * step) if name[0] == "D" else turned * step
        permuted = np.asarray(representation(above))[np.ix_(order, order)]
        np.testing.assert_allclose(
            permuted, np.kron(np.eye(copies), np.asarray(inner_representation(element))), atol=1e-9
        )


@pytest.mark.parametrize("size", [33, 65])
@pytest.mark.parametrize("name", EQUIVARIANT)
def test_logits_do_not_change_under_what_survives_of_the_group(name: str, size: int) -> None:
    settings = model(name, scale=0.03)
    assert invariance_error(build_model(settings, size), settings.invariance_group, size) < 1e-4


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"architecture": "e2wrn", "depth": 10, "widen": 1, "group": "D4"}, 41),
        ({"architecture": "e2wrn", "depth": 10, "widen": 1, "group": "C8"}, 73),
        ({"architecture": "e2resnet", "depth": 18, "base_width": 2, "group": "D4"}, 97),
        ({"architecture": "e2resnet", "depth": 50, "base_width": 2, "group": "C8"}, 33),
        ({"architecture": "steerable_cnn", "group": "C32", "scale": 0.03}, 33),
        slow({"architecture": "steerable_cnn", "group": "D32", "scale": 0.01}, 33),
    ],
)
def test_any_group_and_any_allowed_size_is_exact(settings: dict[str, Any], size: int) -> None:
    config = ModelConfig.model_validate(settings)
    assert is_exact_image_size(size, config.architecture)
    assert invariance_error(build_model(config, size), config.group, size) < 1e-4


@pytest.mark.parametrize(("architecture", "size"), [("e2wrn", 35), ("e2wrn", 36), ("e2resnet", 41), ("e2resnet", 64)])
def test_at_a_refused_size_a_network_would_not_be_exact_and_the_nearest_good_ones_are_named(
    architecture: str, size: int
) -> None:
    shape = {"depth": 10, "widen": 1} if architecture == "e2wrn" else {"depth": 18, "base_width": 2}
    settings = ModelConfig.model_validate({"architecture": architecture, "group": "C4", **shape})
    assert invariance_error(build_model(settings, size), "C4", size) > 1e-3
    below, above = find_nearest_image_sizes(size, architecture)
    with pytest.raises(ValueError, match=f"not exact under quarter turns for {architecture}.*{below}, {above}"):
        RunConfig.model_validate({"model": settings, "data": {"image_size": size}})


def test_a_network_restricted_on_the_way_keeps_reflections_but_not_turns() -> None:
    network = narrow("WRN16d8d4d1")
    assert invariance_error(network, "D1", 33) < 1e-4 < 1e-3 < invariance_error(network, "C4", 33)


def test_between_exact_turns_a_larger_group_changes_less() -> None:
    curves = {
        name: measure_rotation_sensitivity(build_model(model(name, scale=0.1), 65), [45.0, 90.0], 65)
        for name in ("C1", "C4", "C8")
    }
    assert curves["C8"][45.0] < curves["C4"][45.0] < curves["C1"][45.0]
    assert max(curves["C4"][90.0], curves["C8"][90.0]) < 1e-4 < curves["C1"][90.0]


# Weights


@pytest.mark.parametrize("name", ["WRN16d8d4d1", "c4resnet18", "small_c4resnet50", "D4", "CNN"])
def test_a_state_dict_depends_on_no_mode_holds_nothing_derived_and_networks_can_be_copied(name: str) -> None:
    network, images = narrow(name), torch.rand(2, 3, 33, 33)
    training = {key: value.clone() for key, value in network.state_dict().items()}
    network.eval()
    before = network(images)
    assert list(network.state_dict()) == list(training)
    assert not [key for key in training if key.endswith(("basis", "mask", "kernel", "permutation", "filter"))]
    twin = copy.deepcopy(network)
    assert torch.equal(twin(images), before)
    other = narrow(name)
    with torch.no_grad():
        other.eval()(images)
        other.load_state_dict(training)
        assert torch.equal(other(images), before)


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_new_weights_keep_the_variance_from_a_convolution_to_the_next(name: str) -> None:
    """Generalised He: the maps of every convolution have about the mean square of its input."""
    network, ratios = build_model(model(name, scale=0.1), 33).train(), []

    def record(layer: SteerableConv, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.basis_spec[2] == "regular":
            ratios.append(float(output.detach().var() / inputs[0].detach().square().mean()))

    for layer in network.modules():
        if isinstance(layer, SteerableConv):
            layer.register_forward_hook(record)
    network(torch.rand(8, 3, 33, 33))
    assert ratios and 0.1 < np.exp(np.mean(np.log(ratios))) < 3


def test_restriction_moves_channels_only() -> None:
    x = torch.randn(2, 3 * 16, 5, 5)
    restricted = Restriction("D8", "D4")(x)
    assert restricted.shape == x.shape and torch.equal(restricted.sort(1).values, x.sort(1).values)


@pytest.mark.parametrize("name", ["WRN28_7_d8d4d1", "d4resnet18"])
@pytest.mark.parametrize("width", ["parameters", "multiply_adds"])
def test_any_family_can_be_made_as_large_as_the_c1_network(name: str, width: str) -> None:
    settings = model(name, width=width)
    if width == "parameters":
        assert parameters(settings) == pytest.approx(parameters(model("C1")), rel=0.03)
    else:
        assert build_model(settings.model_copy(update={"scale": 0.3}), 33) is not None


def test_batch_norms_are_of_one_kind_everywhere() -> None:
    kinds = {type(layer) for name in OURS for layer in narrow(name).modules() if "Norm" in type(layer).__name__}
    assert kinds == {FieldBatchNorm}


# A whole run


@pytest.mark.slow
def test_a_network_with_dropout_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = DataConfig(cache=str(tmp_path / "cache"), image_size=33, demo=DemoConfig(galaxies=200, size=32))
    settings = RunConfig(model=model("WRN16d8d4d1", scale=0.02), data=data, train=TrainConfig(epochs=1, batch_size=40))
    uninterrupted, interrupted = (RunDir(tmp_path / name / settings.run_id) for name in ("whole", "broken"))
    for run in (uninterrupted, interrupted):
        write_text(run.config_file, settings.model_dump_json())
    assert train(uninterrupted, StopSignal())
    assert not train(interrupted, StopSignal(), max_steps=1)
    torch.manual_seed(77)  # the resume depends on nothing that happened before
    assert train(interrupted, StopSignal())
    assert hash_outputs(interrupted) == hash_outputs(uninterrupted)
