"""Layers compute the same as e2cnn's; networks are invariant, of the stated width, and reloadable."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import e2cnn.nn
import pytest
import torch
from e2cnn.nn.init import generalized_he_init
from helpers.e2cnn_networks import set_harmonic
from helpers.tiers import GROUPS_OF_FAST_TIER, slow, slow_unless
from helpers.warm_processes import run_two
from torch import Tensor, nn

from galaxyhpc.benchmark.e2cnn_model import E2cnnModel
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model, count_parameters, multiply_adds
from galaxyhpc.models.equivariance import invariance_error
from galaxyhpc.models.steerable_cnn import BLOCK_FIELDS, compute_stem_geometry
from galaxyhpc.runtime.distributed import join_group
from galaxyhpc.steerable import accelerate, groups, restore
from galaxyhpc.steerable.batch_norm import FieldBatchNorm, enable_sync_batchnorm
from galaxyhpc.steerable.layers import AntialiasedPool, CircularMask, ExpandedConv, GroupPooling, SteerableConv

GROUPS = ["C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16"]


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


def network(group: str | None = "D4", image_size: int = 33, **settings: Any) -> nn.Module:
    """Build a network at a quarter of the study's fields."""
    architecture = "steerable_cnn" if group else "cnn"
    return build_model(ModelConfig(architecture=architecture, group=group, **{"scale": 0.25, **settings}), image_size)


def e2cnn_field(group: str, count: int, kind: str = "regular") -> Any:
    space = groups.make_gspace(group)
    return e2cnn.nn.FieldType(space, [space.trivial_repr if kind == "trivial" else space.regular_repr] * count)


