"""The ways in which one network is computed, and what each takes: its start, a training step, inference.

    plain: e2cnn's own modules as the study ran them, float32, contiguous, eager
    dense: the dense limit; filters are ready-made parameters, nothing is expanded
    ours:  the network as the trainer runs it

On a GPU dense and ours are channels-last and in bfloat16, and dense alone is compiled and lets cuDNN search its
algorithms: the trainer is eager and wants deterministic ones. On a CPU all are float32 and eager; the faster layout of
dense counts. A step is forward and backward of cross-entropy, without the optimizer.
"""

from __future__ import annotations

import copy
import gc
import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.benchmark.e2cnn_model import PlainCNN
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models import build_model
from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import SteerableConv

WAYS = ("plain", "dense", "ours")
MOST_STEPS = 50  # in a turn
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """One network on one device."""

    model: ModelConfig
    size: int  # px
    batch: int  # images
    device: str  # cpu or cuda
    compiled: bool  # dense, by torch.compile
    threads: int

    @property
    def name(self) -> str:
        """Its group, or its architecture where it has none."""
        return self.model.group or self.model.architecture

    @property
    def precision(self) -> str:
        """What dense and ours are computed in."""
        return "bfloat16" if self.device == "cuda" else "float32"


class Ready(nn.Module):
    """A convolution with a filter of its own, as large as the one that a layer would expand."""

    def __init__(self, layer: SteerableConv) -> None:
        super().__init__()
        self.filter = nn.Parameter(layer.dense_filter().detach())
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return F.conv2d(x, self.filter, stride=self.stride, padding=self.padding)


def dense_limit(network: nn.Module) -> nn.Module:
    """Return the same network with ready-made filters; the one given keeps its own."""
    changed = copy.deepcopy(network)
    for block in changed.get_submodule("blocks").children():
        assert isinstance(block, nn.Sequential)
        if isinstance(block[0], SteerableConv):
            block[0] = Ready(block[0])
    return changed


def settle(network: nn.Module, case: Case, training: bool) -> int:
    """Let every layer convolve in the faster of its ways; return the number of those without a dense filter."""
    device, images = torch.device(case.device), selection.Images(case.batch, case.size)
    paths = selection.choose(network, images, device, getattr(torch, case.precision), training)
    selection.apply(network, paths, device)
    return sum(paths.values())


@cache
def start_compiler(device: str) -> None:
    """Compile something small: the first to be compiled in a process waits for the compiler's own processes."""
    layer = nn.Conv2d(3, 8, 3).to(device)
    torch.compile(layer)(torch.rand(2, 3, 9, 9, device=device)).sum().backward()


