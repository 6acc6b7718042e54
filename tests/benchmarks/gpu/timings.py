"""Times of the GPU: its limits, training steps, layers and their kernels, evaluation, data, and what is predicted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from campaign import Campaign
from e2cnn_networks import list_study_networks, load_network
from networks import (
    autocast,
    choose_kernels,
    make_images,
    make_limit,
    make_network,
    run_step,
    set_backend_flags,
    set_torch_defaults,
)
from results import JsonDict, read_results
from schedule import COMPILED_GROUPS
from torch import Tensor, nn
from training_steps import profile_trainer

from galaxyhpc.benchmark.device_timer import measure_seconds, profile_call
from galaxyhpc.benchmark.environment import describe_environment
from galaxyhpc.benchmark.timing import TimingBudget
from galaxyhpc.steerable.kernels import selection

PREDICTION_SCRIPT = Path(__file__).parents[1] / "prediction.py"
CACHE_BYTES = 12 << 20  # that stay in the L2 cache

Result = TypeVar("Result")


def measure_ceilings(campaign: Campaign) -> None:
    """Measure what no version can exceed: matrix products, copies, launches."""
    import triton

    environment = describe_environment(campaign.device.type, torch.get_num_threads())
    campaign.record(**environment, triton=triton.__version__)
    for precision in ("bfloat16", "tf32", "float32")[0 if campaign.is_cuda else 2 :]:
        campaign.record(precision=precision, tflops=_measure_product(campaign, precision))
    number = torch.zeros(8, device=campaign.device)
    launches_ms = campaign.measure(lambda: [number.add_(1) for _ in range(200)])["ms"]
    campaign.record(**_measure_copies(campaign), launch_us=round(1000 * launches_ms / 200, 2))


def _measure_product(campaign: Campaign, precision: str) -> float:
    """Return the rate of a product of large matrices, 10^12 operations per second."""
    set_backend_flags(precision)
    size, dtype = 256 if campaign.is_tiny else 8192, torch.bfloat16 if precision == "bfloat16" else torch.float32
    factor = torch.randn(size, size, device=campaign.device, dtype=dtype)
    return round(2 * size**3 / campaign.measure(lambda: factor @ factor, max_calls=10)["ms"] / 1e9, 3)


def _measure_copies(campaign: Campaign) -> JsonDict:
    """Return the rates of a copy in memory and of one in the cache, 10^12 bytes read and written per second."""
    source = torch.zeros(1 << 20 if campaign.is_tiny else 1 << 30, dtype=torch.uint8, device=campaign.device)
    target = torch.empty_like(source)
    copy_ms = campaign.measure(lambda: target.copy_(source))["ms"]
    small_source, small_target = source[:CACHE_BYTES], target[:CACHE_BYTES]
    cached_ms = campaign.measure(lambda: [small_target.copy_(small_source) for _ in range(50)])["ms"] / 50
    rates = (2 * len(source) / copy_ms / 1e9, 2 * len(small_source) / cached_ms / 1e9)
    return dict(zip(("copy_tbs", "cached_copy_tbs"), (round(rate, 3) for rate in rates), strict=True))


def time_training_steps(campaign: Campaign) -> None:
    """Time steps of whole networks: the dense limit, all layers harmonic, and as the trainer would choose."""
    for name, kernels in _list_step_cases(campaign):
        if campaign.seconds_left < 8:
            return
        start = time.time()
        try:
            for result in time_step(campaign, name, kernels):
                campaign.record(network=name, **result, seconds=round(time.time() - start, 1))
        except Exception as error:  # of memory, or of a compiler
            campaign.record_failure(error, network=name, kernels=kernels)


def _list_step_cases(campaign: Campaign) -> Iterator[tuple[str, str]]:
    for name in campaign.list_networks():
        yield name, "dense"
        if name in COMPILED_GROUPS:
            yield name, "harmonic"
        yield name, "auto"


def time_step(campaign: Campaign, name: str, kernels: str) -> Iterator[JsonDict]:
    """Yield the times of a large batch; of the trainer's choice also of a micro-batch, where launches may dominate."""
    set_backend_flags(campaign.precision, is_deterministic=kernels != "dense")
    for batch_size in (campaign.scale.batch_size, campaign.scale.micro_batch)[: 2 if kernels == "auto" else 1]:
        network = make_network(campaign, name)
        num_harmonic, estimated_ms = choose_kernels(campaign, network, kernels, batch_size, campaign.precision, True)
        network = make_limit(network) if kernels == "dense" else network
        result = _measure_step(campaign, network, batch_size)
        label = kernels if batch_size == campaign.scale.batch_size else f"{kernels}, micro-batch"
        estimated_ms *= result["batch"] / batch_size
        yield {"kernels": label, "harmonic_layers": num_harmonic, "estimated_ms": estimated_ms, **result}


