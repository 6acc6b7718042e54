"""Features of galaxies inside a network: the layers that hold them, and their values for a batch of images.

| family              | pooled                                                  | penultimate                        |
|---------------------|---------------------------------------------------------|------------------------------------|
| steerable_cnn, cnn  | output of the group pooling averaged over the pixels,   | the 32 inputs of the last linear   |
|                     | (N, F); `cnn` pools a group of one: the identity        | layer, after two layers of an MLP  |
| e2resnet            | in the network's order: the last map averaged over the  | = pooled: there is one linear      |
|                     | pixels, then the maximum of a field's |G| channels      | layer                              |
| e2wrn               | the last map, of trivial fields, averaged over the      | = pooled                           |
|                     | pixels: no group is left to pool                        |                                    |
| torchvision's       | the last map averaged over the pixels                   | = pooled                           |

With a flattening head `pooled` is averaged all the same, and `penultimate` is not invariant, nor are the logits.
`find_probed_layers` is the one function that finds these layers, and the last convolutional map, in a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from galaxyhpc.models.e2resnet import E2ResNet
from galaxyhpc.models.e2wrn import E2WRN
from galaxyhpc.models.steerable_cnn import StudyCNN


@dataclass(frozen=True)
class ProbedLayers:
    """The modules of a network whose inputs or outputs are recorded."""

    last_map: nn.Module  # outputs the last convolutional map, (N, C, s, s), where C includes the group's channels
    has_relu_after: bool  # a ReLU follows that is not a module: `last_map` outputs the map before it
    group_pool: nn.Module | None  # only where pooled and penultimate features differ
    last_linear: nn.Linear


class Activations(NamedTuple):
    """Features and logits of n galaxies, float32."""

    penultimate: Any  # (n, p)
    pooled: Any  # (n, q)
    logits: Any  # (n, classes)


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside wrappers such as torchvision's normalization."""
    while isinstance(inner := getattr(network, "network", None), nn.Module):
        network = inner
    return network


def find_probed_layers(network: nn.Module) -> ProbedLayers:
    """Find the probed layers of any network that `models.build_model` builds."""
    network = unwrap(network)
    last_linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    if isinstance(network, StudyCNN):
        last_relu = [module for module in network.blocks.modules() if isinstance(module, nn.ReLU)][-1]
        return ProbedLayers(last_relu, False, network.group_pool, last_linear)  # before pooling: more pixels
    if isinstance(network, E2ResNet):
        return ProbedLayers(network.stages, False, None, last_linear)
    if isinstance(network, E2WRN):
        return ProbedLayers(network.norm, True, None, last_linear)
    if hasattr(network, "layer4"):
        return ProbedLayers(network.get_submodule("layer4"), False, None, last_linear)
    if hasattr(network, "features"):  # DenseNet and SqueezeNet, whose map a second ReLU leaves as it is
        return ProbedLayers(network.get_submodule("features"), True, None, last_linear)
    raise TypeError(f"{type(network).__name__}: no case in find_probed_layers")


def compute_activations(network: nn.Module, images: Tensor) -> Activations:
    """Return the features and logits of (N, 3, S, S) images in [0, 1], as tensors on the network's device."""
    layers, recorded = find_probed_layers(network), {}

    def record(name: str, value: Tensor) -> None:
        recorded[name] = value.detach().float()

    hooks = [layers.last_linear.register_forward_pre_hook(lambda _, inputs: record("penultimate", inputs[0]))]
    if layers.group_pool is not None:
        pool = layers.group_pool
        hooks.append(pool.register_forward_hook(lambda _, inputs, output: record("pooled", output.mean((2, 3)))))
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(recorded["penultimate"], recorded.get("pooled", recorded["penultimate"]), logits.float())
