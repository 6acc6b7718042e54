"""Seconds that a steerable convolution takes on this CPU, dense and harmonic, from counts of its operations.

A kernel's time is modelled as a sum of counts times rates. The rates are fitted to a dozen small layers, which are
timed once per machine, in seconds, and kept on its disk. No layer of a network is timed itself: a choice made with a
stopwatch would differ from start to start.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from galaxyhpc.runtime import native
from galaxyhpc.runtime.native import get_cache_directory
from galaxyhpc.steerable.kernels.cpu import VECTOR_BYTES, count_additions, round_up
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, HarmonicBasis, get_harmonic_basis
from galaxyhpc.steerable.layers import SteerableConv
from galaxyhpc.storage.files import write_text

FORMAT_VERSION = 8  # raised when counts or calibration layers change
MIN_ROUNDS, MIN_SECONDS = 2, 4.0  # of timing all calibration layers
MAX_FIT_ERROR = 0.2  # relative; above it the layers are timed again
MAX_SECONDS = 15.0  # after which rates are accepted whatever their error
RIDGE_WEIGHT = 0.01  # splits a time between counts that grow together, which predicts larger layers better
VECTOR_LANES = VECTOR_BYTES // 4  # float32 values
CACHED_VALUES = 1 << 20  # values of a filter that fit in a cache, about

Json = TypeVar("Json", bound=dict[str, Any])
Rates = dict[str, list[float]]  # "dense training" and so on -> seconds per unit of each count


class LayerInput(NamedTuple):
    """A layer of a network and the shape of its input."""

    basis_spec: BasisSpec
    fields: tuple[int, int]  # in, out
    stride: int
    padding: int
    batch_size: int
    input_size: tuple[int, int]  # px
    needs_input_grad: bool = True  # whether training needs the gradient of the input
    num_micro_batches: int = 1  # passes of a training step, which share a dense filter

    @property
    def num_output_pixels(self) -> int:
        """Number of output pixels of all images."""
        rows, columns = ((side + 2 * self.padding - self.basis_spec[1]) // self.stride + 1 for side in self.input_size)
        return self.batch_size * rows * columns

    @property
    def num_elements(self) -> tuple[int, int]:
        """Numbers of values of the input and of the output."""
        d_in, d_out = get_field_sizes(get_harmonic_basis(self.basis_spec))
        num_input_pixels = self.batch_size * self.input_size[0] * self.input_size[1]
        return num_input_pixels * self.fields[0] * d_in, self.num_output_pixels * self.fields[1] * d_out


def get_field_sizes(basis: HarmonicBasis) -> tuple[int, int]:
    """Return the channels of an input field and of an output field."""
    return len(basis.inputs.change_of_basis), len(basis.outputs.change_of_basis)


# group, fields in and out, side (px), images: wide and narrow layers, large and small maps
CALIBRATION_LAYERS = (
    ("C1", 12, 24, 33, 8),
    ("C1", 24, 48, 17, 8),
    ("C1", 48, 48, 17, 8),
    ("C2", 12, 24, 33, 8),
    ("C2", 96, 96, 5, 8),
    ("D1", 48, 48, 17, 8),
    ("C4", 12, 24, 33, 4),
    ("C4", 96, 96, 5, 8),
    ("D4", 12, 24, 17, 4),
    ("D4", 48, 48, 9, 8),
    ("C2", 192, 112, 3, 8),
    ("D8", 48, 64, 3, 4),
    ("C8", 24, 48, 17, 2),
    ("D8", 12, 24, 17, 2),
    ("D8", 32, 32, 5, 8),
    ("C16", 24, 24, 9, 4),
)
# the same of 1 px: most of their time is not that of products, which layers of 3 px cannot tell apart
CALIBRATION_SHORTCUTS = (("C4", 12, 24, 33, 4), ("C8", 8, 24, 17, 4), ("C8", 32, 64, 9, 4))
CALIBRATION_STEMS = (("C4", 12, 33, 8), ("D8", 12, 33, 4))  # group, fields out, side, images: from colours, stride 2


def make_calibration_inputs() -> list[LayerInput]:
    """Return the layers that are timed."""
    inner = [
        LayerInput(
            (group, size, "regular", "regular", None), (fields_in, fields_out), 1, size // 2, batch_size, (side, side)
        )
        for size, layers in ((3, CALIBRATION_LAYERS), (1, CALIBRATION_SHORTCUTS))
        for group, fields_in, fields_out, side, batch_size in layers
    ]
    stems = [
        LayerInput((group, 3, "trivial", "regular", None), (3, fields_out), 2, 1, batch_size, (side, side), False)
        for group, fields_out, side, batch_size in CALIBRATION_STEMS
    ]
    return inner + stems


def count_dense_operations(layer_input: LayerInput, is_training: bool) -> list[float]:
    """Count passes, values of maps, products, values of the filter and, in training, products of its expansion.

    A filter that leaves the cache, which most are far from or far beyond, costs more per value.
    """
    basis, pairs = get_harmonic_basis(layer_input.basis_spec), layer_input.fields[0] * layer_input.fields[1]
    d_in, d_out = get_field_sizes(basis)
    entries = d_in * d_out * basis.kernel_size**2
    passes = 2 + layer_input.needs_input_grad if is_training else 1
    products = passes * layer_input.num_output_pixels * pairs * entries
    filters = [pairs * entries, max(0, pairs * entries - CACHED_VALUES)]
    expansion = [pairs * entries * basis.num_weights / layer_input.num_micro_batches] if is_training else []
    return list(map(float, (1, passes * sum(layer_input.num_elements), products, *filters, *expansion)))


def count_harmonic_operations(layer_input: LayerInput, is_training: bool) -> list[float]:
    """Count calls, vectors of z, products, values and products of the changes of basis, and weights, of all passes.

    The backward pass computes z of the gradient, at the pixels of the input, for two products; with a stride it has the
    counts of the forward pass for each product.
    """
    d_in, d_out = get_field_sizes(get_harmonic_basis(layer_input.basis_spec))
    is_skipping = layer_input.stride > layer_input.basis_spec[1]  # pixels of the input, all but those at outputs
    num_output_pixels = layer_input.num_output_pixels
    num_input_pixels = layer_input.batch_size * math.prod(layer_input.input_size)
    pixels = (num_output_pixels if is_skipping else num_input_pixels, num_output_pixels)
    passes = [(False, pixels, layer_input.fields, 1, (d_in, d_out))]
    if is_training and layer_input.stride > 1:
        passes *= 2 + layer_input.needs_input_grad
    elif is_training:
        num_products = 1 + layer_input.needs_input_grad
        passes.append((True, pixels[::-1], layer_input.fields[::-1], num_products, (d_out, d_in)))
    total = np.zeros(6)
    for is_transposed, (pixels_in, pixels_out), (fields_in, fields_out), num_products, channels in passes:
        basis = get_harmonic_basis(layer_input.basis_spec, is_transposed)
        pairs = sum(irrep.size * irrep.weight_indices.size for irrep in basis.irreps)
        lanes_in = round_up_to_lanes(fields_in, layer_input.stride == 1)
        lanes_out = round_up_to_lanes(fields_out, fields_in % 2 == 0)
        pairs *= fields_in * lanes_out
        values = np.array([pixels_in * lanes_in * channels[0], num_products * pixels_out * lanes_out * channels[1]])
        weights = num_products * fields_in * fields_out * basis.num_weights
        z = pixels_out * count_additions(basis) * lanes_in
        total += np.array([1, z, num_products * pixels_out * pairs, values.sum(), values @ channels, weights])
    return [float(count) for count in total]


def round_up_to_lanes(num_fields: int, may_share: bool) -> int:
    """Return the lanes of the vectors that hold some fields; two values of half a vector may share one."""
    unit = VECTOR_LANES // 2 if may_share and num_fields <= VECTOR_LANES // 2 else VECTOR_LANES
    return round_up(num_fields, unit)


OPERATION_COUNTERS = {"dense": count_dense_operations, "harmonic": count_harmonic_operations}


def estimate_seconds(layer_input: LayerInput, rates: Rates, kernel: str, is_training: bool) -> float:
    """Estimate the time of a layer computed by the kernel `dense` or `harmonic`."""
    counts = OPERATION_COUNTERS[kernel](layer_input, is_training)
    return float(np.dot(counts, rates[_make_rates_key(kernel, is_training)]))


def _make_rates_key(kernel: str, is_training: bool) -> str:
    return f"{kernel} {'training' if is_training else 'inference'}"


class TimedLayer:
    """A layer that can be timed again and again."""

    def __init__(
        self, layer_input: LayerInput, kernel: str, is_training: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        group, size, kind, out_kind, cutoff = layer_input.basis_spec
        options: Any = {"kind": kind, "out_kind": out_kind, "cutoff": cutoff}
        options |= {"stride": layer_input.stride, "padding": layer_input.padding}
        self.layer = SteerableConv(group, *layer_input.fields, size, **options).to(device).train(is_training)
        self.layer.harmonic = kernel == "harmonic"
        self.is_training, self.dtype = is_training, dtype
        channels = layer_input.fields[0] * self.layer.basis.shape[2]
        shape = (layer_input.batch_size, channels, *layer_input.input_size)
        is_inner = layer_input.needs_input_grad  # maps between layers are channels last, images are not
        x = torch.rand(shape, device=device).to(
            memory_format=torch.channels_last if is_inner else torch.contiguous_format
        )
        self.x = x.requires_grad_(is_training and is_inner)

    def time_pass(self) -> float:
        """Return the time of one pass, and of its backward in training, s."""
        device, autocast = self.x.device, self.dtype != torch.float32
        start = get_synchronized_time(device)
        with torch.set_grad_enabled(self.is_training), torch.autocast(device.type, self.dtype, enabled=autocast):
            y = self.layer(self.x)
        if self.is_training:
            y.backward(torch.ones_like(y))
        return get_synchronized_time(device) - start


def get_synchronized_time(device: torch.device) -> float:
    """Return the time when a device has finished its work, s."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_layers(layers: list[TimedLayer], min_seconds: float) -> list[float]:
    """Return each layer's shortest time, s; they alternate for `min_seconds`, so that no other load hits one alone."""
    start, shortest = time.perf_counter(), [math.inf] * len(layers)
    for layer in layers:
        layer.time_pass()  # warm-up
    num_rounds = 0
    while num_rounds < MIN_ROUNDS or time.perf_counter() - start < min_seconds:
        shortest = [min(best, layer.time_pass()) for best, layer in zip(shortest, layers, strict=True)]
        num_rounds += 1
    return shortest