def _measure_step(campaign: Campaign, network: nn.Module, batch_size: int) -> JsonDict:
    """Time a training step from its graph and launched by the host, with fewer images where memory runs out."""

    def measure(batch_size: int) -> JsonDict:
        step = _bind_step(network, *make_images(campaign, batch_size), campaign.precision)
        first_seconds = measure_seconds(step, campaign.device)  # with what is compiled
        eager = campaign.measure(step, max_calls=6, num_warmup_calls=1)
        result = {"first_seconds": round(first_seconds, 2), **eager, "eager_ms": eager["ms"]}
        if campaign.is_cuda:
            times = campaign.measure(_capture(step), max_calls=10, num_warmup_calls=1)
            result |= {key: times[key] for key in ("ms", "min_ms", "max_ms")}
        return result

    campaign.free_memory()
    return campaign.measure_batch(batch_size, measure)


def _capture(step: Callable[[], None]) -> Callable[[], object]:
    """Return the replay of a step that was taken before: of no network can the host's launches then be the limit."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is kept between steps then belongs to the stream of the capture
        step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def _bind_step(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    return lambda: run_step(network, images, labels, precision)


def profile_steps(campaign: Campaign) -> None:
    """Profile steps: the kernels that take the time, and how busy the GPU is."""
    batch_size = campaign.scale.batch_size
    for name in ("C4",) if campaign.is_tiny else ("D16", "D8", "C16", "D4", "C4", "C1", "cnn"):
        if campaign.seconds_left < 5:
            return
        campaign.free_memory()
        set_backend_flags(campaign.precision)
        network = make_network(campaign, name)
        num_harmonic, _ = choose_kernels(campaign, network, "auto", batch_size, campaign.precision, True)
        step = _bind_step(network, *make_images(campaign, batch_size), campaign.precision)
        values = {"network": name, "harmonic_layers": num_harmonic, "batch": batch_size}
        campaign.record(**values, **profile_call(step, campaign.device))
    profile_trainer(campaign)


def compile_limits(campaign: Campaign) -> None:
    """Compile the dense limits, a process each; inductor keeps the code on the disk for `time_compiled_steps`."""
    campaign.run_side_by_side(_time_compiled_step, _list_compiled(campaign))


def time_compiled_steps(campaign: Campaign) -> None:
    """Time the dense limit as torch.compile makes it."""
    for name in _list_compiled(campaign):
        if campaign.seconds_left < 25:
            return
        torch.compiler.reset()
        _time_compiled_step(campaign, name)


def _list_compiled(campaign: Campaign) -> tuple[str, ...]:
    return ("C4",) if campaign.is_tiny else ("D16", "C4", "D8")


def _time_compiled_step(campaign: Campaign, name: str) -> None:
    set_backend_flags(campaign.precision, is_deterministic=False)
    limit = make_limit(make_network(campaign, name))
    network = torch.compile(limit, fullgraph=True, backend="inductor" if campaign.is_cuda else "aot_eager")
    # other processes compile at the same time: their times are no measurements, and have another name
    kernels = "compiled" if campaign.step == "compiled" else "compiled meanwhile"
    try:
        step = _measure_step(campaign, network, campaign.scale.batch_size)
        campaign.record(network=name, kernels=kernels, **step)
    except Exception as error:
        campaign.record_failure(error, network=name, kernels=kernels)


def try_selection(campaign: Campaign) -> None:
    """Run the trials by which kernels are selected, here for their numbers, and one in a process of its own."""
    cases = [("D8", True), ("D8", False), ("D16", True), ("D16", False), ("C16", True), ("D4", True), ("D4", False)]
    for number, (name, is_training) in enumerate([("C4", False)] if campaign.is_tiny else cases):
        if campaign.seconds_left < 10:
            return
        campaign.free_memory()
        precision = campaign.precision if is_training else "float32"
        set_backend_flags(precision)
        network, batch_size = make_network(campaign, name), campaign.scale.micro_batch
        num_harmonic, _ = choose_kernels(campaign, network, "auto", batch_size, precision, is_training)
        choice = {name: layer.harmonic for name, layer in selection.get_steerable_layers(network).items()}
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        batch_shape = selection.BatchShape(batch_size, campaign.scale.image_size)
        arguments = (network, choice, batch_shape, campaign.device, dtype, is_training)
        trial, seconds = _time_once(lambda arguments=arguments: selection.run_trial(*arguments))
        result = {"harmonic_layers": num_harmonic, "is_better": selection.is_better(trial, dtype)}
        result["trial_seconds"] = seconds
        if not number:
            selected, seconds = _time_once(lambda arguments=arguments: selection.validate_on_device(*arguments))
            result |= {"selected_layers": sum(selected.values()), "trial_process_seconds": seconds}
        campaign.record(network=name, is_training=is_training, **trial._asdict(), **result)


def _time_once(function: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of a function, and the seconds that it took."""
    start = time.time()
    result = function()
    return result, round(time.time() - start, 1)


