"""torchvision's networks, initialised from ImageNet or at random.

The weights are torchvision's own (`get_model_weights(NAME).DEFAULT`), or those of a file. Nothing is downloaded here: a
compute node may have no internet, and all jobs of a sweep would download at the same time. The error for missing
weights holds the download command. torchvision is imported only here, and only when one of these networks is built.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable.batch_norm import FieldBatchNorm


class BaselineError(ValueError):
    """torchvision or the pretrained weights cannot be used."""


class Pretrained(NamedTuple):
    """Where the initial weights of a pretrained network come from."""

    file: str
    sha256: str  # of the file
    num_tensors: int  # taken from the file: those of all layers but the last
    random: tuple[str, ...]  # the names of the last layer's

    def __str__(self) -> str:
        return f"{self.num_tensors} tensors of {self.file} (SHA-256 {self.sha256}), {', '.join(self.random)} at random"


class Baseline(nn.Module):
    """A network of torchvision after the normalisation that its weights were trained with.

    A network with random weights gets the same normalisation: it differs from the pretrained one in the weights alone.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], pretrained: Pretrained | None) -> None:
        super().__init__()
        self.front: nn.Module = nn.Identity()
        self.network = network
        self.pretrained = pretrained  # None for random weights
        self.is_body_frozen = False
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, classes)."""
        logits: Tensor = self.network((self.front(x) - self.mean) / self.std)
        return logits

    @property
    def head(self) -> nn.Module:
        """The last layer, whose initial weights are always random, with the dropout and average before it if any."""
        return self.network.get_submodule(_get_head_name(self.network))

    def freeze_body(self) -> None:
        """Keep weights and batch statistics of all layers but the last, also in training, where they act as in use."""
        self.is_body_frozen = True
        self.network.requires_grad_(False)
        self.head.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Baseline:
        super().train(mode)
        if self.is_body_frozen:
            self.network.eval()
            self.head.train(mode)
        return self


def build_baseline(config: ModelConfig, num_classes: int) -> Baseline:
    """Build a network of torchvision; on the meta device its weights must exist but are not loaded.

    Raises
    ------
    BaselineError
    """
    models = _import_torchvision_models()
    weights = models.get_model_weights(config.architecture)
    weights_path = _get_weights_path(config.pretrained, weights) if config.pretrained else None
    pretrained_sha256 = None if weights_path is None else _verify_sha256(weights_path, weights)
    network = models.get_model(config.architecture, weights=None, num_classes=num_classes)
    if config.architecture == "squeezenet1_1":
        _replace_squeezenet_head(network)
    if weights_path is not None and torch.get_default_device().type != "meta":
        _load_weights(network, weights_path, config.architecture)
    _replace_batchnorm(network)
    pretrained = None
    if weights_path is not None and pretrained_sha256 is not None:
        body, head = _split_weights(network.state_dict(), _get_head_name(network))
        pretrained = Pretrained(str(weights_path), pretrained_sha256, len(body), tuple(head))
    normalisation = weights.DEFAULT.transforms()
    return Baseline(network, normalisation.mean, normalisation.std, pretrained)


def _import_torchvision_models() -> Any:
    try:
        import torchvision.models
    except Exception as error:  # incompatible builds raise anything, and something else the second time
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("; ", ", ")
        torch_version, torchvision_version = torch.__version__, _get_torchvision_version()
        state = f"torchvision {torchvision_version}, which cannot be imported ({message})"
        got = f"torch {torch_version}: got {state if torchvision_version else 'no torchvision'}"
        expected = "expected the build for this torch, which torchvision models need"
        raise BaselineError(f"{got}; {expected}: {format_install_command(torch_version)}") from error
    return torchvision.models


def _get_torchvision_version() -> str | None:
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return None


def format_install_command(torch_version: str) -> str:
    """Return the command that installs the torchvision for a torch such as 2.13.0+cpu: 0.19 for 2.4, 0.20 for 2.5.

    A build for other hardware has the same version, so that pip must be forced.
    """
    release, _, build = torch_version.partition("+")
    requirement = f"torchvision==0.{int(release.split('.')[1]) + 15}.*"
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall --no-deps '{requirement}'{index}"


def _get_weights_path(pretrained: str | bool, weights: Any) -> Path:
    """Return the file of the weights, which may be missing."""
    if isinstance(pretrained, str):
        return Path(pretrained).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints" / _get_weights_filename(weights.DEFAULT)


def _verify_sha256(file: Path, weights: Any) -> str:
    """Return the SHA-256 of a file; a file with a name of torchvision's must have the hash in its name."""
    published = {_get_weights_filename(entry): entry for entry in weights}
    command = f"curl -fL --create-dirs -o {shlex.quote(str(file))} {published.get(file.name, weights.DEFAULT).url}"
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        advice = f"jobs download nothing, run this where there is internet: {command}"
        raise BaselineError(f"{file}: got no pretrained weights ({error.strerror}); {advice}") from error
    expected = file.stem.rpartition("-")[2]
    if file.name in published and not digest.startswith(expected):
        got = f"{file}: got the SHA-256 {digest[: len(expected)]}...; expected {expected}..., as in its name"
        raise BaselineError(f"{got}: {command}")
    return digest


