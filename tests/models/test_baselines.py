"""torchvision's networks: weights, sizes, messages where either is missing, and fine-tuning."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from galaxyhpc.config.schema import BASELINES, DataConfig, DemoConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.evaluation.evaluate import load_network
from galaxyhpc.inspect.gradcam import compute_heat_maps
from galaxyhpc.launch import __main__ as launch
from galaxyhpc.models import baselines, profile
from galaxyhpc.models.activations import compute_activations, find_probed_layers
from galaxyhpc.models.baselines import Baseline, BaselineError, build_baseline, format_install_command
from galaxyhpc.models.build_model import build_model, count_parameters
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.optimizer import make_optimizer, set_learning_rate
from galaxyhpc.training.trainer import train

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
DOWNLOADS = "https://download.pytorch.org/models"
REAL, WEIGHTS = os.environ.get("GALAXY10_H5", ""), os.environ.get("SQUEEZENET_WEIGHTS", "")
HEAD = {"resnet18": "fc", "densenet121": "classifier", "squeezenet1_1": "classifier"}


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(architecture: str = "resnet18", pretrained: bool | str = False) -> ModelConfig:
    return ModelConfig(architecture=architecture, pretrained=pretrained)


def original(architecture: str = "resnet18") -> nn.Module:
    """Return a network of torchvision's in which no number is one that every such network begins with."""
    network = torchvision.models.get_model(architecture, weights=None)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01 * torch.rand_like(weight))
        network(torch.rand(4, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a ResNet18, in a file whose name says nothing."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(1)
    torch.save(original().state_dict(), path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TORCH_HOME of its own; return where torchvision keeps weights there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch home" / "hub" / "checkpoints"


def published(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let torchvision's weights be those of a file; return the name they are then kept under."""
    name = f"resnet18-{digest(file)[:8]}.pth"
    real = torchvision.models.ResNet18_Weights.DEFAULT
    ours = SimpleNamespace(url=f"{DOWNLOADS}/{name}", transforms=real.transforms)
    weights = type("Weights", (list,), {"DEFAULT": ours})([ours])
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda architecture: weights)
    return name


def assert_begun_from(ours: Baseline, architecture: str, state: dict[str, Tensor]) -> None:
    """Compare with the original, which takes normalised images; the new last layer is lent to it."""
    theirs, images = torchvision.models.get_model(architecture, weights=None), torch.rand(2, 3, 65, 65)
    theirs.load_state_dict(state)
    setattr(theirs, HEAD[architecture], ours.head)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()((images - MEAN) / STD))


# Sizes and statistics


@pytest.mark.parametrize("architecture", BASELINES)
def test_the_parameters_are_those_published_with_ten_classes_in_place_of_a_thousand(architecture: str) -> None:
    with torch.device("meta"):
        ours = build_model(settings(architecture), 65)
        theirs = torchvision.models.get_model(architecture, weights=None, num_classes=10)
    assert count_parameters(ours) == sum(weight.numel() for weight in theirs.parameters())
    imagenet = torchvision.models.get_model_weights(architecture).DEFAULT.meta["num_params"]
    assert count_parameters(ours) == imagenet - 990 * (find_probed_layers(ours).last_linear.in_features + 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())


def test_images_are_normalised_and_batch_statistics_followed_as_torch_does_it_without_pretraining_too() -> None:
    ours, theirs = build_baseline(settings(), 10).train(), torchvision.models.resnet18(num_classes=10)
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs((images - MEAN) / STD))
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])
    assert set(ours.state_dict()) == {f"network.{name}" for name in theirs.state_dict() if "tracked" not in name}


# Weights