def fit_rates(counts: NDArray[np.float64], times: NDArray[np.float64]) -> tuple[list[float], float]:
    """Fit non-negative rates with the least relative errors to counts (n, k) and times (n,); return both."""
    from scipy.optimize import nnls  # slow to import, and only once per machine needed

    relative = counts / times[:, None]
    scale = relative.max(0)
    scale[scale == 0] = 1.0
    ridge = math.sqrt(RIDGE_WEIGHT * len(times)) * np.eye(counts.shape[1])  # else one of like counts takes all
    solution, _ = nnls(np.vstack([relative / scale, ridge]), np.r_[np.ones(len(times)), np.zeros(len(ridge))])
    rates = solution / scale
    return [float(rate) for rate in rates], float(np.sqrt(np.mean((relative @ rates - 1) ** 2)))


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Time the calibration layers and fit the rates, longer where other load disturbs; leave random numbers alone."""
    layer_inputs = make_calibration_inputs()
    cases = [(kernel, is_training) for is_training in (True, False) for kernel in OPERATION_COUNTERS]
    with torch.random.fork_rng():
        layers = [TimedLayer(layer_input, *case, device, dtype) for case in cases for layer_input in layer_inputs]
    times, start, errors = np.full(len(layers), math.inf), time.monotonic(), [math.inf]
    while max(errors) > MAX_FIT_ERROR and time.monotonic() - start < MAX_SECONDS:
        times = np.minimum(times, time_layers(layers, MIN_SECONDS))
        rates, errors = Rates(), []
        for (kernel, is_training), case_times in zip(cases, times.reshape(len(cases), -1), strict=True):
            counts = [OPERATION_COUNTERS[kernel](layer_input, is_training) for layer_input in layer_inputs]
            rates[_make_rates_key(kernel, is_training)], error = fit_rates(np.array(counts), case_times)
            errors.append(error)
    return rates


@cache
def get_machine_rates(device: torch.device, dtype: torch.dtype, num_threads: int) -> Rates:
    """Return the rates of this CPU, measured where they are not on the disk."""
    key = [FORMAT_VERSION, torch.__version__, native.describe_cpu(), num_threads, str(dtype), make_calibration_inputs()]
    return load_or_measure(key, lambda: measure_rates(device, dtype), _are_rates)


def _are_rates(rates: Rates) -> bool:
    """Whether a file holds rates."""
    expected = {_make_rates_key(kernel, is_training) for kernel in OPERATION_COUNTERS for is_training in (True, False)}
    numbers = [number for values in rates.values() for number in values]
    return expected == set(rates) and all(type(number) is float and number >= 0 for number in numbers)


def load_or_measure(key: list[Any], measure: Callable[[], Json], is_valid: Callable[[Json], bool]) -> Json:
    """Return what was measured once for a key, a machine's name and versions; measured where no file is valid."""
    path = get_cache_directory() / f"rates-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    values = _read_values(path, is_valid)
    if values is None:
        values = measure()
        values = _read_values(path, is_valid) or values  # another run was quicker: two that start together choose alike
        with suppress(OSError):
            write_text(path, json.dumps(values))
    return values


def _read_values(path: Path, is_valid: Callable[[Json], bool]) -> Json | None:
    """Read a file; None where it is absent or damaged."""
    try:
        values: Json = json.loads(path.read_text(encoding="utf-8"))
        return values if is_valid(values) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