def _get_weights_filename(weights: Any) -> str:
    """Return the name that torchvision gives the file of its weights: `resnet18-f37072fd.pth`, a hash in it."""
    return str(weights.url).rpartition("/")[2]


def _load_weights(network: nn.Module, file: Path, architecture: str) -> None:
    """Load the weights of a file into all layers but the last."""
    expected = f"expected a state dict of torchvision's {architecture}, its last layer absent or for any classes"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file may raise anything
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".replace("; ", ", ")
        raise BaselineError(f"{file}: got no weights ({message}); {expected}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BaselineError(f"{file}: got no state dict; {expected}")
    head_name = _get_head_name(network)
    own, _ = _split_weights(network.state_dict(), head_name)
    loaded, _ = _split_weights(_rename_weights(state, own), head_name)
    for name in [*loaded, *own]:
        got, needed = (_describe_shape(weights.get(name)) for weights in (loaded, own))
        if got != needed:
            raise BaselineError(f"{file}: {name}: got {got}; expected {needed}: {expected.removeprefix('expected ')}")
    network.load_state_dict(loaded, strict=False)


def _rename_weights(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of a file as the network does.

    DenseNet's file of 2017 has norm.1 instead of norm1, and files of `features` alone have names without it.
    """
    renamed = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", name): value for name, value in state.items()}
    return {f"features.{name}" if f"features.{name}" in own else name: value for name, value in renamed.items()}


def _split_weights(state: Mapping[str, Tensor], head_name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the body and of the last layer, without counts of batches."""
    weights = {name: value for name, value in state.items() if not name.endswith("_batches_tracked")}
    head = {name: value for name, value in weights.items() if name.startswith(f"{head_name}.")}
    return {name: value for name, value in weights.items() if name not in head}, head


def _describe_shape(weight: Tensor | None) -> str:
    return "no such tensor" if weight is None else f"shape {tuple(weight.shape)}"


def _get_head_name(network: nn.Module) -> str:
    *_, (name, _) = network.named_children()
    return name


def _replace_squeezenet_head(network: nn.Module) -> None:
    """Let the last layer of SqueezeNet take the average of the last map, and return logits of either sign.

    torchvision's is a convolution of 1 px before the average, with a ReLU between them: without the ReLU the same
    function of the same weights. With it the gradient of a class ends where its map is negative everywhere, which
    happens to new random weights on a body that does not move.
    """
    dropout, convolution = network.get_submodule("classifier.0"), network.get_submodule("classifier.1")
    weight = convolution.get_parameter("weight").flatten(1)
    linear = nn.Linear(weight.shape[1], len(weight))
    linear.weight, linear.bias = nn.Parameter(weight.detach()), convolution.get_parameter("bias")
    network.add_module("classifier", nn.Sequential(dropout, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear))


def _replace_batchnorm(network: nn.Module) -> None:
    """Replace torch's batch norms by ours with the same weights and statistics."""
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                field_norm = FieldBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum or 0.1)
                field_norm.weight, field_norm.bias = norm.weight, norm.bias
                field_norm.running_mean, field_norm.running_var = (
                    norm.get_buffer("running_mean"),
                    norm.get_buffer("running_var"),
                )
                setattr(module, name, field_norm)
