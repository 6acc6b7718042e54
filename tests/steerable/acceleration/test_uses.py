"""What torch does with a network it does with an accelerated one: three networks, compiled, exported, copied."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.e2cnn_networks import (
    ResidualNetwork,
    assert_equal_function,
    call,
    copy_network,
    make_network_of_irreps,
    make_sequence,
    set_harmonic,
)
from helpers.warm_processes import run_two
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from galaxyhpc.runtime.distributed import join_group
from galaxyhpc.steerable import accelerate, report

NETWORKS: dict[str, Callable[[], Any]] = {
    "sequence": lambda: make_sequence("D4"),
    "a user's own": ResidualNetwork,
    "irreps": make_network_of_irreps,
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def make_fast(name: str, harmonic: bool | None = False, *, is_training: bool = False) -> nn.Module:
    torch.manual_seed(0)
    fast = accelerate(NETWORKS[name]()).train(is_training)
    set_harmonic(fast, harmonic)
    return fast


def make_images(batch_size: int = 2) -> Tensor:
    return torch.randn(batch_size, 3, 13, 13, generator=torch.Generator().manual_seed(0))


@each_network
def test_a_copy_and_a_pickle_are_the_same_network(name: str) -> None:
    fast, images = make_fast(name), make_images()
    expected = fast(images)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert all(a is not b for a, b in zip(copied.parameters(), fast.parameters(), strict=True))
        assert torch.equal(copied(images), expected)
        set_harmonic(copied, True)
        torch.testing.assert_close(copied(images), expected, rtol=1e-4, atol=1e-5)


def pickle_again(rank: int, folder: str) -> None:
    """Load networks in a process that has made none, compute them, and pickle them again; one dense, one harmonic."""
    fasts = pickle.loads(Path(folder, f"{rank}.pickle").read_bytes())
    Path(folder, f"{rank} again.pickle").write_bytes(pickle.dumps(fasts))
    torch.save([fast(make_images()) for fast in fasts], f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_a_pickle_that_another_process_loads_and_pickles_again_is_the_same_network(tmp_path: Path) -> None:
    fasts_by_rank = [[make_fast(name, bool(rank)) for name in NETWORKS] for rank in range(2)]
    for rank, fasts in enumerate(fasts_by_rank):
        (tmp_path / f"{rank}.pickle").write_bytes(pickle.dumps(fasts))
    run_two(pickle_again, str(tmp_path))
    for rank, fasts in enumerate(fasts_by_rank):
        expected = [fast(make_images()) for fast in fasts]
        again = pickle.loads((tmp_path / f"{rank} again.pickle").read_bytes())
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close([fast(make_images()) for fast in again], expected, rtol=1e-5, atol=1e-6)


@each_network
def test_a_network_of_e2cnn_can_be_pickled_too(name: str) -> None:
    network = NETWORKS[name]()
    assert_equal_function(network, accelerate(pickle.loads(pickle.dumps(network))), make_images())


@each_network
def test_it_moves_to_another_type(name: str) -> None:
    fast, images = make_fast(name), make_images()
    expected = fast(images)
    torch.testing.assert_close(fast.double()(images.double()).float(), expected, rtol=1e-4, atol=1e-5)
    assert all(buffer.dtype != torch.float32 for buffer in fast.buffers() if buffer.is_floating_point())
    torch.testing.assert_close(fast.float()(images), expected)
    assert {parameter.device.type for parameter in fast.to("meta").parameters()} == {"meta"}


@each_network
def test_autocast_computes_in_bfloat16(name: str) -> None:
    fast, images = make_fast(name, True, is_training=True), make_images()
    expected = copy.deepcopy(fast)(images)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fast(images)
    actual.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in fast.parameters() if p.grad is not None)
    assert 1e-5 < float((actual.float() - expected).detach().norm() / expected.detach().norm()) < 0.05


@each_network
def test_a_penalty_of_gradients_has_the_gradient_of_e2cnn(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    fast = accelerate(copy_network(network))
    set_harmonic(fast, True)
    gradients = []
    for model in (network, fast):
        images = make_images().requires_grad_()
        y = call(model, images)
        (gradient,) = torch.autograd.grad(y.square().sum(), images, create_graph=True)
        gradient.square().sum().backward()
        grads = [p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None]
        gradients.append(torch.cat(grads))
    expected, actual = gradients
    assert float((actual - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@pytest.mark.parametrize("harmonic", [False, True])
@each_network
def test_it_compiles_to_one_graph(name: str, harmonic: bool) -> None:
    fast, images = make_fast(name, harmonic, is_training=True), make_images()
    compiled = torch.compile(copy.deepcopy(fast), fullgraph=True, backend="aot_eager")
    for network in (fast, compiled):
        network(images).square().sum().backward()
    torch.testing.assert_close(compiled(images), fast(images), rtol=1e-4, atol=1e-5)
    gradients = [[p.grad for p in network.parameters()] for network in (fast, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@each_network
def test_it_is_exported(name: str) -> None:
    fast, images = make_fast(name, True), make_images()
    expected = fast(images)
    with torch.no_grad():
        program = torch.export.export(fast, (images,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter
@each_network
def test_it_becomes_an_onnx_file(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    fast, images, path = make_fast(name, True), make_images(), tmp_path / "network.onnx"
    torch.onnx.export(fast, (images,), path, dynamo=True, verbose=False)
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"x": images.numpy()})
    np.testing.assert_allclose(actual, fast(images).detach().numpy(), rtol=1e-4, atol=1e-5)


@each_network
def test_ddp_trains_it(name: str, tmp_path: Path) -> None:
    fast, images = make_fast(name, True, is_training=True), make_images()
    copied = copy.deepcopy(fast)
    with join_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1):
        actual = compute_gradients(DistributedDataParallel(copied), images)
    torch.testing.assert_close(actual, compute_gradients(fast, images))


def compute_gradients(network: nn.Module, images: Tensor) -> list[Tensor | None]:
    network(images).square().flatten(1).sum(1).mean().backward()
    return [parameter.grad for parameter in network.parameters()]


def compute_halves(rank: int, folder: str) -> None:
    """Compute the gradients of every second image, in one of two processes."""
    with join_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2):
        for name in NETWORKS:
            gradients = compute_gradients(DistributedDataParallel(make_fast(name, True)), make_images(4)[rank::2])
            torch.save(gradients, f"{folder}/{name} {rank}.pt")
        dist.barrier()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    run_two(compute_halves, str(tmp_path))
    for name in NETWORKS:
        expected = compute_gradients(make_fast(name, True), make_images(4))
        for rank in range(2):
            actual = torch.load(tmp_path / f"{name} {rank}.pt")
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@each_network
def test_the_report_names_every_layer_and_its_gain(name: str) -> None:
    network = NETWORKS[name]()
    fast = accelerate(network)
    set_harmonic(fast, False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    text = report(fast, network, make_images())
    layers = {name for name, module in network.named_modules() if hasattr(module, "in_type")}
    assert {line.split()[0] for line in text.splitlines()[1:]} >= {layer for layer in layers if layer}
    assert "R2Conv" in text and "FastConv, dense" in text
    assert text.splitlines()[2].split()[-1].replace(".", "").isdigit()
    after = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in after.items())