def test_a_file_and_a_torch_home_give_the_logits_of_the_original(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(file, weights_only=True)
    assert_begun_from(build_baseline(settings(pretrained=str(file)), 10), "resnet18", state)
    name = published(file, monkeypatch)
    home.mkdir(parents=True)
    (home / name).write_bytes(file.read_bytes())
    ours = build_baseline(settings(pretrained=True), 10)
    assert ours.pretrained == (str(home / name), digest(file), 100, ("fc.weight", "fc.bias"))
    assert_begun_from(ours, "resnet18", state)


def test_densenet_is_read_from_the_format_and_the_names_of_2017(tmp_path: Path) -> None:
    state = original("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()}
    old = {name: value for name, value in old.items() if not name.endswith("num_batches_tracked")}
    assert len(set(old) - set(state)) > 300
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    ours = build_baseline(settings("densenet121", str(tmp_path / "old.pth")), 10)
    assert_begun_from(ours, "densenet121", state)


def test_a_body_may_come_with_another_last_layer_or_none(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    del state["fc.bias"]
    state["fc.weight"] = torch.zeros(34, 512)
    torch.save(state, tmp_path / "other.pth")
    ours = build_baseline(settings(pretrained=str(tmp_path / "other.pth")), 10)
    torch.testing.assert_close(ours.network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert ours.head.weight.shape == (10, 512) and ours.head.weight.abs().max() > 0


def test_the_last_layer_depends_on_the_seed_alone_and_not_on_the_pretraining(file: Path) -> None:
    torch.manual_seed(5)
    pretrained = build_baseline(settings(pretrained=str(file)), 10)
    torch.manual_seed(5)
    assert torch.equal(pretrained.head.weight, build_baseline(settings(), 10).head.weight)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["resnet18-f37072fd.pth", "densenet121-a639ec97.pth"])
def test_where_weights_are_missing_the_download_to_make_is_told(device: str, name: str, home: Path) -> None:
    with pytest.raises(BaselineError) as caught, torch.device(device):
        build_baseline(settings(name.partition("-")[0], True), 10)
    assert str(caught.value).startswith(f"{home / name}: got no pretrained weights (No such file or directory); ")
    assert str(caught.value).endswith(f"curl -fL --create-dirs -o '{home / name}' {DOWNLOADS}/{name}")
    assert not home.exists()


def test_a_missing_file_is_told_with_the_download_that_makes_it() -> None:
    path = Path("/nowhere/resnet50-0676ba61.pth")  # older weights than torchvision would take by itself
    with pytest.raises(
        BaselineError, match=f"{path}: got no pretrained weights.*; .*-o {path} {DOWNLOADS}/{path.name}$"
    ):
        build_baseline(settings("resnet50", str(path)), 10)


def test_a_download_that_was_cut_short_is_refused(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "resnet18-f37072fd.pth").write_bytes(b"half of it")
    with pytest.raises(BaselineError, match=r"got the SHA-256 \w{8}\.\.\.; expected f37072fd.*: curl -fL"):
        build_baseline(settings(pretrained=True), 10)


def test_a_file_of_something_else_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    state, path = torch.load(file, weights_only=True), tmp_path / "other.pth"
    without = {name: value for name, value in state.items() if name != "bn1.weight"}
    wrong = {
        "no state dict": {"epoch": 3, "state_dict": state},
        r"shape \(1, 1\); expected shape \(64, 3, 7, 7\)": {**state, "conv1.weight": torch.zeros(1, 1)},
        r"no such tensor; expected shape \(64,\)": without,
        r"shape \(2,\); expected no such tensor": {**state, "extra": torch.zeros(2)},
        "no weights": SimpleNamespace(state=state),
    }
    names = ["", "conv1.weight: ", "bn1.weight: ", "extra: ", ""]
    for name, (message, content) in zip(names, wrong.items(), strict=True):
        torch.save(content, path)
        with pytest.raises(BaselineError, match=f"^{path}: {name}got {message}.*[;:] .*a state dict") as caught:
            build_baseline(settings(pretrained=str(path)), 10)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*TorchScript")
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"conv1.weight": Touch()}, tmp_path / "pickle.pth")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    for name in ("pickle.pth", "script.pth"):
        with pytest.raises(BaselineError, match=rf"^\S+{name}: got no weights \(.*; expected a state dict") as caught:
            build_baseline(settings(pretrained=str(tmp_path / name)), 10)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "harm").exists()


