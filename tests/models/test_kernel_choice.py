"""A run keeps the kernel choice that it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from galaxyhpc.config.schema import ModelConfig, ResourcesConfig, RunConfig, TrainConfig
from galaxyhpc.evaluation.evaluate import load_network
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.rank import get_rank_info
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

CPU = torch.device("cpu")


@pytest.fixture
def process() -> Process:
    return Process(get_rank_info(), CPU)


def choose_layers(run: RunDir, process: Process, convolution: str) -> list[bool]:
    """Choose the kernels of a small network; return for each layer whether it trains without a dense filter."""
    network, config = build_model(ModelConfig(group="D4", scale=0.1), 33), settings(convolution)
    kernel_choice.select_and_save(run, network, config, process)
    return [layer.harmonic for layer in selection.get_steerable_layers(network).values()]


def settings(convolution: str) -> RunConfig:
    resources = ResourcesConfig(convolution=convolution)
    return RunConfig(model=ModelConfig(group="D4", scale=0.1), resources=resources)


@pytest.mark.compiler
def test_what_was_settled_first_holds(tmp_path: Path, process: Process) -> None:
    run = RunDir(tmp_path)
    assert set(choose_layers(run, process, "harmonic")) == {True}
    assert set(choose_layers(run, process, "dense")) == {True}


@pytest.mark.compiler
def test_the_choice_is_made_for_training_and_for_inference(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(selection.get_steerable_layers(build_model(ModelConfig(group="D4", scale=0.1), 33)))
    monkeypatch.setattr(
        selection,
        "choose_kernels",
        lambda *arguments, is_training: {name: is_training and name == names[3] for name in names},
    )
    run = RunDir(tmp_path)
    assert choose_layers(run, process, "auto") == [name == names[3] for name in names]
    assert set(kernel_choice.read_choice(run)["inference"].values()) == {False}


@pytest.mark.compiler
def test_convolutions_in_one_kernel_are_harmonic_ones_and_kept(tmp_path: Path, process: Process) -> None:
    run, config = RunDir(tmp_path), settings("fused")
    for convolution in ("fused", "dense"):
        assert set(choose_layers(run, process, convolution)) == {True}
    network = build_model(config.model, 33)
    kernel_choice.load_selection(run, network, CPU)
    assert all(layer.harmonic and layer.is_fused for layer in selection.get_steerable_layers(network).values())


def test_a_run_with_checkpoints_and_no_file_is_dense(tmp_path: Path, process: Process) -> None:
    run = RunDir(tmp_path)
    (run.checkpoint_dir / "step_00000003").mkdir(parents=True)
    assert set(choose_layers(run, process, "harmonic")) == {False}
    assert not kernel_choice.get_choice_path(run).exists()


@pytest.mark.compiler
def test_weights_are_evaluated_as_the_run_says(tmp_path: Path, process: Process) -> None:
    config = settings("harmonic")
    network, images = build_model(config.model, 65).eval(), torch.rand(2, 3, 65, 65)
    run = RunDir(tmp_path)
    torch.save({"model": network.state_dict()}, run.best_file)
    dense = load_network(run, config, CPU)
    kernel_choice.select_and_save(run, network, config, process)
    harmonic = load_network(run, config, CPU)
    assert [layer.harmonic for layer in selection.get_steerable_layers(harmonic).values()] == [True] * 11
    with torch.inference_mode():
        torch.testing.assert_close(harmonic(images), dense(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "invalid JSON"),
        ("[1]", "values other than true, false or fused"),
        ('{"training": {}}', "values other than true, false or fused"),
        ('{"training": {"a": 1}, "inference": {}}', "values other than true, false or fused"),
        ('{"training": {}, "inference": {"a": true}}', "layers that differ from the network's"),
        (" " * 2_000_000, "a directory or a large file"),
    ],
)
def test_a_file_that_training_did_not_write_is_refused(tmp_path: Path, content: str, message: str) -> None:
    run = RunDir(tmp_path)
    write_text(kernel_choice.get_choice_path(run), content)
    with pytest.raises(kernel_choice.KernelChoiceError, match=f"paths.json: got {message}"):
        kernel_choice.load_selection(run, build_model(ModelConfig(group="D4", scale=0.1), 33), CPU)


def test_a_network_without_steerable_layers_leaves_no_file(tmp_path: Path, process: Process) -> None:
    run = RunDir(tmp_path)
    kernel_choice.select_and_save(
        run, build_model(ModelConfig(architecture="cnn", scale=0.1), 33), settings("auto"), process
    )
    assert not kernel_choice.get_choice_path(run).exists()


def test_the_file_names_every_layer(tmp_path: Path, process: Process) -> None:
    run = RunDir(tmp_path)
    choose_layers(run, process, "dense")
    choice = json.loads(kernel_choice.get_choice_path(run).read_text())
    assert list(choice) == ["training", "inference"] and len(choice["training"]) == 11


@pytest.mark.parametrize(("precision", "is_tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_products_are_tf32_only_in_a_training_that_asks_for_it(
    precision: str, is_tf32: bool, tmp_path: Path, process: Process
) -> None:
    config = settings("dense").model_copy(update={"train": TrainConfig(precision=precision)})
    run, network = RunDir(tmp_path), build_model(config.model, 33)
    torch.save({"model": network.state_dict()}, run.best_file)
    for is_allowed, prepare in (
        (is_tf32, lambda: kernel_choice.select_and_save(run, network, config, process)),
        (False, lambda: load_network(run, config, CPU)),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not is_allowed
        prepare()
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == is_allowed


def test_inference_is_chosen_in_full_float32(tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_with: list[bool] = []

    def choose(network: torch.nn.Module, *arguments: object, is_training: bool) -> selection.KernelChoice:
        chosen_with.append(torch.backends.cuda.matmul.allow_tf32)
        return dict.fromkeys(selection.get_steerable_layers(network), not is_training)

    monkeypatch.setattr(selection, "choose_kernels", choose)
    config = settings("auto").model_copy(update={"train": TrainConfig(precision="tf32")})
    network = build_model(config.model, 33)
    kernel_choice.select_and_save(RunDir(tmp_path), network, config, process)
    assert chosen_with == [True, False] and torch.backends.cudnn.allow_tf32
    assert kernel_choice.describe_kernels(network) == "0 of 11 layers harmonic"
    layers = list(selection.get_steerable_layers(network).values())
    for layer, is_fused in zip(layers[:5], (True, True, False, False, False), strict=True):
        layer.harmonic, layer.is_fused = True, is_fused
    assert kernel_choice.describe_kernels(network) == "3 of 11 layers harmonic, 2 fused"
