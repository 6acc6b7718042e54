"""An export computes the logits of the run's own network, without e2cnn and this package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.evaluation.trained_model import load
from galaxyhpc.export import FORMATS, LogitsMismatchError, convert_to_torch, export, export_program, main, make_examples
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import GroupPooling, Restriction, SteerableConv
from galaxyhpc.storage.files import sha256, write_text
from galaxyhpc.storage.run_dir import RunDir

SIZE = 33  # px


@cache
def galaxies() -> Tensor:
    return make_examples(SIZE)


def network(config: ModelConfig) -> nn.Module:
    """A network whose batch norms have seen galaxies, and have no two fields alike."""
    torch.manual_seed(0)
    model = build_model(config, SIZE)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, FieldBatchNorm):
                layer.weight.normal_(1.0, 0.2)
                layer.bias.normal_(0.0, 0.2)
                layer.momentum = 1.0
        model.train()(galaxies())
    return model.eval()


def make_run(folder: Path, config: ModelConfig) -> RunDir:
    settings = RunConfig(data=DataConfig(image_size=SIZE), model=config)
    run = RunDir(folder / settings.run_id)
    write_text(run.config_file, settings.model_dump_json())
    torch.save({"model": network(config).state_dict()}, run.best_file)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("sweep"), ModelConfig(group="D4", scale=0.1))


@pytest.fixture(scope="module")
def exported(run: RunDir) -> Path:
    """All files of a run, written by the command."""
    out = run.sweep_dir / "portable"
    assert main([str(run.path), str(out)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.compiler
def test_what_is_exported_of_a_run_without_dense_filters_has_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, ModelConfig(group="D8", scale=0.1))
    choice = dict.fromkeys(selection.get_steerable_layers(network(ModelConfig(group="D8", scale=0.1))), True)
    write_text(kernel_choice.get_choice_path(run), json.dumps({"training": choice, "inference": choice}))
    classifier = load(run.path, torch.device("cpu"))
    assert all(layer.harmonic for layer in selection.get_steerable_layers(classifier.network).values())
    differences = export(classifier, tmp_path / "portable", ["export", "torchscript"])
    assert max(differences.values()) > 0  # other sums, the same function
    assert "galaxyhpc" not in str(torch.export.load(tmp_path / "portable" / "model.pt2").graph)


ELSEWHERE = """
import sys, warnings
sys.modules["galaxyhpc"] = sys.modules["e2cnn"] = None  # importing them raises
warnings.simplefilter("ignore")
import numpy as np, onnxruntime, torch
images = torch.from_numpy(np.load("images.npy"))
with torch.inference_mode():
    np.save("model.pt2.npy", torch.export.load("model.pt2").module()(images))
    np.save("model.torchscript.pt.npy", torch.jit.load("model.torchscript.pt")(images))