def test_squeezenet_is_read_with_its_last_layer_without_it_and_without_the_names_of_its_parts(tmp_path: Path) -> None:
    state = original("squeezenet1_1").state_dict()
    body = {name: value for name, value in state.items() if name.startswith("features.")}
    bare = {name.removeprefix("features."): value for name, value in body.items()}
    for number, content in enumerate((state, body, bare)):
        torch.save(content, tmp_path / f"{number}.pth")
        ours = build_baseline(settings("squeezenet1_1", str(tmp_path / f"{number}.pth")), 10)
        assert ours.pretrained is not None and ours.pretrained.num_tensors == 50
        assert_begun_from(ours, "squeezenet1_1", state)


def test_without_the_relu_before_its_average_squeezenets_last_layer_computes_what_torchvisions_does() -> None:
    ours, theirs = build_baseline(settings("squeezenet1_1"), 10).eval(), original("squeezenet1_1")
    theirs.classifier[1] = nn.Conv2d(512, 10, 1)
    theirs.classifier[2] = nn.Identity()
    state = {name.replace("classifier.3", "classifier.1"): value for name, value in ours.network.state_dict().items()}
    theirs.load_state_dict({name: value.view_as(theirs.state_dict()[name]) for name, value in state.items()})
    images = torch.rand(2, 3, 65, 65)
    torch.testing.assert_close(ours(images), theirs((images - MEAN) / STD))


def test_on_the_meta_device_the_file_is_looked_for_and_nothing_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", None)
    with torch.device("meta"):
        ours = build_baseline(settings(pretrained=str(file)), 10)
    assert all(value.is_meta for value in (*ours.parameters(), *ours.buffers()))
    assert profile.profile_network(settings(pretrained=str(file)), 33).parameters == count_parameters(ours)


