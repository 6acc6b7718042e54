"""The implementations of one network, and their times: start-up, training step, inference.

    e2cnn: e2cnn's own modules as in Pandya et al. 2023 (arXiv:2311.01500), float32, contiguous, eager
    dense: the dense limit; filters are parameters, nothing is expanded
    ours:  the network as the trainer runs it

On a GPU dense and ours are channels-last, train in bfloat16 and evaluate in float32. Only dense is compiled and lets
cuDNN search its algorithms: the trainer is eager and needs deterministic ones. Only e2cnn has torch's default, TF32 in
convolutions. On a CPU all are float32 and eager, and dense uses the faster of two layouts. A step is forward and
backward of cross-entropy, without the optimizer.
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

from galaxyhpc.benchmark.device_timer import measure_seconds, profile_call
from galaxyhpc.benchmark.e2cnn_model import E2cnnModel
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import SteerableConv

IMPLEMENTATIONS = ("e2cnn", "dense", "ours")
MAX_STEPS = 50  # in a round


@dataclass(frozen=True)
class Case:
    """One network on one device."""

    model: ModelConfig
    image_size: int  # px
    batch_size: int  # images
    device: str  # cpu or cuda
    should_compile: bool  # dense, by torch.compile
    num_threads: int
    kernels: str = "auto"  # of ours, or dense or harmonic, as resources.convolution

    @property
    def name(self) -> str:
        """Its group, or its architecture where it has none."""
        return self.model.group or self.model.architecture

    @property
    def precision(self) -> str:
        """The precision of dense and ours in training."""
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def batch_shape(self) -> selection.BatchShape:
        return selection.BatchShape(self.batch_size, self.image_size)


class DenseConv(nn.Module):
    """A convolution whose parameter is the expanded filter of a steerable layer."""

    def __init__(self, layer: SteerableConv) -> None:
        super().__init__()
        self.filter = nn.Parameter(layer.expand_filter().detach())
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return F.conv2d(x, self.filter, stride=self.stride, padding=self.padding)


def make_dense_limit(network: nn.Module) -> nn.Module:
    """Return a copy of the network with expanded filters as parameters."""
    copied = copy.deepcopy(network)
    for block in copied.get_submodule("blocks").children():
        assert isinstance(block, nn.Sequential)
        if isinstance(block[0], SteerableConv):
            block[0] = DenseConv(block[0])
    return copied


def select_kernels(network: nn.Module, case: Case, training: bool) -> selection.KernelChoice:
    """Choose the faster kernel of every layer, or the one asked for."""
    if case.kernels == "auto":
        device, dtype = torch.device(case.device), _get_dtype(case, training)
        return selection.choose_kernels(network, case.batch_shape, device, dtype, training)
    return dict.fromkeys(selection.get_steerable_layers(network), case.kernels == "harmonic")


def _get_dtype(case: Case, training: bool) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, case.precision) if training else torch.float32
    return dtype


@cache
def warm_up_compiler(device: str) -> None:
    """Compile a small layer: the first compilation in a process waits for the compiler's own processes."""
    layer = nn.Conv2d(3, 8, 3).to(device)
    torch.compile(layer)(torch.rand(2, 3, 9, 9, device=device)).sum().backward()


