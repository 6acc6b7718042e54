"""Networks in the style of e2cnn's examples, in e2cnn and accelerated: training, inference, start-up. Minutes each.

    python tests/benchmarks/acceleration.py OUT.json [NETWORK ...]

The steerable CNN of e2cnn's tutorial (kernels of 7 and 5 px, masks, anti-aliased pools) at full and at half width, and
Wide-ResNets of 10 and 16 layers in the style of Weiler and Cesa (2019, arXiv:1911.08251), with as many parameters as a
conventional one of 64, 128 and 256 channels. From descriptions in two papers, at half of their width: the second stage
of a ResNet-50 on regular fields (ReDet, Han et al. 2021, arXiv:2103.07733), and the image encoder of a robot's policy
(Wang et al. 2024, arXiv:2407.01812). Both forms alternate in one process, and the shortest time of each counts, because
machines are shared: CPU time of one thread, elapsed time of two. With GALAXYHPC_TEST_ESCNN=1 they are escnn's.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.e2cnn_networks import LIBRARY, get_modules, make_geometric, make_space

from galaxyhpc.steerable import accelerate, groups

ROUNDS = 3
TUTORIAL_FIELDS = (24, 48, 48, 96, 96, 64)  # of blocks; a pool follows the second and the fourth


class TutorialCNN(nn.Module):
    """Six blocks on 29 px images of one colour."""

    image_shape = (1, 29, 29)

    def __init__(self, group: str, width: float) -> None:
        super().__init__()
        space, modules = make_space(group), get_modules()

        self.colours = modules.FieldType(space, [space.trivial_repr])
        layers: list[Any] = [modules.MaskModule(self.colours, 29, margin=1)]
        for number, count in enumerate(TUTORIAL_FIELDS):
            fields = modules.FieldType(space, [space.regular_repr] * round(count * width))
            size, padding = (7, 1) if number == 0 else (5, 1 if number == 5 else 2)
            layers.append(modules.R2Conv(layers[-1].out_type, fields, size, padding=padding, bias=False))
            layers += [modules.InnerBatchNorm(fields), modules.ReLU(fields, inplace=True)]
            if number in (1, 3):
                layers.append(modules.PointwiseAvgPoolAntialiased(fields, 0.66, 2))
        self.layers = modules.SequentialModule(*layers, modules.GroupPooling(layers[-1].out_type))
        self.linear = nn.Linear(len(fields), 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 29, 29) -> logits (N, 10)."""
        logits: Tensor = self.linear(self.layers(make_geometric(images, self.colours)).tensor.mean((2, 3)))
        return logits


class WideBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, and a shortcut."""

    def __init__(self, in_type: Any, out_type: Any, stride: int) -> None:
        super().__init__()
        modules = get_modules()
        self.first_norm, self.second_norm = modules.InnerBatchNorm(in_type), modules.InnerBatchNorm(out_type)
        self.first_relu, self.second_relu = modules.ReLU(in_type, inplace=True), modules.ReLU(out_type, inplace=True)
        self.first = modules.R2Conv(in_type, out_type, 3, padding=1, stride=stride, bias=False)
        self.second = modules.R2Conv(out_type, out_type, 3, padding=1, bias=False)
        self.shortcut = modules.R2Conv(in_type, out_type, 1, stride=stride, bias=False)

    def forward(self, x: Any) -> Any:
        """GeometricTensor -> GeometricTensor."""
        x = self.first_relu(self.first_norm(x))
        return self.second(self.second_relu(self.second_norm(self.first(x)))) + self.shortcut(x)


class WideResNet(nn.Module):
    """A stem and three stages on 32 px images."""

    image_shape = (3, 32, 32)

    def __init__(self, group: str, channels: Sequence[int], blocks_per_stage: int = 1) -> None:
        super().__init__()
        space, modules = make_space(group), get_modules()

        counts = [max(1, round(count / math.sqrt(groups.group_order(group)))) for count in (16, *channels)]
        types = [modules.FieldType(space, [space.regular_repr] * count) for count in counts]
        self.colours = modules.FieldType(space, [space.trivial_repr] * 3)
        self.stem = modules.R2Conv(self.colours, types[0], 3, padding=1, bias=False)
        blocks = []
        for in_type, out_type, stride in zip(types[:-1], types[1:], (1, 2, 2), strict=True):
            blocks += [WideBlock(in_type, out_type, stride)]
            blocks += [WideBlock(out_type, out_type, 1) for _ in range(blocks_per_stage - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.relu = modules.InnerBatchNorm(types[-1]), modules.ReLU(types[-1], inplace=True)
        self.pool, self.linear = modules.GroupPooling(types[-1]), nn.Linear(counts[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, 10)."""
        x = self.blocks(self.stem(make_geometric(images, self.colours)))
        logits: Tensor = self.linear(self.pool(self.relu(self.norm(x))).tensor.mean((2, 3)))
        return logits


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 px, the middle one on a quarter of the fields, and a shortcut."""

    def __init__(self, in_type: Any, out_type: Any, stride: int) -> None:
        super().__init__()
        modules = get_modules()
        inner = modules.FieldType(in_type.gspace, [in_type.gspace.regular_repr] * (len(out_type) // 4))
        layers: list[Any] = []
        for ends, size, step in (((in_type, inner), 1, 1), ((inner, inner), 3, stride), ((inner, out_type), 1, 1)):
            layers += [modules.R2Conv(*ends, size, padding=size // 2, stride=step, bias=False)]
            layers += [modules.InnerBatchNorm(ends[1]), modules.ReLU(ends[1], inplace=True)]
        self.layers, self.relu = modules.SequentialModule(*layers[:-1]), layers[-1]
        self.shortcut: Any = None
        if stride > 1 or in_type != out_type:
            conv = modules.R2Conv(in_type, out_type, 1, stride=stride, bias=False)
            self.shortcut = modules.SequentialModule(conv, modules.InnerBatchNorm(out_type))

    def forward(self, x: Any) -> Any:
        """GeometricTensor -> GeometricTensor."""
        return self.relu(self.layers(x) + (x if self.shortcut is None else self.shortcut(x)))


class DetectorStage(nn.Module):
    """A stem of 7 px and the second stage of a ResNet-50, of four bottlenecks, on 64 px images."""

    image_shape = (3, 64, 64)

    def __init__(self, group: str, channels: tuple[int, int]) -> None:
        super().__init__()
        space, modules = make_space(group), get_modules()

        order = groups.group_order(group)
        in_type, out_type = (modules.FieldType(space, [space.regular_repr] * (count // order)) for count in channels)
        self.colours = modules.FieldType(space, [space.trivial_repr] * 3)
        stem = [modules.R2Conv(self.colours, in_type, 7, padding=3, stride=2, bias=False)]
        stem += [modules.InnerBatchNorm(in_type), modules.ReLU(in_type, inplace=True)]
        self.stem = modules.SequentialModule(*stem)
        blocks = [Bottleneck(in_type, out_type, 2), *(Bottleneck(out_type, out_type, 1) for _ in range(3))]
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.linear = modules.GroupPooling(out_type), nn.Linear(len(out_type), 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) -> logits (N, 10)."""
        x = self.blocks(self.stem(make_geometric(images, self.colours)))
        logits: Tensor = self.linear(self.pool(x).tensor.mean((2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two convolutions with bias and ReLU, and a shortcut; no norm."""

    def __init__(self, in_type: Any, out_type: Any) -> None:
        super().__init__()
        modules = get_modules()
        first = [modules.R2Conv(in_type, out_type, 3, padding=1), modules.ReLU(out_type, inplace=True)]
        self.layers = modules.SequentialModule(*first, modules.R2Conv(out_type, out_type, 3, padding=1))
        self.relu = modules.ReLU(out_type, inplace=True)
        self.shortcut = None if in_type == out_type else modules.R2Conv(in_type, out_type, 1, bias=False)

    def forward(self, x: Any) -> Any:
        """GeometricTensor -> GeometricTensor."""
        return self.relu(self.layers(x) + (x if self.shortcut is None else self.shortcut(x)))


class PolicyEncoder(nn.Module):
    """A stem of 5 px and four stages of two residual blocks, each followed by a max pool, on 76 px images."""

    image_shape = (3, 76, 76)

    def __init__(self, group: str, fields: Sequence[int]) -> None:
        super().__init__()
        space, modules = make_space(group), get_modules()

        types = [modules.FieldType(space, [space.regular_repr] * count) for count in (fields[0], *fields)]
        self.colours = modules.FieldType(space, [space.trivial_repr] * 3)
        layers: list[Any] = [modules.R2Conv(self.colours, types[0], 5), modules.ReLU(types[0], inplace=True)]
        for in_type, out_type in pairwise(types):
            layers += [ResidualBlock(in_type, out_type), ResidualBlock(out_type, out_type)]
            layers += [modules.PointwiseMaxPool(out_type, 2)]
        self.layers = nn.Sequential(*layers)
        self.pool, self.linear = modules.GroupPooling(types[-1]), nn.Linear(fields[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 76, 76) -> logits (N, 10)."""
        x = self.layers(make_geometric(images, self.colours))
        logits: Tensor = self.linear(self.pool(x).tensor.mean((2, 3)))
        return logits


# name: (network, batch size)
NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "tutorial C8": (lambda: TutorialCNN("C8", 1.0), 8),
    "tutorial C8, half as wide": (lambda: TutorialCNN("C8", 0.5), 8),
    "tutorial D8, half as wide": (lambda: TutorialCNN("D8", 0.5), 4),
    "tutorial D16, half as wide": (lambda: TutorialCNN("D16", 0.5), 2),
    "Wide-ResNet C8": (lambda: WideResNet("C8", (64, 128, 256)), 4),
    "Wide-ResNet D8": (lambda: WideResNet("D8", (64, 128, 256)), 4),
    "Wide-ResNet D8, narrow": (lambda: WideResNet("D8", (16, 32, 64)), 16),
    "Wide-ResNet C8, 16 layers": (lambda: WideResNet("C8", (64, 128, 256), 2), 4),
    "detector's stage C8": (lambda: DetectorStage("C8", (128, 256)), 4),
    "policy's encoder C8": (lambda: PolicyEncoder("C8", (8, 16, 32, 64)), 4),
}


def run_training_step(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()


@torch.no_grad()
def run_inference(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network(images)


def time_both(run: Callable[..., None], networks: Sequence[nn.Module], *batch: Tensor) -> list[float]:
    """Return the shortest time of each network, s; the first pass of each is a warm-up."""
    get_time = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(ROUNDS + 1):
        for network, values in zip(networks, seconds, strict=True):
            start = get_time()
            run(network, *batch)
            values.append(get_time() - start)
    return [min(values[1:]) for values in seconds]


def measure(name: str) -> dict[str, Any]:
    """Build a network, accelerate it, and time both."""
    make, batch_size = NETWORKS[name]
    start = time.process_time()
    network = make().train()
    built = time.process_time()
    fast = accelerate(copy.deepcopy(network))
    result: dict[str, Any] = {"batch_size": batch_size, "build_s": built - start}
    images, labels = torch.rand(batch_size, *network.image_shape), torch.randint(10, (batch_size,))
    start = time.process_time()
    run_training_step(fast, images, labels)
    result["first_step_s"] = time.process_time() - start
    for threads, (key, run) in product((1, 2), (("training", run_training_step), ("inference", run_inference))):
        torch.set_num_threads(threads)
        with torch.no_grad():
            networks = [model.train(key == "training") for model in (network, fast)]
        before, after = time_both(run, networks, images, labels)
        times = {f"{LIBRARY}_s": before, "s": after, "gain": before / after}
        result |= {f"{key}_{threads}_threads_{name}": value for name, value in times.items()}
    torch.set_num_threads(1)
    return result


def main() -> None:
    out, *names = sys.argv[1:]
    torch.set_num_threads(1)
    results = json.loads(Path(out).read_text()) if Path(out).exists() else {"networks": {}}
    results["machine"] = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    for name in names or NETWORKS:
        row = name if LIBRARY == "e2cnn" else f"{LIBRARY}: {name}"
        results["networks"][row] = measure(name)
        gains = {key: round(value, 2) for key, value in results["networks"][row].items()}
        print(row, gains, flush=True)
        Path(out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