def test_a_sweep_whose_weights_are_missing_is_refused_before_anything_is_written(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "fine_tuning.yaml"
    sweep.write_text("blocks: [{points: [{model.preset: ResNet18, train.body_learning_rate: 1.0e-4}]}]\n")
    assert launch.main([str(sweep), "--executor", "local", "--runs", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert f"{DOWNLOADS}/resnet18-f37072fd.pth" in message and str(home) in message
    assert not (tmp_path / "runs").exists()


# torchvision itself


def test_a_torchvision_that_does_not_fit_concerns_those_alone_who_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms is not')")
    code = """
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.profile import profile_network
print(profile_network(ModelConfig(architecture="cnn", scale=0.1), 33).parameters > 0)
for _ in range(2):
    try:
        profile_network(ModelConfig(architecture="resnet18"), 33)
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cnn_line, *messages = process.stdout.splitlines()
    assert cnn_line == "True" and len(messages) == 2
    for line in messages:
        assert f"torch {torch.__version__}: got torchvision {version('torchvision')}" in line
        assert "(RuntimeError: operator torchvision::nms is not)" in line
        assert "; expected the build for this torch, which torchvision models need: pip install" in line


def test_without_torchvision_the_message_is_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(baselines, "_get_torchvision_version", lambda: None)
    with pytest.raises(BaselineError, match=r"^torch 2\S+: got no torchvision; .*: pip install"):
        build_baseline(settings(), 10)


def test_the_torchvision_that_fits_is_installed_from_where_this_build_of_torch_comes_from() -> None:
    pip = "pip install --force-reinstall --no-deps"
    assert format_install_command("2.4.1") == f"{pip} 'torchvision==0.19.*'"
    assert format_install_command("2.13.0+cu130").endswith(
        "==0.28.*' --index-url https://download.pytorch.org/whl/cu130"
    )
    torch_version, torchvision_version = (package.__version__.split("+")[0] for package in (torch, torchvision))
    assert f"'torchvision=={torchvision_version.rpartition('.')[0]}.*'" in format_install_command(torch_version)


# Fine-tuning


def test_the_body_moves_at_its_own_rate_and_by_itself_at_a_tenth(file: Path) -> None:
    for rate, share in ((None, 0.1), (0.004, 0.4), (0.0, 0.0)):
        config = TrainConfig(optimizer="sgd", learning_rate=0.01, body_learning_rate=rate, momentum=0, weight_decay=0)
        network = build_baseline(settings(pretrained=str(file)), 10)
        optimizer = make_optimizer(nn.Sequential(network), config)  # wrapped, as DDP wraps it
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        network(torch.rand(4, 3, 33, 33)).square().sum().backward()
        set_learning_rate(optimizer, 0.02)  # where the schedule is
        optimizer.step()
        for name, value in network.named_parameters():
            change = 0.02 * (1 if ".fc." in name else share) * value.grad
            torch.testing.assert_close(before[name] - change, value.detach(), msg=name)


def test_networks_begun_at_random_have_one_group_and_the_same_optimizer_as_ever() -> None:
    network = build_baseline(settings(), 10)
    optimizer = make_optimizer(network, TrainConfig())
    (group,) = optimizer.param_groups
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in network.parameters()]
    plain = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    assert optimizer.state_dict() == plain.state_dict()


def test_a_rate_for_the_body_is_refused_where_nothing_is_pretrained() -> None:
    own_rate = TrainConfig(body_learning_rate=1e-4)
    with pytest.raises(ValidationError, match="body_learning_rate is for pretrained networks; resnet18"):
        RunConfig(model=settings(), train=own_rate)
    plain, slow = RunConfig(model=settings(pretrained=True)), RunConfig(model=settings(pretrained=True), train=own_rate)
    assert plain.get_identity()["train"]["body_learning_rate"] is None
    assert slow.get_identity()["train"]["body_learning_rate"] == 1e-4 and slow.run_id != plain.run_id


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_a_frozen_body_keeps_every_bit_also_of_its_statistics_and_its_last_layer_learns(architecture: str) -> None:
    network, images = build_baseline(settings(architecture), 10), torch.rand(8, 3, 33, 33)
    network.freeze_body()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    first = network.train()(images)
    torch.nn.functional.cross_entropy(first, torch.arange(8)).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"network.{HEAD[architecture]}.{name}" for name, _ in network.head.named_parameters()}
    if architecture == "squeezenet1_1":
        assert not torch.equal(network(images), network(images))  # the dropout of the last layer is of its training
        assert torch.equal(network.eval()(images), network(images))


def make_run(sweep: Path, file: Path, **changes: float) -> RunDir:
    """Write the directory of a run of two steps, the first of which warms up."""
    config = RunConfig(
        data=DataConfig(cache=str(file.parent), image_size=33, demo=DemoConfig(galaxies=100, size=32)),
        model=settings(pretrained=str(file)),
        train=TrainConfig(epochs=1, batch_size=30, schedule="cosine", warmup=0.5, weight_decay=0.0, **changes),
    )
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    return run


def last_state(run: RunDir) -> dict[str, dict[str, Tensor]]:
    return torch.load(checkpoint.list_checkpoints(run)[-1] / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def tuned(file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("tuned"), file)
    assert train(run, StopSignal())
    return run


@pytest.mark.slow
def test_a_fine_tuned_run_resumes_to_the_same_bits_each_part_at_its_own_rate(
    tuned: RunDir, file: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path, file)
    assert not train(run, StopSignal(), max_steps=1)
    initial, state, warming = torch.load(file, weights_only=True), last_state(run), 1e-3 / 2
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == pytest.approx([warming / 10, warming])
    change = (state["model"]["network.conv1.weight"] - initial["conv1.weight"]).abs().max().item()
    assert change == pytest.approx(warming / 10, rel=1e-2)  # Adam's first step is the rate itself
    assert train(run, StopSignal())
    ours, expected = last_state(run), last_state(tuned)
    assert all(torch.equal(ours["model"][name], value) for name, value in expected["model"].items())
    assert ours["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    for number, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][number][name], value) for name, value in moments.items())
    assert tuned.metrics_file.read_text() == run.metrics_file.read_text()


@pytest.mark.slow
def test_a_finished_run_knows_the_weights_it_began_from_and_needs_them_no_more(tuned: RunDir, file: Path) -> None:
    config = tuned.load_config()
    moved = config.model_copy(update={"model": settings(pretrained="/nowhere.pth")})
    assert moved.run_id == config.run_id
    assert json.loads((tuned.path / "provenance.json").read_text())["pretrained"]["sha256"] == digest(file)
    network = load_network(tuned, moved, torch.device("cpu"))
    best = torch.load(tuned.best_file, weights_only=True)["model"]
    assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_run_with_a_rate_of_zero_keeps_its_body_and_tells_where_it_comes_from(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, file, body_learning_rate=0.0)
    assert not train(run, StopSignal(), max_steps=1)
    assert train(run, StopSignal())  # after a resume, too
    best, initial = torch.load(run.best_file, weights_only=True)["model"], torch.load(file, weights_only=True)
    body = {name.removeprefix("network."): value for name, value in best.items() if ".fc." not in name}
    assert len(body) == 100 and all(torch.equal(value, initial[name]) for name, value in body.items())
    line = f"initial weights: 100 tensors of {file} (SHA-256 {digest(file)}), fc.weight, fc.bias at random"
    assert capsys.readouterr().out.splitlines().count(line) == 1


@pytest.mark.slow
@pytest.mark.skipif(not (REAL and WEIGHTS), reason="GALAXY10_H5 and SQUEEZENET_WEIGHTS do not name real files")
def test_features_from_imagenet_tell_real_galaxies_apart_better_than_random_ones(tmp_path: Path) -> None:
    """A linear layer on frozen features, by galaxies that it was not trained on, in five folds."""
    galaxies, _ = open_dataset(DataConfig(source=REAL, cache=str(tmp_path), image_size=129), tmp_path / "runs")
    images, accuracies = torch.tensor(galaxies.images) / 255, []
    for pretrained in (WEIGHTS, False):
        network = build_baseline(settings("squeezenet1_1", pretrained), 10).eval()
        with torch.inference_mode():
            batches = [compute_activations(network, batch).penultimate for batch in images.split(64)]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        accuracies.append(cross_val_score(probe, torch.cat(batches).numpy(), galaxies.labels, cv=folds).mean())
    assert accuracies[0] > accuracies[1] + 0.06 and accuracies[0] > 0.34  # 0.39 and 0.28


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "squeezenet1_1"])
def test_their_features_and_last_map_are_found(architecture: str) -> None:
    """An average and one linear layer: the heat of a class is the linear layer's weights times the map."""
    ours, images, classes = (
        build_baseline(settings(architecture), 10).eval(),
        torch.rand(2, 3, 65, 65),
        torch.tensor([1, 7]),
    )
    feature_maps: list[Tensor] = []
    with torch.no_grad():
        activations = compute_activations(ours, images)
        layers = find_probed_layers(ours)
        torch.testing.assert_close(layers.last_linear(activations.penultimate), ours(images))
        layers.last_map.register_forward_hook(lambda layer, inputs, output: feature_maps.append(output.relu()))
        ours(images)
    torch.testing.assert_close(feature_maps[0].mean((2, 3)), activations.pooled)
    expected = (
        torch.einsum("nk,nkyx->nyx", layers.last_linear.weight[classes], feature_maps[0]).relu()
        / feature_maps[0][0, 0].numel()
    )
    torch.testing.assert_close(compute_heat_maps(ours, images, classes), expected, atol=1e-6, rtol=1e-4)
