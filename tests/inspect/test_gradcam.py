"""Grad-CAM: the paper's formula, localization of the evidence, and equivariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.inspect import gradcam
from galaxyhpc.inspect.gradcam import compute_heat_maps, select_most_confident, upsample
from galaxyhpc.models.activations import ProbedLayers
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.e2wrn import E2WRN

SIDE = 33


def tiny(convolution: nn.Conv2d, *head: nn.Module) -> tuple[nn.Sequential, ProbedLayers]:
    """Return a network of one convolution, its average, and a head."""
    network = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head).eval()
    last = head[-1]
    assert isinstance(last, nn.Linear)
    return network, ProbedLayers(network[1], False, None, last)


def untrained(**settings: object) -> nn.Module:
    """Build a network whose batch norms have the statistics of images, so that its outputs depend on them."""
    torch.manual_seed(0)
    network = build_model(ModelConfig.model_validate(settings), SIDE).train()
    with torch.no_grad():
        for _ in range(3):
            network(images(8))
    return network.eval()


def images(count: int) -> Tensor:
    """Return smooth random images, (count, 3, SIDE, SIDE) in [0, 1]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")


def test_the_heat_is_that_of_the_formula_with_derivatives_by_finite_differences() -> None:
    torch.manual_seed(0)
    head = (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    network, where = tiny(nn.Conv2d(3, 4, 3), *head)
    network.double()
    batch, step, highest = torch.rand(2, 3, 7, 7, dtype=torch.float64), 1e-6, 0.0
    for label in range(3):
        with torch.no_grad():
            maps = network[:2](batch)
            weights = torch.zeros(2, 4, dtype=torch.float64)
            for channel in range(4):
                for y, x in np.ndindex(5, 5):
                    more, less = maps.clone(), maps.clone()
                    more[:, channel, y, x] += step
                    less[:, channel, y, x] -= step
                    difference = (network[2:](more) - network[2:](less))[:, label] / (2 * step)
                    weights[:, channel] += difference / 25
            expected = torch.einsum("nk,nkyx->nyx", weights, maps).clamp_min(0)
        result = compute_heat_maps(network, batch, torch.full((2,), label), where)
        torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-5)
        highest = max(highest, float(expected.max()))
    assert highest > 1e-3


def test_it_finds_the_quadrant_that_a_network_looks_at() -> None:
    """Class 0 is as much as there is red, class 1 blue; red light is upper left, blue light lower right."""
    convolution, linear = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).view(2, 3, 1, 1))
        linear.weight.copy_(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
    network, where = tiny(convolution, linear)
    image = torch.full((1, 3, 8, 8), 0.1)
    image[0, 0, :4, :4], image[0, 2, 4:, 4:] = 0.9, 0.9
    red, blue = (compute_heat_maps(network, image, torch.tensor([label]), where)[0] for label in (0, 1))
    assert red[:4, :4].min() > 3 * red[4:].max() and red[:4, :4].min() > 3 * red[:, 4:].max()
    assert blue[4:, 4:].min() > 3 * blue[:4].max() and blue[4:, 4:].min() > 3 * blue[:, :4].max()


@pytest.mark.parametrize(
    "settings",
    [
        {"group": "C4", "scale": 0.1},
        {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 3, "blocks": [1, 1, 1, 1]},
        {"architecture": "e2wrn", "group": "C4", "depth": 10, "widen": 1},
    ],
    ids=["steerable_cnn", "e2resnet", "e2wrn"],
)
def test_the_heat_of_a_turned_galaxy_is_the_turned_heat(settings: dict[str, object]) -> None:
    network, batch = untrained(**settings), images(4)
    for quarters in (1, 2, 3):
        still = compute_heat_maps(network, batch, torch.arange(4))
        turned = compute_heat_maps(network, batch.rot90(quarters, (2, 3)), torch.arange(4))
        assert still.max() > 0 and (still - still.rot90(1, (1, 2))).abs().max() > 1e-2 * still.max()
        torch.testing.assert_close(turned / still.max(), still.rot90(quarters, (1, 2)) / still.max(), atol=1e-4, rtol=0)


def test_where_a_relu_is_no_module_the_map_is_the_one_behind_it() -> None:
    """Averages and one linear layer: the heat is the class activation map, the linear layer's weights times the map."""
    network, batch, classes = untrained(architecture="e2wrn", group="C4", depth=10, widen=1), images(3), torch.arange(3)
    assert isinstance(network, E2WRN)
    with torch.no_grad():
        maps = network.forward_features(batch)
        expected = torch.einsum("nk,nkyx->nyx", network.linear.weight[classes], maps).clamp_min(0) / maps[0, 0].numel()
    assert (maps == 0).any()
    torch.testing.assert_close(compute_heat_maps(network, batch, classes), expected, atol=1e-6, rtol=1e-4)


def test_looking_leaves_the_network_as_it_was() -> None:
    network, batch = untrained(group="C4", scale=0.1), images(2)
    with torch.inference_mode():
        before = network(batch)
    compute_heat_maps(network, batch, torch.zeros(2, dtype=torch.int64))
    with torch.inference_mode():
        torch.testing.assert_close(network(batch), before, atol=1e-6, rtol=1e-5)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_heat_is_enlarged_from_corner_to_corner_to_a_highest_value_of_1() -> None:
    heat = torch.tensor([[[0.0, 2.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    large = upsample(heat, 5)
    torch.testing.assert_close(large[0, [0, 0, 4, 4], [0, 4, 0, 4]], torch.tensor([0.0, 0.5, 1.0, 0.0]))
    torch.testing.assert_close(large[0, 2, 2], torch.tensor(0.375))
    assert (large[1] == 0).all()


def test_the_most_confident_of_each_class_are_chosen_right_and_wrong() -> None:
    rows, labels = np.array([10, 11, 12, 13, 14]), np.array([0, 0, 0, 1, 1])
    shares = np.array([[0.6, 0.4, 0], [0.9, 0.1, 0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0, 1, 0]])
    right, wrong, other, none = select_most_confident(rows, labels, shares)
    assert right == gradcam.GradCamTarget(11, 0, 0, 1, 0.9)  # the runner-up is looked for, too
    assert wrong == gradcam.GradCamTarget(12, 0, 2, 2, 0.5)
    assert other is not None and (other.row, other.truth, other.predicted) == (14, 1, 1)
    assert none is None  # class 1 has none that is wrong