session = onnxruntime.InferenceSession("model.onnx")
np.save("model.onnx.npy", session.run(["logits"], {"images": images.numpy()})[0])
"""


def test_a_program_without_this_package_and_e2cnn_gets_the_same_logits(
    exported: Path, run: RunDir, tmp_path: Path
) -> None:
    directory, network = shutil.copytree(exported, tmp_path / "copied"), load(run.path, torch.device("cpu")).network
    np.save(directory / "images.npy", galaxies().numpy())
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=directory, check=True)
    with torch.inference_mode():
        expected = network(galaxies()).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # different galaxies, different logits
    for file_format in FORMATS.values():
        np.testing.assert_allclose(np.load(directory / f"{file_format.filename}.npy"), expected, rtol=0, atol=1e-5)


def test_what_goes_in_and_comes_out_is_written_beside_the_files(exported: Path, run: RunDir) -> None:
    description = json.loads((exported / "model.json").read_text())
    assert set(description["files"]) == {file_format.filename for file_format in FORMATS.values()}
    assert {path.name for path in exported.iterdir()} == {*description["files"], "model.json"}
    for name, file in description["files"].items():
        assert file["sha256"] == sha256(exported / name) and file["largest_difference"] <= 1e-5
    assert description["input"].endswith("; 67.1 arcsec of sky")
    assert list(description["classes"].values()) == list(GALAXY10_CLASSES) and description["image_size"] == SIZE
    assert description["weights"] == sha256(run.best_file) and description["run_id"] == run.run_id
    assert description["generated"] and "GENERATED" in description["trained_on"] and description["temperature"] is None
    assert (description["architecture"], description["group"]) == ("steerable_cnn", "D4")
    assert (
        f"(N, 3, {SIZE}, {SIZE}) float32" in description["input"]
        and description["versions"]["torch"] == torch.__version__
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"group": "D8", "scale": 0.1, "head": "flatten"},
        {"architecture": "cnn", "scale": 0.1},
        {"architecture": "resnet18"},
        {"architecture": "squeezenet1_1"},
        {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 2},
        {"architecture": "e2wrn", "group": "D4", "depth": 10, "widen": 1, "restriction": ("D4", "D1")},
    ],
    ids=lambda settings: f"{settings.get('architecture', 'steerable_cnn')}-{settings.get('group')}",
)
def test_every_architecture_becomes_plain_torch(settings: dict[str, Any]) -> None:
    original = network(ModelConfig(**settings))
    before = {name: value.clone() for name, value in original.state_dict().items()}
    converted, images = convert_to_torch(original), galaxies()
    assert not [layer for layer in converted.modules() if isinstance(layer, SteerableConv | FieldBatchNorm)]
    with torch.inference_mode():
        torch.testing.assert_close(converted(images), original(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())


def test_layers_without_the_size_of_a_batch_replace_those_that_would_keep_it_in_the_graph() -> None:
    group_pooling, restriction = nn.Sequential(GroupPooling(8)), nn.Sequential(Restriction("D4", "D1"))
    for layer in (group_pooling, restriction):
        program = export_program(convert_to_torch(layer), torch.rand(2, 16, 5, 5)).module()
        for count in (1, 3):
            images = torch.rand(count, 16, 5, 5)
            assert torch.equal(program(images), layer(images))


def test_files_that_compute_something_else_are_not_kept(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchscript = FORMATS["torchscript"]
    altered = torchscript._replace(read=lambda path: lambda images: 1.001 * torchscript.read(path)(images))
    monkeypatch.setitem(FORMATS, "torchscript", altered)
    with pytest.raises(LogitsMismatchError, match=r"model\.torchscript\.pt: got logits"):
        export(load(run.path, torch.device("cpu")), tmp_path / "out", ["torchscript"])
    assert list(tmp_path.iterdir()) == []


def test_weights_too_many_for_one_onnx_file_lie_beside_it(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galaxyhpc.export.MAX_ONNX_BYTES", 1000)
    assert main([str(run.path), str(tmp_path / "out"), "--formats", "onnx"]) == 0
    files = json.loads((tmp_path / "out" / "model.json").read_text())["files"]
    assert set(files) == {"model.onnx", "model.onnx.data"} and files["model.onnx"]["largest_difference"] <= 1e-5


def test_without_onnx_nothing_is_written_but_the_command_that_installs_it(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # importing it raises
    assert main([str(run.path), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert (
        message.count("\n") == 1 and "pip install onnxscript, " in message and "--formats export torchscript" in message
    )
    assert list(tmp_path.iterdir()) == []


def test_formats_are_chosen_and_nothing_is_written_over(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one will do
    assert main([str(run.path), str(out), "--formats", "torchscript"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.torchscript.pt"]
    before = sha256(out / "model.torchscript.pt")
    assert main([str(run.path), str(out), "--formats", "torchscript"]) == 2
    assert "already exists; expected a new name, or --overwrite" in capsys.readouterr().err
    assert sha256(out / "model.torchscript.pt") == before
    (out / "mine.txt").write_text("dear")
    assert main([str(run.path), str(out), "--formats", "torchscript", "--overwrite"]) == 2
    assert "got mine.txt; expected only files of an earlier export" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    (out / "model.pt2").touch()
    assert main([str(run.path), str(out), "--formats", "torchscript", "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.torchscript.pt"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_that_is_not_trained_is_refused(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained = RunDir(tmp_path / run.run_id)
    write_text(untrained.config_file, run.config_file.read_text())
    for path, message in ((untrained.path, "training is not finished"), (tmp_path, "got no config.json")):
        assert main([str(path), str(tmp_path / "out"), "--formats", "torchscript"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
