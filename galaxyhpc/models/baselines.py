"""torchvision's networks, begun from ImageNet or at random.

The weights are those that torchvision would take itself (`get_model_weights(NAME).DEFAULT`), or a file of them. Nothing
is downloaded here: a compute node may have no internet, and all jobs of a sweep would do it at the same time. What is
said where they are missing holds the command to run where there is. torchvision is imported here alone, and only when
one of these networks is built.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable.batch_norm import FieldBatchNorm


class BaselineError(ValueError):
    """torchvision, or the weights a run begins from, cannot be used."""


class Baseline(nn.Module):
    """A network of torchvision's behind the normalisation that its weights were trained with.

    A network begun at random gets the same one: it differs from its pretrained sibling in the weights alone.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], pretrained_sha256: str | None) -> None:
        super().__init__()
        self.front: nn.Module = nn.Identity()
        self.network = network
        self.pretrained_sha256 = (
            pretrained_sha256  # SHA-256 of the file of its weights; none where they were drawn at random
        )
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, classes)."""
        logits: Tensor = self.network((self.front(x) - self.mean) / self.std)
        return logits

    @property
    def head(self) -> nn.Module:
        """The last layer, which always begins at random."""
        return self.network.get_submodule(_get_head_name(self.network))


def build_baseline(config: ModelConfig, num_classes: int) -> Baseline:
    """Build a network of torchvision's; on the meta device its weights are looked for and not loaded.

    Raises
    ------
    BaselineError
    """
    models = _import_torchvision_models()
    weights = models.get_model_weights(config.architecture)
    file = _get_weights_path(config.pretrained, weights) if config.pretrained else None
    begun_from = None if file is None else _verify_sha256(file, weights)
    network = models.get_model(config.architecture, weights=None, num_classes=num_classes)
    if file is not None and torch.get_default_device().type != "meta":
        _load_weights(network, file, config.architecture)
    _replace_batchnorm(network)
    normalisation = weights.DEFAULT.transforms()
    return Baseline(network, normalisation.mean, normalisation.std, begun_from)


def _import_torchvision_models() -> Any:
    try:
        import torchvision.models
    except Exception as error:  # builds that do not fit each other raise anything, and another thing the second time
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("; ", ", ")
        ours, found = torch.__version__, _get_torchvision_version()
        has = f"torchvision {found}, which cannot be imported ({said})" if found else "no torchvision"
        what = f"beside torch {ours} found {has}; resnet18 and its like need the one made for this torch"
        raise BaselineError(f"{what}: {format_install_command(ours)}") from error
    return torchvision.models


def _get_torchvision_version() -> str | None:
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return None


def format_install_command(torch_version: str) -> str:
    """Return what installs the torchvision for a torch such as 2.13.0+cpu: that of 2.4 is 0.19, of 2.5 0.20.

    A build for other hardware bears the same number, so that pip has to be forced.
    """
    release, _, build = torch_version.partition("+")
    wanted = f"torchvision==0.{int(release.split('.')[1]) + 15}.*"
    where = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall --no-deps '{wanted}'{where}"


def _get_weights_path(pretrained: str | bool, weights: Any) -> Path:
    """Return where the weights are to lie."""
    if isinstance(pretrained, str):
        return Path(pretrained).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints" / _get_weights_filename(weights.DEFAULT)


def _verify_sha256(file: Path, weights: Any) -> str:
    """Return the SHA-256 of a file that is there and, where it bears a name of torchvision's, is whole."""
    published = {_get_weights_filename(each): each for each in weights}
    fetch = f"curl -fL --create-dirs -o {shlex.quote(str(file))} {published.get(file.name, weights.DEFAULT).url}"
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        what = f"{file}: found no weights to begin from ({error.strerror}); nothing is downloaded in a job"
        raise BaselineError(f"{what}, run this where there is internet: {fetch}") from error
    wanted = file.stem.rpartition("-")[2]
    if file.name in published and not found.startswith(wanted):
        what = f"{file}: found the SHA-256 {found[: len(wanted)]}...; allowed is {wanted}..., as in its name"
        raise BaselineError(f"{what}: {fetch}")
    return found


def _get_weights_filename(weights: Any) -> str:
    """Return the name that torchvision gives the file of its weights: `resnet18-f37072fd.pth`, a hash in it."""
    return str(weights.url).rpartition("/")[2]


def _load_weights(network: nn.Module, file: Path, architecture: str) -> None:
    """Put the weights of a file into all layers but the last."""
    allowed = f"allowed is a state dict of torchvision's {architecture}, its last layer for any classes"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is not ours may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".replace("; ", ", ")
        raise BaselineError(f"{file}: found no weights in it ({said}); {allowed}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BaselineError(f"{file}: found no state dict in it; {allowed}")
    head = _get_head_name(network)
    given, wanted = _select_body_weights(state, head), _select_body_weights(network.state_dict(), head)
    for name in [*wanted, *given]:
        has, needs = (tuple(each[name].shape) if name in each else None for each in (given, wanted))
        if has != needs:
            raise BaselineError(
                f"{file}: found {name} with the shape {has}, where {architecture} has {needs}; {allowed}"
            )
    network.load_state_dict(given, strict=False)


def _select_body_weights(state: Mapping[str, Tensor], head_name: str) -> dict[str, Tensor]:
    """Leave out the last layer and counts of batches; DenseNet's file of 2017 says norm.1 where norm1 is meant."""
    named = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", name): value for name, value in state.items()}
    left_out = (f"{head_name}.weight", f"{head_name}.bias")
    return {
        name: value for name, value in named.items() if name not in left_out and not name.endswith("_batches_tracked")
    }


def _get_head_name(network: nn.Module) -> str:
    *_, (name, _) = network.named_children()
    return name


def _replace_batchnorm(network: nn.Module) -> None:
    """Put our batch norm, with the same numbers, in the place of torch's."""
    for module in list(network.modules()):
        for name, theirs in module.named_children():
            if isinstance(theirs, nn.BatchNorm2d):
                ours = FieldBatchNorm(theirs.num_features, eps=theirs.eps, momentum=theirs.momentum or 0.1)
                ours.weight, ours.bias = theirs.weight, theirs.bias
                ours.running_mean, ours.running_var = (
                    theirs.get_buffer("running_mean"),
                    theirs.get_buffer("running_var"),
                )
                setattr(module, name, ours)