class TimedNetwork:
    """A network in one implementation; `start` builds it."""

    def __init__(self, case: Case, implementation: str) -> None:
        self.case, self.implementation = case, implementation
        self.is_cuda = case.device == "cuda"
        self.images = torch.rand(case.batch_size, 3, case.image_size, case.image_size, device=case.device)
        self.labels = torch.randint(len(GALAXY10_CLASSES), (case.batch_size,), device=case.device)
        self.variants: list[tuple[nn.Module, Tensor]] = []
        self.network: nn.Module | None = None  # only of ours, whose layers have a choice
        self.choices: dict[bool, selection.KernelChoice] = {}  # for training and for inference

    def _prepare(self) -> float:
        """Import modules and sample or read the filter bases; return the seconds, which count for no implementation."""
        start = time.perf_counter()
        importlib.import_module("torch._dynamo")  # as every optimizer does
        with torch.device("meta"):
            build_model(self.case.model, self.case.image_size)
        if self.implementation == "e2cnn" and self.case.model.group:
            groups.make_gspace(self.case.model.group)  # imports compat
            importlib.import_module("e2cnn.nn")
        if self.case.should_compile and self.implementation == "dense":
            warm_up_compiler(self.case.device)
        return time.perf_counter() - start

    def start(self) -> dict[str, float]:
        """Build the network and take the first step, in the first layout; return times and memory."""
        bases_seconds = self._prepare()
        bytes_before, start = self._reset_peak_memory(), time.perf_counter()
        network = self._build_network()
        if self.implementation == "ours":
            self.network = network
        num_harmonic = self._select_kernels(training=True)
        first, *others = self._list_layouts()
        self.variants = [self._apply_layout(network, first)]
        self._synchronize()
        build_seconds = time.perf_counter() - start
        self._train_step(*self.variants[0])
        self._synchronize()
        startup_seconds, peak_bytes = time.perf_counter() - start, self._get_peak_bytes() - bytes_before
        for layout in others:
            self.variants.append(self._apply_layout(copy.deepcopy(network), layout))
        results = {"bases_seconds": bases_seconds, "build_seconds": build_seconds, "startup_seconds": startup_seconds}
        results["peak_bytes"] = float(peak_bytes)
        return results | ({"harmonic_layers": num_harmonic} if self.network is not None else {})

    def training(self, round_seconds: float) -> float:
        """Return the seconds of a step, the mean of a round of about `round_seconds`, in the faster layout."""
        for network, _ in self.variants:
            network.train()
        self._select_kernels(training=True)
        return min(self._time_round(self._train_step, *variant, round_seconds) for variant in self.variants)

    def inference(self, round_seconds: float) -> float:
        """Return the seconds of a batch, the mean of a round of about `round_seconds`, in the faster layout."""
        for network, _ in self.variants:
            network.eval()
        self._select_kernels(training=False)
        with torch.no_grad():
            return min(self._time_round(self._compute_logits, *variant, round_seconds) for variant in self.variants)

    def optimizer(self, round_seconds: float) -> float:
        """Return the seconds of an optimizer step, which count for no implementation."""
        network, images = self.variants[0]
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
        self._train_step(network, images)
        return self._time_round(lambda *_: optimizer.step(), network, images, round_seconds)

    def estimate(self) -> dict[str, dict[str, float]]:
        """Return the seconds of a step and of an inference on a GPU, by which the kernels of ours are chosen."""
        assert self.network is not None
        estimates = {}
        for training, choice in self.choices.items():
            arguments = (
                self.case.batch_shape,
                torch.device(self.case.device),
                _get_dtype(self.case, training),
                training,
            )
            dense = dict.fromkeys(choice, False)
            estimates["training" if training else "inference"] = {
                "seconds": selection.estimate_seconds(self.network, choice, *arguments),
                "dense_seconds": selection.estimate_seconds(self.network, dense, *arguments),
            }
        return estimates

    def _select_kernels(self, training: bool) -> int:
        """Apply the choice, which is made once; return the number of harmonic layers."""
        if self.network is None:
            return 0
        if training not in self.choices:
            self.choices[training] = select_kernels(self.network, self.case, training)
        selection.apply_choice(self.network, self.choices[training], torch.device(self.case.device))
        return sum(map(bool, self.choices[training].values()))

    def profile(self) -> dict[str, Any]:
        """Return a profile of a step, see `profile_call`."""
        network, images = self.variants[0]
        network.train()
        self._select_kernels(training=True)
        return profile_call(lambda: self._train_step(network, images), torch.device(self.case.device))

    def release(self) -> None:
        """Free the memory of an implementation that failed."""
        self.variants, self.network = [], None
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _build_network(self) -> nn.Module:
        torch.manual_seed(0)
        self._set_backend_flags()
        network = build_model(self.case.model, self.case.image_size)
        if self.implementation == "dense":
            network = make_dense_limit(network)
        if self.implementation == "e2cnn" and self.case.model.group:
            assert isinstance(network, StudyCNN)
            network = E2cnnModel(network, self.case.image_size)
        return network.to(self.case.device).train()

    def _list_layouts(self) -> list[torch.memory_format]:
        if self.implementation == "e2cnn":
            return [torch.contiguous_format]
        if self.implementation == "dense" and not self.is_cuda:
            return [torch.channels_last, torch.contiguous_format]
        return [torch.channels_last]

    def _apply_layout(self, network: nn.Module, layout: torch.memory_format) -> tuple[nn.Module, Tensor]:
        for values in (*network.parameters(), *network.buffers()):
            if values.dim() == 4:  # a sampled basis has five axes, which channels last does not support
                values.data = values.data.contiguous(memory_format=layout)
        if self.case.should_compile and self.implementation == "dense":
            network = torch.compile(network)  # type: ignore[assignment]
        return network, self.images.contiguous(memory_format=layout)

    def _compute_logits(self, network: nn.Module, images: Tensor) -> Tensor:
        is_half = network.training and self.implementation != "e2cnn" and self.case.precision == "bfloat16"
        with torch.autocast(self.case.device, torch.bfloat16, enabled=is_half):
            logits: Tensor = network(images)
        return logits.float()

    def _set_backend_flags(self) -> None:
        """Set torch's flags as the trainer does for ours, and as an implementation is fastest for the others."""
        torch.backends.cudnn.benchmark = self.implementation == "dense"
        torch.backends.cudnn.deterministic = self.implementation == "ours"
        torch.backends.cudnn.allow_tf32 = self.implementation == "e2cnn"

    def _train_step(self, network: nn.Module, images: Tensor) -> None:
        network.zero_grad()
        F.cross_entropy(self._compute_logits(network, images), self.labels).backward()

    def _time_round(
        self, step: Callable[[nn.Module, Tensor], Any], network: nn.Module, images: Tensor, round_seconds: float
    ) -> float:
        """Return the mean seconds of a step, after a warm-up step unless one step fills the round."""
        if self.case.should_compile:
            step(network, images)  # the first call compiles
        step_seconds = self._measure_seconds(lambda: step(network, images))
        if step_seconds > round_seconds / 2:
            return step_seconds
        num_steps = max(1, min(MAX_STEPS, round(round_seconds / max(step_seconds, 1e-6))))
        return self._measure_seconds(lambda: [step(network, images) for _ in range(num_steps)]) / num_steps

    def _measure_seconds(self, function: Callable[[], object]) -> float:
        return measure_seconds(function, torch.device(self.case.device))

    def _synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def _reset_peak_memory(self) -> int:
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        return read_resident_bytes("VmRSS")

    def _get_peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self.is_cuda else read_resident_bytes("VmHWM")


def read_resident_bytes(field: str) -> int:
    """Return the resident memory of this process, now (VmRSS) or at its peak (VmHWM), in bytes; 0 without Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