def e2cnn_convolution(ours: SteerableConv) -> Any:
    """Return e2cnn's layer with our layer's weights, in training mode."""
    group, kernel_size, kind, out_kind, cutoff = ours.basis_spec
    source, target = e2cnn_field(group, ours.in_fields, kind), e2cnn_field(group, ours.out_fields, out_kind)
    options = {"stride": ours.stride, "padding": ours.padding, "bias": False, "initialize": False}
    limit = None if cutoff is None else lambda radius: cutoff * radius  # as in e2cnn's wide ResNets
    layer = e2cnn.nn.R2Conv(source, target, kernel_size, frequencies_cutoff=limit, **options)
    layer.weights.data.copy_(ours.weight.data)
    return layer


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", ["trivial", "regular"])
@pytest.mark.parametrize("group", slow_unless(GROUPS_OF_FAST_TIER, GROUPS))
def test_the_same_weights_give_the_same_maps_as_in_e2cnn(group: str, kind: groups.FieldKind) -> None:
    for kernel_size in (3, 5):
        for stride in (1, 2):
            ours = SteerableConv(group, 2, 3, kernel_size, kind=kind, stride=stride, padding=kernel_size // 2)
            theirs = e2cnn_convolution(ours)
            x = torch.randn(2, theirs.in_type.size, 9, 9)
            assert_near(ours(x), theirs(e2cnn.nn.GeometricTensor(x, theirs.in_type)).tensor)


@pytest.mark.parametrize("group", ["C4", "C8", "D1", "D4", "D8"])
def test_so_do_the_filters_of_wide_resnets(group: str) -> None:
    shapes = [("regular", "regular", 3, 1), ("regular", "trivial", 5, 2), ("regular", "trivial", 1, 2)]
    for kind, out_kind, size, stride in [*shapes, ("trivial", "regular", 5, 1)]:
        options = {"kind": kind, "out_kind": out_kind, "cutoff": 3.0, "stride": stride, "padding": size // 2}
        ours = SteerableConv(group, 2, 3, size, **options)
        theirs = e2cnn_convolution(ours)
        x = torch.randn(2, theirs.in_type.size, 9, 9)
        assert_near(ours(x), theirs(e2cnn.nn.GeometricTensor(x, theirs.in_type)).tensor)


@pytest.mark.parametrize("group", ["C1", "C4", "D4"])
def test_a_network_learns_as_one_of_e2cnns_own_modules_does(group: str) -> None:
    ours = network(group)
    theirs = E2cnnModel(ours, 33)
    x = torch.rand(4, 3, 33, 33)
    assert_near(ours(x), theirs(x), 1e-4)
    gradients = [torch.autograd.grad(model(x)[:, 0].sum(), model.mlp[0].weight)[0] for model in (ours, theirs)]
    assert_near(*gradients, 1e-3)  # four images through thirteen batch norms: float32 rounds either by 1e-4
    assert_near(ours.eval()(x), theirs.eval()(x), 1e-4)  # by the statistics of the batches before


def list_states(model: nn.Module) -> list[list[Tensor]]:
    """Return weights, biases and statistics of the layers in order."""
    kinds = (ExpandedConv, FieldBatchNorm, nn.Linear)
    names = ("weight", "bias", "running_mean", "running_var")
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    values = [[getattr(layer, name, None) for name in names] for layer in layers]
    return [[value for value in layer if value is not None] for layer in values]


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_accelerated_a_network_of_e2cnns_modules_is_ours_again(group: str) -> None:
    ours = network(group)
    fast = accelerate(E2cnnModel(ours, 33))
    set_harmonic(fast, False)  # to choose, it would measure the machine
    states = list(zip(list_states(ours), list_states(fast), strict=True))
    assert all(torch.equal(a, b) for layer in states for a, b in zip(*layer, strict=True))
    x = torch.rand(4, 3, 33, 33)
    assert_near(ours(x), fast(x), 1e-4)
    gradients = [torch.autograd.grad(model(x)[:, 0].sum(), model.mlp[0].weight)[0] for model in (ours, fast)]
    assert_near(*gradients, 1e-3)


def test_our_state_becomes_that_of_e2cnns_modules_by_way_of_an_accelerated_network() -> None:
    ours, theirs = network(), E2cnnModel(network(), 33).eval()
    fast = accelerate(copy.deepcopy(theirs.train()))
    set_harmonic(fast, False)
    x = torch.rand(4, 3, 33, 33)
    ours(x)  # changes the statistics
    with torch.no_grad():
        for ours_state, fast_state in zip(list_states(ours), list_states(fast), strict=True):
            for source, target in zip(ours_state, fast_state, strict=True):
                target.copy_(source)
    assert_near(restore(fast, theirs).eval()(x), ours.eval()(x), 1e-4)


def test_the_gradients_are_those_of_e2cnn() -> None:
    ours = SteerableConv("D4", 3, 2, padding=1)
    theirs = e2cnn_convolution(ours)
    x = torch.randn(2, 24, 9, 9, requires_grad=True)
    upstream = torch.randn(2, 16, 9, 9)
    gradients = torch.autograd.grad((ours(x) * upstream).sum(), (x, ours.weight))
    e2cnn_output = theirs(e2cnn.nn.GeometricTensor(x, theirs.in_type)).tensor
    for gradient, expected in zip(
        gradients, torch.autograd.grad((e2cnn_output * upstream).sum(), (x, theirs.weights)), strict=True
    ):
        assert_near(gradient, expected)


@pytest.mark.parametrize(
    ("group", "kind"), [("C1", "regular"), ("C8", "trivial"), ("D2", "regular"), ("D4", "regular")]
)
def test_new_weights_are_drawn_as_e2cnn_draws_them(group: str, kind: groups.FieldKind) -> None:
    ours = SteerableConv(group, 3, 2, kind=kind)
    expected = torch.empty_like(ours.weight)
    torch.manual_seed(5)
    generalized_he_init(expected, e2cnn_convolution(ours).basisexpansion)
    torch.manual_seed(5)
    ours.reset_parameters()
    assert_near(ours.weight.data, expected, 1e-6)


def test_batch_norm_over_fields_is_that_of_e2cnn() -> None:
    ours, theirs = FieldBatchNorm(3, 8), e2cnn.nn.InnerBatchNorm(e2cnn_field("D4", 3))
    x = (torch.randn(4, 24, 5, 5) * 3 + 7).requires_grad_()
    upstream = torch.randn_like(x)
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        there = theirs(e2cnn.nn.GeometricTensor(x, theirs.in_type)).tensor
        here = ours(x)
        assert_near(here, there)
        assert_near(*(torch.autograd.grad((out * upstream).sum(), x)[0] for out in (here, there)), 1e-4)


def test_batch_norm_of_single_channels_is_that_of_torch() -> None:
    for shape, reference in (((6, 4), nn.BatchNorm1d(4)), ((6, 4, 3, 3), nn.BatchNorm2d(4))):
        ours, x = FieldBatchNorm(4), torch.randn(shape) + 2
        assert torch.equal(ours(x), reference(x))
        assert torch.equal(ours.running_var, reference.running_var)
        assert torch.equal(ours.eval()(x), reference.eval()(x))


def test_pools_and_mask_are_those_of_e2cnn_and_save_nothing() -> None:
    field = e2cnn_field("C4", 2)
    x = torch.rand(2, 8, 17, 17)
    pairs = (
        (AntialiasedPool(), e2cnn.nn.PointwiseAvgPoolAntialiased(field, sigma=0.66, stride=2)),
        (GroupPooling(4), e2cnn.nn.GroupPooling(field)),
        (CircularMask(17), e2cnn.nn.MaskModule(field, 17, margin=1)),
    )
    for ours, theirs in pairs:
        assert_near(ours(x), theirs(e2cnn.nn.GeometricTensor(x, field)).tensor, 1e-6)
        assert not ours.state_dict() and not list(ours.parameters())


# Batch norm over processes


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    head = (nn.Flatten(), nn.Linear(108, 5, bias=False), FieldBatchNorm(5))
    return nn.Sequential(SteerableConv("C4", 2, 3), FieldBatchNorm(3, 4), nn.ReLU(), *head)


def step(model: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the output, the gradients and the statistics of one training step whose loss is a sum over images."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out * upstream).sum().backward()
    assert x.grad is not None
    return {
        "output": out.detach(),
        "input": x.grad,
        **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        **{name: b.clone() for name, b in model.named_buffers()},
    }


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(7, 8, 5, 5, generator=generator) * 3 + 100, torch.randn(7, 5, generator=generator)


def one_of_two(rank: int, folder: str, first: int) -> None:
    torch.set_num_threads(1)
    model, (x, upstream) = two_layers(), batch()
    enable_sync_batchnorm(model)
    local_batch = (slice(None, first), slice(first, None))[rank]
    with join_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2):
        results = step(model, x[local_batch], upstream[local_batch])
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.parametrize("first", [5, 7])  # of 7 images
@pytest.mark.slow
def test_two_processes_normalise_their_uneven_shares_as_one_process_does_the_whole(tmp_path: Path, first: int) -> None:
    run_two(one_of_two, str(tmp_path), first)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    expected_step = step(two_layers(), *batch())
    first_part = step(two_layers(), *(part[:5] for part in batch()))
    assert not torch.allclose(first_part["output"], expected_step["output"][:5], atol=0.1)  # the shares do differ
    for name, expected in expected_step.items():
        parts = [results[name] for results in shares]
        if name in ("output", "input"):
            assert_near(torch.cat(parts), expected, 1e-4)
        elif name.endswith(("running_mean", "running_var", "basis")):
            assert all(torch.allclose(part, expected, rtol=1e-5, atol=1e-6) for part in parts)
        else:
            assert_near(parts[0] + parts[1], expected, 1e-4)


# The filter kept in evaluation


def test_a_kept_filter_is_used_again_and_is_never_stale() -> None:
    layer = SteerableConv("C4", 2, 2, padding=1).eval()
    x = torch.randn(1, 8, 5, 5)

    def fresh() -> Tensor:
        return nn.functional.conv2d(x, layer.expand_filter(), padding=1)

    with torch.no_grad():
        assert layer._get_filter() is layer._get_filter()
        assert torch.equal(layer(x), fresh())
        layer.load_state_dict({"weight": torch.randn_like(layer.weight)})
        assert torch.equal(layer(x), fresh())
        layer.weight.mul_(2)
        assert torch.equal(layer(x), fresh())
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))
        assert torch.equal(layer(x), fresh())
        layer.double()
        assert torch.equal(layer(x.double()), nn.functional.conv2d(x.double(), layer.expand_filter(), padding=1))


