"""What a steerable convolution costs on this machine, dense and harmonic: seconds, from what is counted of a layer.

A way's time is taken for a sum of counts times rates. The rates are those that agree best with a dozen small layers,
which are timed once per machine, in seconds, and kept on its disk. No layer of a network is timed: a choice made by
stop-watch would change from start to start.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from galaxyhpc.runtime import native
from galaxyhpc.runtime.native import get_cache_directory
from galaxyhpc.steerable.kernels.cpu import count_additions
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis
from galaxyhpc.steerable.layers import SteerableConv
from galaxyhpc.storage.files import write_text

FORMAT = 5  # raised when counts or layers change
SECONDS, ROUNDS = 4.0, 2  # for measuring, at least
PATIENCE = 15.0  # s, after which blurred rates are taken, too
CLEAR = 0.2  # relative error of the rates
SHARED = 0.01  # how much counts that grow together share a time, which tells more of layers larger than those timed
LANES = 16  # float32 values of a vector
LARGE = 1 << 20  # values of a filter, about what a cache holds

Rates = dict[str, list[float]]  # way -> seconds of each count


class LayerInput(NamedTuple):
    """A layer in a network, and what comes in."""

    basis_spec: BasisSpec
    fields: tuple[int, int]  # in, out
    stride: int
    padding: int
    batch_size: int
    input_size: tuple[int, int]  # px
    needs_input_grad: bool = True  # whether training needs the gradient of what comes in
    num_micro_batches: int = 1  # passes of a training step, which share a dense filter

    @property
    def num_output_pixels(self) -> int:
        """Number of the output, all images together."""
        rows, columns = ((side + 2 * self.padding - self.basis_spec[1]) // self.stride + 1 for side in self.input_size)
        return self.batch_size * rows * columns

    @property
    def num_elements(self) -> tuple[int, int]:
        """Of x and of y."""
        d_in, d_out = (
            len(each.change_of_basis)
            for each in (get_harmonic_basis(self.basis_spec).inputs, get_harmonic_basis(self.basis_spec).outputs)
        )
        return self.batch_size * self.input_size[0] * self.input_size[1] * self.fields[
            0
        ] * d_in, self.num_output_pixels * self.fields[1] * d_out


# group, fields in and out, side (px), images: wide and narrow layers, large and small maps
LAYERS = (
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
STEMS = (("C4", 12, 33, 8), ("D8", 12, 33, 4))  # group, fields out, side, images: from colours, stride 2


def uses() -> list[LayerInput]:
    """Return the layers that are timed."""
    inner = [LayerInput((g, 3, "regular", "regular", None), (i, o), 1, 1, n, (s, s)) for g, i, o, s, n in LAYERS]
    return inner + [
        LayerInput((g, 3, "trivial", "regular", None), (3, o), 2, 1, n, (s, s), False) for g, o, s, n in STEMS
    ]


def dense_counts(use: LayerInput, training: bool) -> list[float]:
    """Count passes, values of maps, products of the convolution; the filter's values, and products of its expansion.

    A filter that leaves the cache, which most are far from or far beyond, costs more a value.
    """
    of, pairs = get_harmonic_basis(use.basis_spec), use.fields[0] * use.fields[1]
    entries = len(of.inputs.change_of_basis) * len(of.outputs.change_of_basis) * of.kernel_size**2
    passes = 2 + use.needs_input_grad if training else 1
    products = passes * use.num_output_pixels * pairs * entries
    filters = [pairs * entries, max(0, pairs * entries - LARGE)]
    expanded = [pairs * entries * of.num_weights / use.num_micro_batches] if training else []
    return list(map(float, (1, passes * sum(use.num_elements), products, *filters, *expanded)))


def harmonic_counts(use: LayerInput, training: bool) -> list[float]:
    """Count calls, vectors of z, products, values and products of the changes of basis, weights, of all passes.

    Backward makes the maps of the gradient, at the pixels of x, for two products.
    """
    d_in, d_out = (
        len(each.change_of_basis)
        for each in (get_harmonic_basis(use.basis_spec).inputs, get_harmonic_basis(use.basis_spec).outputs)
    )
    pixels, (fields_in, fields_out) = use.batch_size * math.prod(use.input_size), use.fields
    passes = [(False, (pixels, use.num_output_pixels), (fields_in, fields_out), 1, (d_in, d_out))]
    if training:
        passes.append(
            (True, (use.num_output_pixels, pixels), (fields_out, fields_in), 1 + use.needs_input_grad, (d_out, d_in))
        )
    total = np.zeros(6)
    for transposed, (given, at), (into, out), products, rows in passes:
        of = get_harmonic_basis(use.basis_spec, transposed)
        pairs = sum(irrep.size * irrep.weight_indices.size for irrep in of.irreps) * into * whole(out)
        values = np.array([given * into * rows[0], products * at * out * rows[1]])
        weights = products * into * out * of.num_weights
        z = at * count_additions(of) * whole(into)
        total += np.array([1, z, products * at * pairs, values.sum(), values @ rows, weights])
    return [float(each) for each in total]


def whole(fields: int) -> int:
    """Return the lanes of the vectors that some fields take."""
    return -(-fields // LANES) * LANES


COUNTS = {"dense": dense_counts, "harmonic": harmonic_counts}


def seconds(use: LayerInput, rates: Rates, way: str, training: bool) -> float:
    """Tell a layer's time."""
    counts = COUNTS[way](use, training)
    return float(np.dot(counts, rates[f"{way} {'training' if training else 'inference'}"]))


