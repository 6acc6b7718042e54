"""Every module of e2cnn that has a fast form computes the same in it, for fields of one kind and of several."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.e2cnn_networks import (
    LIBRARY,
    assert_equal_function,
    call,
    copy_network,
    get_modules,
    make_space,
    set_harmonic,
)

from galaxyhpc.steerable import accelerate, report


def make_types() -> dict[str, Any]:
    """Return types of fields: of one kind, of two sizes, and mixed so that no kind lies together."""
    FieldType, space = get_modules().FieldType, make_space("D4")
    regular, trivial, vector = space.regular_repr, space.trivial_repr, space.irrep(1, 1)
    quotient = space.quotient_repr((None, 2))
    # both of four channels: two parts of two, and four of one
    induced = [space.induced_repr((None, n), space.restrict((None, n))[0].irrep(1)) for n in (4, 2)]
    return {
        "regular": FieldType(space, [regular] * 2),
        "pointwise": FieldType(space, [regular, trivial, regular, quotient, trivial]),
        "sorted": FieldType(space, [trivial] * 2 + [regular] * 2),
        "vectors": FieldType(space, [vector] * 3),
        "isometric": FieldType(space, [vector, space.irrep(1, 0), vector]),
        "mixed": FieldType(space, [vector, trivial, regular, vector, space.irrep(1, 2), trivial]),
        "gated": FieldType(space, [vector, trivial, regular, trivial, vector, trivial]),
        "induced": FieldType(space, [*induced, induced[0], *induced]),
        "colours": FieldType(space, [trivial] * 3),
    }


GATES = ["gated", "gate"] * 3
Modules = dict[str, Callable[[Any, dict[str, Any]], Any]]

CONVOLUTIONS: Modules = {
    "of mixed fields": lambda m, t: m.R2Conv(t["mixed"], t["pointwise"], 3, padding=1),
    "of vectors": lambda m, t: m.R2Conv(t["vectors"], t["mixed"], 5, bias=False),
    "of sorted fields": lambda m, t: m.R2Conv(t["sorted"], t["regular"], 3, stride=2, padding=1),
    "of quotient fields": lambda m, t: m.R2Conv(t["pointwise"], t["pointwise"], 3),
    "of even size": lambda m, t: m.R2Conv(t["colours"], t["regular"], 4, padding=2),
    "of one pixel": lambda m, t: m.R2Conv(t["regular"], t["regular"], 1),
    "dilated": lambda m, t: m.R2Conv(t["regular"], t["regular"], 3, dilation=2),
    "in groups": lambda m, t: m.R2Conv(t["vectors"], t["vectors"], 3, groups=3),
    "with reflected borders": lambda m, t: m.R2Conv(t["regular"], t["regular"], 3, padding=1, padding_mode="reflect"),
    "with periodic borders": lambda m, t: m.R2Conv(t["regular"], t["colours"], 3, padding=2, padding_mode="circular"),
    "with unequal padding": lambda m, t: m.R2Conv(t["regular"], t["colours"], 3, padding=(2, 1)),
    "of low frequencies": lambda m, t: m.R2Conv(t["regular"], t["regular"], 5, frequencies_cutoff=1.0),
    "with rings of its own": lambda m, t: m.R2Conv(t["regular"], t["regular"], 5, rings=[1.0, 2.0], sigma=[0.5, 0.7]),
}
MODULES: Modules = {
    "InnerBatchNorm": lambda m, t: m.InnerBatchNorm(t["pointwise"]),
    "InnerBatchNorm without average": lambda m, t: m.InnerBatchNorm(t["regular"], momentum=None),
    "InnerBatchNorm without scale": lambda m, t: m.InnerBatchNorm(t["regular"], affine=False),
    "NormBatchNorm": lambda m, t: m.NormBatchNorm(t["isometric"]),
    "NormBatchNorm without scale": lambda m, t: m.NormBatchNorm(t["vectors"], affine=False),
    "InducedNormBatchNorm": lambda m, t: m.InducedNormBatchNorm(t["induced"]),
    "InducedNormBatchNorm without scale": lambda m, t: m.InducedNormBatchNorm(t["induced"], affine=False),
    "GNormBatchNorm": lambda m, t: m.GNormBatchNorm(t["mixed"]),
    "GNormBatchNorm without scale": lambda m, t: m.GNormBatchNorm(t["mixed"], affine=False),
    "ReLU": lambda m, t: m.ReLU(t["regular"]),
    "ELU": lambda m, t: m.ELU(t["regular"], alpha=0.7),
    "PointwiseNonLinearity": lambda m, t: m.PointwiseNonLinearity(t["regular"], "p_tanh"),
    "NormNonLinearity": lambda m, t: m.NormNonLinearity(t["mixed"]),
    "NormNonLinearity of sigmoid": lambda m, t: m.NormNonLinearity(t["vectors"], "n_sigmoid"),
    "NormNonLinearity of squash": lambda m, t: m.NormNonLinearity(t["vectors"], "squash", bias=False),
    "GatedNonLinearity1": lambda m, t: m.GatedNonLinearity1(t["gated"], GATES),
    "GatedNonLinearity1 with gates": lambda m, t: m.GatedNonLinearity1(t["gated"], GATES, drop_gates=False),
    "PointwiseMaxPool": lambda m, t: m.PointwiseMaxPool(t["regular"], 3, 2, 1),
    "PointwiseMaxPoolAntialiased": lambda m, t: m.PointwiseMaxPoolAntialiased(t["regular"], 2, 2),
    "PointwiseAvgPool": lambda m, t: m.PointwiseAvgPool(t["mixed"], 2),
    "PointwiseAvgPoolAntialiased": lambda m, t: m.PointwiseAvgPoolAntialiased(t["mixed"], 0.66, 2, padding=0),
    "PointwiseAdaptiveAvgPool": lambda m, t: m.PointwiseAdaptiveAvgPool(t["regular"], 2),
    "PointwiseAdaptiveMaxPool": lambda m, t: m.PointwiseAdaptiveMaxPool(t["regular"], 2),
    "GroupPooling": lambda m, t: m.GroupPooling(t["pointwise"]),
    "NormPool": lambda m, t: m.NormPool(t["mixed"]),
    "InducedNormPool": lambda m, t: m.InducedNormPool(t["induced"]),
    "FieldDropout": lambda m, t: m.FieldDropout(t["mixed"], 0.4),
    "PointwiseDropout": lambda m, t: m.PointwiseDropout(t["regular"], 0.4),
    "MaskModule": lambda m, t: m.MaskModule(t["mixed"], 7),
    "RestrictionModule": lambda m, t: m.RestrictionModule(t["regular"], (None, 4)),
    "RestrictionModule and DisentangleModule": lambda m, t: restrict_and_disentangle(m, t["regular"], (None, 4)),
    "DisentangleModule of quotients": lambda m, t: m.DisentangleModule(t["pointwise"]),
    "ReshuffleModule": lambda m, t: m.ReshuffleModule(t["mixed"], [5, 1, 2, 0, 3, 4]),
    "IdentityModule": lambda m, t: m.IdentityModule(t["mixed"]),
    "R2Upsampling": lambda m, t: m.R2Upsampling(t["regular"], 2, align_corners=True),
    "R2Upsampling to a size": lambda m, t: m.R2Upsampling(t["regular"], size=11, mode="nearest"),
}
MODULES_OF_ESCNN: Modules = {
    "IIDBatchNorm2d": lambda m, t: m.IIDBatchNorm2d(t["mixed"]),
    "IIDBatchNorm2d of regular fields": lambda m, t: m.IIDBatchNorm2d(t["regular"]),
    "IIDBatchNorm2d without scale": lambda m, t: m.IIDBatchNorm2d(t["mixed"], affine=False),
    "IIDBatchNorm2d without average": lambda m, t: m.IIDBatchNorm2d(t["mixed"], momentum=None),
    "IIDBatchNorm2d without statistics": lambda m, t: m.IIDBatchNorm2d(t["mixed"], track_running_stats=False),
    "LeakyReLU": lambda m, t: m.LeakyReLU(t["regular"], 0.2),
    "NormNonLinearity of softplus": lambda m, t: m.NormNonLinearity(t["mixed"], "n_softplus"),
}
if LIBRARY == "escnn":
    MODULES |= MODULES_OF_ESCNN
HOLDERS: Modules = {
    "MultipleModule": lambda m, t: hold_two(m, t["pointwise"], lambda fields: m.ReLU(fields)),
    "MultipleModule of convolutions": lambda m, t: hold_two(
        m, t["pointwise"], lambda fields: m.R2Conv(fields, fields, 3, padding=1, stride=2)
    ),
    "MultipleModule of networks": lambda m, t: hold_two(
        m, t["pointwise"], lambda fields: m.SequentialModule(m.ELU(fields), m.PointwiseMaxPool(fields, 3, 2))
    ),
}
KEPT: Modules = {
    "NormMaxPool": lambda m, t: m.NormMaxPool(t["vectors"], 2),
    "R2ConvTransposed": lambda m, t: m.R2ConvTransposed(t["regular"], t["regular"], 3),
}


def restrict_and_disentangle(modules: Any, field_type: Any, subgroup: Any) -> Any:
    restriction = modules.RestrictionModule(field_type, subgroup)
    return modules.SequentialModule(restriction, modules.DisentangleModule(restriction.out_type))


def hold_two(modules: Any, fields: Any, make: Callable[[Any], Any]) -> Any:
    """Return a module that gives fields of one channel to one module, and others to another."""
    labels = ["one" if representation.size == 1 else "more" for representation in fields.representations]
    types = fields.group_by_labels(labels)
    return modules.MultipleModule(fields, labels, [(make(field_type), name) for name, field_type in types.items()])


def make_module(make: Callable[[Any, dict[str, Any]], Any], is_training: bool) -> Any:
    types, modules = make_types(), get_modules()
    torch.manual_seed(0)
    module = make(modules, types)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(torch.rand_like(parameter))
    return module.train(is_training)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of e2cnn
@pytest.mark.parametrize("harmonic", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_that_of_e2cnn(name: str, harmonic: bool) -> None:
    layer = make_module(CONVOLUTIONS[name], True)
    torch.nn.init.normal_(layer.bias) if layer.bias is not None else None
    fast = accelerate(copy_network(layer))
    set_harmonic(fast, harmonic)
    assert_equal_function(layer, fast, torch.randn(2, layer.in_type.size, 7, 7))


def make_spaces() -> dict[str, Any]:
    if LIBRARY == "escnn":
        spaces = importlib.import_module("escnn.gspaces")
        return {
            "SO(2)": spaces.rot2dOnR2(-1, maximum_frequency=2),
            "O(2)": spaces.flipRot2dOnR2(-1, maximum_frequency=2),
            "reflections": spaces.flip2dOnR2(axis=0.0),
            "no symmetry": spaces.trivialOnR2(),
        }
    from e2cnn import gspaces

    return {
        "SO(2)": gspaces.Rot2dOnR2(-1, maximum_frequency=2),
        "O(2)": gspaces.FlipRot2dOnR2(-1, maximum_frequency=2),
        "reflections": gspaces.Flip2dOnR2(axis=0.0),
        "no symmetry": gspaces.TrivialOnR2(),
    }


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of e2cnn
@pytest.mark.parametrize("harmonic", [False, True])
@pytest.mark.parametrize("name", ["SO(2)", "O(2)", "reflections", "no symmetry"])
def test_so_it_is_for_other_groups_and_pickled(name: str, harmonic: bool) -> None:
    modules, space = get_modules(), make_spaces()[name]
    torch.manual_seed(0)
    irreps = space.irreps[:3] if LIBRARY == "escnn" else list(space.irreps.values())
    fields = modules.FieldType(space, [*irreps, *irreps[::-1]])
    layer = modules.R2Conv(fields, fields, 3, padding=1)
    fast = pickle.loads(pickle.dumps(accelerate(layer)))
    set_harmonic(fast, harmonic)
    assert fast.in_type == layer.in_type
    assert_equal_function(layer.train(), fast.train(), torch.randn(2, fields.size, 7, 7))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_that_of_e2cnn(name: str, is_training: bool) -> None:
    module = make_module(MODULES[name], is_training)
    x = torch.randn(2, module.in_type.size, 7, 7)
    fast = accelerate(copy_network(module))
    assert_equal_function(module, fast, x)  # with the same random numbers


@pytest.mark.parametrize("name", HOLDERS)
def test_a_module_of_e2cnn_that_holds_others_holds_fast_ones(name: str) -> None:
    module = make_module(HOLDERS[name], True)
    fast = accelerate(copy_network(module))
    assert "Fast" in report(fast)
    assert_equal_function(module, fast, torch.randn(2, module.in_type.size, 7, 7))


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *MODULES])
def test_the_shape_of_an_output_is_known_beforehand(name: str) -> None:
    fast = accelerate(make_module((CONVOLUTIONS | MODULES)[name], False))
    x = torch.randn(2, fast.in_type.size, 7, 7)
    assert call(fast, x).shape == fast.evaluate_output_shape(x.shape)


@pytest.mark.parametrize("name", [*MODULES, *HOLDERS])
def test_an_accelerated_module_can_be_pickled(name: str) -> None:
    module = make_module((MODULES | HOLDERS)[name], False)
    fast = accelerate(get_modules().SequentialModule(module)).eval()
    copied = pickle.loads(pickle.dumps(fast))
    x = torch.randn(2, module.in_type.size, 7, 7)
    assert torch.equal(call(copied, x), call(fast, x))


@pytest.mark.parametrize("name", KEPT)
def test_a_module_without_a_fast_form_is_kept(name: str) -> None:
    module = make_module(KEPT[name], True)
    network = get_modules().SequentialModule(module)
    assert_equal_function(network, accelerate(copy_network(network)), torch.randn(2, module.in_type.size, 7, 7))