def test_an_optimizer_step_in_evaluation_mode_changes_the_next_output() -> None:
    layer = SteerableConv("C4", 2, 2).eval()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        before = layer(x)
    layer(x).square().sum().backward()  # with gradients the kept filter is not used
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(layer(x), before)
        assert torch.equal(layer(x), layer.train()(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_network_that_has_been_evaluated_can_be_copied_pickled_and_trained(mode: Any) -> None:
    model = network().eval()
    x = torch.rand(2, 3, 33, 33)
    with mode():
        expected = model(x).clone()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(other(x), expected, atol=1e-6)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("loaded_in", [True, False])
@pytest.mark.parametrize("saved_in", [True, False])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_state_dict_moves_between_training_and_evaluation(
    group: str, saved_in: bool, loaded_in: bool, tmp_path: Path
) -> None:
    trained, x = network(group), torch.rand(8, 3, 33, 33)
    trained(x)  # so that batch norm has statistics of its own
    keys = list(trained.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(trained).eval()(x)
        trained.train(saved_in)(x) if not saved_in else None  # so that a filter is kept
        torch.save(trained.state_dict(), tmp_path / "weights.pt")
        torch.manual_seed(1)
        other = network(group).train(loaded_in)
        other(x) if not loaded_in else None
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
        assert list(other.state_dict()) == keys
        assert torch.equal(other.eval()(x), expected)
        assert list(other.eval().state_dict()) == list(other.train().state_dict()) == keys


@pytest.mark.parametrize("group", ["C4", "D4"])
@pytest.mark.parametrize("kind", ["trivial", "regular"])
def test_weights_of_e2cnn_give_its_outputs_however_both_were_switched(kind: groups.FieldKind, group: str) -> None:
    torch.manual_seed(3)
    theirs = e2cnn_convolution(SteerableConv(group, 2, 3, 3, kind=kind, padding=1))
    x = torch.randn(2, theirs.in_type.size, 9, 9)
    expected = theirs(e2cnn.nn.GeometricTensor(x, theirs.in_type)).tensor
    for their_mode in (True, False, True):
        state = theirs.train(their_mode).state_dict()
        assert ("filter" in state) is not their_mode  # which makes e2cnn's own loading fail across modes
        weights = {"weight": state["weights"]}
        for our_mode in (True, False, True):
            ours = SteerableConv(group, 2, 3, 3, kind=kind, padding=1).train(our_mode)
            with torch.no_grad():
                ours(x)  # so that a filter of other weights is kept
                ours.load_state_dict(weights, strict=True)
                assert_near(ours(x), expected)
                assert_near(ours.train(not our_mode)(x), expected)


# Networks


@pytest.mark.parametrize(
    ("group", "scale"),
    [
        *slow_unless([(group, 0.25) for group in GROUPS_OF_FAST_TIER], ((group, 0.25) for group in GROUPS)),
        slow("C8", 1.0),
        slow("D4", 1.0),
    ],
)
def test_the_logits_do_not_change_under_any_exact_element_of_the_group(group: str, scale: float) -> None:
    assert invariance_error(network(group, 65, scale=scale), group, 65) < 1e-4


@pytest.mark.parametrize("image_size", [33, 63, 65, 127, 129, 255])
def test_the_logits_do_not_change_at_any_size_of_the_study(image_size: int) -> None:
    assert invariance_error(network("D4", image_size, scale=0.1), "D4", image_size) < 1e-4


def test_the_measure_sees_what_is_not_invariant() -> None:
    assert invariance_error(network(None, 65), None, 65) > 1e-3
    assert invariance_error(network("D4", 65, head="flatten"), "D4", 65) > 1e-3
    assert invariance_error(network("C2", 65), "C4", 65) > 1e-3
    assert invariance_error(network("C4", 65), "D4", 65) > 1e-3
    assert invariance_error(network("C1", 65), "D1", 65) > 1e-3
    assert invariance_error(network("D4", 64), "D4", 64) > 1e-3  # the size is not exact


def test_measuring_invariance_leaves_the_network_alone() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    assert invariance_error(model, "D4", 33, seed=1) == invariance_error(model, "D4", 33, seed=1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("image_size", "first", "last"),
    [(255, 129, 5), (257, 129, 5), (129, 65, 3), (127, 65, 3), (65, 33, 2), (33, 33, 2)],
)
def test_the_maps_have_the_studys_sizes(image_size: int, first: int, last: int) -> None:
    model = network("C1", image_size, scale=0.1)
    x = torch.rand(1, 3, image_size, image_size)
    assert model.blocks[0](x).shape[-1] == first
    assert model.forward_features(x).shape[-1] == last == compute_stem_geometry(image_size)[2]
    flat = build_model(ModelConfig(group="C1", scale=0.1, head="flatten"), image_size, num_classes=3)
    assert flat.eval()(x).shape == (1, 3)


@pytest.mark.parametrize(("group", "millions"), [("C1", 0.38), ("C4", 1.53), ("D4", 3.05), ("D16", 12.2)])
def test_parameters_grow_with_the_group_when_the_fields_are_kept(group: str, millions: float) -> None:
    with torch.device("meta"):
        model = network(group, 65, scale=1.0)
    layers = [m for m in model.modules() if isinstance(m, SteerableConv)]
    assert tuple(layer.out_fields for layer in layers) == BLOCK_FIELDS
    assert sum(layer.weight.numel() for layer in layers) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("width", ["parameters", "multiply_adds"])
@pytest.mark.parametrize("group", [*slow_unless(GROUPS_OF_FAST_TIER, GROUPS), None])
def test_equal_width_is_equal_to_c1_within_three_per_cent(group: str | None, width: str) -> None:
    with torch.device("meta"):
        models = network("C1", 65, scale=1.0), network(group, 65, scale=1.0, width=width)
    expected, count = (count_parameters(m) if width == "parameters" else multiply_adds(m, 65) for m in models)
    assert count == pytest.approx(expected, rel=0.03)


def test_multiply_adds_are_counted_by_hand_for_a_small_network() -> None:
    model = nn.Sequential(
        SteerableConv("C4", 3, 2, kind="trivial", stride=2, padding=1),  # 3 -> 8 channels, 9 -> 5 px
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, groups=2),  # 5 -> 3 px
        nn.Flatten(),
        nn.Linear(36, 10),
    )
    assert multiply_adds(model, 9) == 8 * 5 * 5 * 27 + 4 * 3 * 3 * 36 + 360
    assert not any(layer._forward_hooks for layer in model)


def test_the_cnn_differs_from_c1_in_its_filters_only() -> None:
    plain, steerable = network(None), network("C1")
    kinds = [[type(m) for m in model.modules()] for model in (plain, steerable)]
    assert kinds[0] == [nn.Conv2d if kind is SteerableConv else kind for kind in kinds[1]]
    x = torch.rand(2, 3, 33, 33)
    assert plain.forward_features(x).shape == steerable.forward_features(x).shape


def test_what_lies_outside_the_circle_is_not_seen() -> None:
    model = network().eval()
    x = torch.rand(1, 3, 33, 33)
    corner = x.clone()
    corner[..., :3, :3] = 1 - corner[..., :3, :3]
    assert torch.equal(model(x), model(corner))


def test_half_precision_trains_and_nearly_agrees() -> None:
    model, x = network("D4"), torch.rand(4, 3, 33, 33)
    layer = SteerableConv("D4", 2, 2).eval()
    with torch.no_grad():
        exact = layer.expand_filter()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
        with torch.no_grad():
            assert layer._get_filter().dtype == torch.bfloat16
            assert torch.equal(layer._get_filter(), exact.bfloat16())  # expanded in full, rounded once
    with torch.no_grad():
        assert layer._get_filter().dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