class Timed:
    """A layer that can be timed again and again."""

    def __init__(self, use: LayerInput, way: str, training: bool, device: torch.device, dtype: torch.dtype) -> None:
        group, size, kind, out_kind, cutoff = use.basis_spec
        given: Any = {"kind": kind, "out_kind": out_kind, "cutoff": cutoff}
        given |= {"stride": use.stride, "padding": use.padding}
        self.layer = SteerableConv(group, *use.fields, size, **given).to(device).train(training)
        self.layer.harmonic = way == "harmonic"
        self.way, self.training, self.dtype = way, training, dtype
        channels = use.fields[0] * self.layer.basis.shape[2]
        self.x = torch.rand(
            use.batch_size, channels, *use.input_size, device=device, requires_grad=training and use.needs_input_grad
        )

    def seconds(self) -> float:
        """Return the time of one pass, and of its backward in training."""
        device, autocast = self.x.device, self.dtype != torch.float32
        begun = get_synchronized_time(device)
        with torch.set_grad_enabled(self.training), torch.autocast(device.type, self.dtype, enabled=autocast):
            y = self.layer(self.x)
        if self.training:
            y.backward(torch.ones_like(y))
        return get_synchronized_time(device) - begun


def get_synchronized_time(device: torch.device) -> float:
    """Return the time at which a device has done what it was told, s."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(several: list[Timed], most: float) -> list[float]:
    """Return each layer's shortest time; they take turns for `most` seconds, so that no other load hits one alone."""
    begun, found = time.perf_counter(), [math.inf] * len(several)
    for each in several:
        each.seconds()  # warms up
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() - begun < most:
        found = [min(shortest, each.seconds()) for shortest, each in zip(found, several, strict=True)]
        rounds += 1
    return found


def fitted(counts: NDArray[np.float64], times: NDArray[np.float64]) -> tuple[list[float], float]:
    """Return the rates, none negative, whose relative errors are least, and these: counts (n, k), times (n,)."""
    relative = counts / times[:, None]
    scale = relative.max(0)
    scale[scale == 0] = 1.0
    share = math.sqrt(SHARED * len(times)) * np.eye(counts.shape[1])  # else one of like counts takes all
    found, _ = nnls(np.vstack([relative / scale, share]), np.r_[np.ones(len(times)), np.zeros(len(share))])
    rates = found / scale
    return [float(rate) for rate in rates], float(np.sqrt(np.mean((relative @ rates - 1) ** 2)))


def measured(device: torch.device, dtype: torch.dtype) -> Rates:
    """Time the layers and find the rates, longer where other load blurs them. Random numbers are left alone."""
    with torch.random.fork_rng():
        asked = [(use, way, training) for training in (True, False) for way in COUNTS for use in uses()]
        several = [Timed(*one, device, dtype) for one in asked]
    times, begun, errors = np.full(len(asked), math.inf), time.monotonic(), [math.inf]
    while max(errors) > CLEAR and time.monotonic() - begun < PATIENCE:
        times = np.minimum(times, fastest(several, SECONDS))
        found, errors = Rates(), []
        for place, (_, way, training) in enumerate(asked[:: len(uses())]):
            counts = np.array([COUNTS[way](use, training) for use in uses()])
            rates, error = fitted(counts, times[place * len(uses()) :][: len(uses())])
            found[f"{way} {'training' if training else 'inference'}"] = rates
            errors.append(error)
    return found


@cache
def of_machine(device: torch.device, dtype: torch.dtype, threads: int) -> Rates:
    """Return the rates of this machine, measured where they are not on the disk."""
    on_cpu = device.type == "cpu"
    name = native.describe_cpu() if on_cpu else torch.cuda.get_device_name(device)
    asked = [FORMAT, torch.__version__, name, threads if on_cpu else 0, str(dtype), uses()]
    path = get_cache_directory() / f"rates-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.json"
    known = _read(path)
    if known is None:
        known = measured(device, dtype)
        known = _read(path) or known  # of who was quicker: two runs begun together are to choose alike
        with suppress(OSError):
            write_text(path, json.dumps(known))
    return known


def _read(path: Any) -> Rates | None:
    """Read a file; None where it is absent or is not what was written."""
    try:
        found: Rates = json.loads(path.read_text())
        sound = {f"{way} {of}" for way in COUNTS for of in ("training", "inference")} == set(found)
        return found if sound and all(type(n) is float and n >= 0 for some in found.values() for n in some) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