def time_inference(campaign: Campaign) -> None:
    """Time what an evaluation computes in full float32, by its choice and dense, and dense in other precisions."""
    batch_size, names = 64, ("D16", "D8", "D4", "C8", "C16", "C4", "C1", "cnn")
    cases = [(name, kernels, "float32") for name in names for kernels in ("auto", "dense")]
    cases += [(name, "dense", precision) for name in ("D16", "C4") for precision in ("tf32", "bfloat16")]
    if campaign.is_tiny:
        batch_size, cases = 2, [("C4", "dense", "float32"), ("cnn", "dense", "float32")]
    for name, kernels, precision in cases:
        if campaign.seconds_left < 5:
            return
        set_backend_flags(precision)
        network = make_network(campaign, name).eval()
        num_harmonic, estimated_ms = choose_kernels(campaign, network, kernels, batch_size, precision, False)
        result = _measure_inference(campaign, network, batch_size, precision)
        rate = round(1000 * result["batch"] / result["ms"])
        values = {"precision": precision, "inference_kernels": kernels, "harmonic_layers": num_harmonic}
        values |= {"images_per_second": rate, "estimated_ms": estimated_ms * result["batch"] / batch_size}
        campaign.record(network=name, **values, **result)


def _measure_inference(campaign: Campaign, network: nn.Module, batch_size: int, precision: str) -> JsonDict:
    def measure(batch_size: int) -> JsonDict:
        images, _ = make_images(campaign, batch_size)
        with torch.inference_mode(), autocast(campaign.device, precision):
            return campaign.measure(lambda: network(images), max_calls=6)

    campaign.free_memory()
    return campaign.measure_batch(batch_size, measure)


def time_data(campaign: Campaign) -> None:
    """Time a batch from bytes to augmented images, beside torchvision's transforms, and as a fraction of the steps."""
    from galaxyhpc.benchmark.pipelines import training  # with its packages, which other steps do without

    scale = campaign.scale
    budget = TimingBudget(2, scale.round_seconds)
    results = training.measure_pipeline(scale.image_size, scale.batch_size, campaign.device.type, budget)
    milliseconds = 1000 * results["ours"]["seconds"]
    fractions = {
        line["network"]: round(milliseconds / scale.batch_size / (line["ms"] / line["batch"]), 4)
        for line in read_results(campaign.out_dir, "steps")
        if line.get("kernels") == "auto" and "ms" in line
    }
    campaign.record(ms=round(milliseconds, 3), ratios=results["ratios"], fraction_of_step=fractions)


def time_e2cnn(campaign: Campaign) -> None:
    """Time e2cnn's own modules in float32, with torch's own flags, as the study ran them."""
    for name in list_study_networks(campaign):
        if campaign.seconds_left < 8:
            return
        set_torch_defaults()
        try:
            times = _measure_e2cnn_step(campaign, load_network(campaign, name))
            campaign.record(network=name, kernels="e2cnn", **times)
        except Exception as error:
            campaign.record_failure(error, network=name, kernels="e2cnn")


def _measure_e2cnn_step(campaign: Campaign, network: nn.Module) -> JsonDict:
    """Time a step on contiguous images, as in the study."""

    def measure(batch_size: int) -> JsonDict:
        images, labels = make_images(campaign, batch_size)
        return campaign.measure(_bind_step(network, images.contiguous(), labels, "float32"), max_calls=5)

    campaign.free_memory()
    return campaign.measure_batch(campaign.scale.micro_batch, measure)


def compare_prediction(campaign: Campaign) -> None:
    """Predict the time of an epoch from a benchmark, then train it."""
    out = campaign.out_dir / "prediction.json"
    options = ["--device", "cuda", "--size", "255", "--group", "C4"] if campaign.is_cuda else ["--scale", "0.1"]
    command = [sys.executable, str(PREDICTION_SCRIPT), str(out), *options]
    subprocess.run(command, check=True, timeout=max(10.0, campaign.seconds_left))
    results = json.loads(out.read_text())
    campaign.record(**{key: results[key] for key in ("predicted_epoch_s", "measured_epoch_s", "predicted_to_measured")})