class Subject:
    """A network computed in one way; nothing is built before it is told to start."""

    def __init__(self, case: Case, way: str) -> None:
        self.case, self.way = case, way
        self.cuda = case.device == "cuda"
        self.images = torch.rand(case.batch, 3, case.size, case.size, device=case.device)
        self.labels = torch.randint(CLASSES, (case.batch,), device=case.device)
        self.variants: list[tuple[nn.Module, Tensor]] = []
        self.network: nn.Module | None = None  # ours alone, whose layers have a choice
        self.settled: bool | None = None  # for training, or not

    def _prepare(self) -> float:
        """Import what is needed, sample or read the filters' bases; return the s of that, charged to no way."""
        begun = time.perf_counter()
        importlib.import_module("torch._dynamo")  # as every optimizer does
        with torch.device("meta"):
            build_model(self.case.model, self.case.size, CLASSES)
        if self.way == "plain" and self.case.model.group:
            groups.group_space(self.case.model.group)  # makes e2cnn work
            importlib.import_module("e2cnn.nn")
        if self.case.compiled and self.way == "dense":
            start_compiler(self.case.device)
        return time.perf_counter() - begun

    def start(self) -> dict[str, float]:
        """Build the network and take the first step; what the later layouts take is not counted."""
        bases = self._prepare()
        before, begun = self._memory_now(), time.perf_counter()
        network = self._built()
        if self.way == "ours":
            self.network = network
        harmonic = self._settle(training=True)
        first, *others = self._layouts()
        self.variants = [self._in(network, first)]
        self._wait()
        built = time.perf_counter() - begun
        self._step(*self.variants[0])
        self._wait()
        took, peak = time.perf_counter() - begun, self._peak() - before
        for layout in others:
            self.variants.append(self._in(copy.deepcopy(network), layout))
        found = {"bases_seconds": bases, "build_seconds": built, "startup_seconds": took}
        return found | {"peak_bytes": float(peak)} | ({"harmonic_layers": harmonic} if self.network is not None else {})

    def training(self, seconds: float) -> float:
        """Return the s of a step, the mean of a turn of about `seconds`, in the faster layout."""
        for network, _ in self.variants:
            network.train()
        self._settle(training=True)
        return min(self._turn(self._step, *variant, seconds) for variant in self.variants)

    def inference(self, seconds: float) -> float:
        """Return the s that a batch takes, in the faster layout."""
        for network, _ in self.variants:
            network.eval()
        self._settle(training=False)
        with torch.no_grad():
            return min(self._turn(self._logits, *variant, seconds) for variant in self.variants)

    def optimizer(self, seconds: float) -> float:
        """Return the s of a step of the study's optimizer, which no way is charged with."""
        network, images = self.variants[0]
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
        self._step(network, images)
        return self._turn(lambda *_: optimizer.step(), network, images, seconds)

    def _settle(self, training: bool) -> int:
        if self.network is None or self.settled == training:
            return 0
        self.settled = training
        return settle(self.network, self.case, training)

    def release(self) -> None:
        """Let go of what a way that failed still holds."""
        self.variants, self.network = [], None
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def _built(self) -> nn.Module:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = False
        network = build_model(self.case.model, self.case.size, CLASSES)
        if self.way == "dense":
            network = dense_limit(network)
        if self.way == "plain" and self.case.model.group:
            assert isinstance(network, StudyCNN)
            network = PlainCNN(network, self.case.size)
        return network.to(self.case.device).train()

    def _layouts(self) -> list[torch.memory_format]:
        if self.way == "plain":
            return [torch.contiguous_format]
        both = self.way == "dense" and not self.cuda
        return [torch.channels_last, *([torch.contiguous_format] if both else [])]

    def _in(self, network: nn.Module, layout: torch.memory_format) -> tuple[nn.Module, Tensor]:
        for values in (*network.parameters(), *network.buffers()):
            if values.dim() == 4:  # a sampled basis has five axes, which channels last does not know
                values.data = values.data.contiguous(memory_format=layout)
        if self.case.compiled and self.way == "dense":
            network = torch.compile(network)  # type: ignore[assignment]
        return network, self.images.contiguous(memory_format=layout)

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = self.way == "dense"
        torch.backends.cudnn.deterministic = self.way == "ours"
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.cuda and self.way != "plain"):
            logits: Tensor = network(images)
        return logits.float()

    def _step(self, network: nn.Module, images: Tensor) -> None:
        network.zero_grad()
        F.cross_entropy(self._logits(network, images), self.labels).backward()

    def _turn(
        self, work: Callable[[nn.Module, Tensor], Any], network: nn.Module, images: Tensor, given: float
    ) -> float:
        """Return the mean s of a piece of work, after some that is not counted unless one fills the turn alone."""
        if self.case.compiled:
            work(network, images)  # the first of its kind is compiled
        once = self._timed(lambda: work(network, images))
        if once > given / 2:
            return once
        count = max(1, min(MOST_STEPS, round(given / max(once, 1e-6))))
        return self._timed(lambda: [work(network, images) for _ in range(count)]) / count

    def _timed(self, work: Callable[[], object]) -> float:
        if self.cuda:
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            ends[0].record()
            work()
            ends[1].record()
            torch.cuda.synchronize()
            return float(ends[0].elapsed_time(ends[1])) / 1000
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _memory_now(self) -> int:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        return resident("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")


def resident(name: str) -> int:
    """Return the bytes of this process that lie in memory, now (VmRSS) or at most so far (VmHWM); 0 without Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
