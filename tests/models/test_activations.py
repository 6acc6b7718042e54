"""Features inside a network: what it makes of an image on its way to the logits."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import make_images, make_untrained
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models import activations


@pytest.mark.parametrize(
    "settings",
    [
        {"group": "D4", "scale": 0.1},
        {"group": "D4", "scale": 0.1, "head": "flatten"},
        {"architecture": "cnn", "scale": 0.1},
        {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 3, "blocks": [1, 1, 1, 1]},
        {"architecture": "e2wrn", "group": "C4", "depth": 10, "widen": 1},
    ],
    ids=["steerable_cnn", "flattening head", "cnn", "e2resnet", "e2wrn"],
)
@torch.no_grad()
def test_features_are_what_the_network_makes_of_an_image_on_its_way(settings: dict[str, object]) -> None:
    network, batch = make_untrained(ModelConfig.model_validate(settings)), make_images(3)
    seen = activations.compute_activations(network, batch)
    torch.testing.assert_close(seen.logits, network(batch))
    torch.testing.assert_close(activations.find_probed_layers(network).last_linear(seen.penultimate), seen.logits)
    if settings.get("architecture", "cnn") == "cnn":  # the study's layout: an MLP lies between them
        torch.testing.assert_close(seen.pooled, network.forward_features(batch).mean((2, 3)))  # type: ignore[operator]
        assert seen.penultimate.shape == (3, 32)
    else:
        assert torch.equal(seen.pooled, seen.penultimate)
    assert (seen.penultimate[0] - seen.penultimate[1]).norm() > 1e-3


def test_a_network_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="Sequential: no case in find_probed_layers"):
        activations.find_probed_layers(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 10)))


def test_what_stands_before_a_network_is_looked_through() -> None:
    class Darker(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(0.5 * x)
            return logits

    network = make_untrained(ModelConfig(group="D4", scale=0.1))
    with torch.no_grad():
        torch.testing.assert_close(
            activations.compute_activations(Darker(network), make_images(2)),
            activations.compute_activations(network, 0.5 * make_images(2)),
        )
