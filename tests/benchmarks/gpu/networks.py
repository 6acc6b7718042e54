"""The networks of the campaign, their kernels, and a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from campaign import Campaign
from torch import Tensor, nn

from galaxyhpc.benchmark.implementations import make_dense_limit
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable import batch_norm, fused_blocks, fused_norm
from galaxyhpc.steerable.blocks import BlockSequence
from galaxyhpc.steerable.kernels import gpu, operator, selection

NUM_CLASSES = len(GALAXY10_CLASSES)


def use_gpu_kernels_on_cpu() -> None:
    """Let networks take on a CPU, in Triton's interpreter, the way that they take on a GPU in half precision."""

    def should_fuse(self: BlockSequence, x: Tensor) -> bool:
        is_harmonic = any(layer.harmonic for layer in selection.get_steerable_layers(self).values())
        return is_harmonic and (self.training or not torch.is_grad_enabled())

    def is_fusable(x: Tensor) -> bool:
        return (
            x.dim() == 4 and not x.is_meta and x.dtype in batch_norm.FUSED_DTYPES and not torch.compiler.is_compiling()
        )

    BlockSequence._should_fuse = should_fuse  # type: ignore[method-assign]
    batch_norm._is_fusable = is_fusable
    operator.KERNEL_MODULES["cpu"] = "gpu"
    gpu.is_available = lambda: True  # type: ignore[assignment]
    selection.NUM_TRIAL_STEPS = 1
    _enlarge_tiles()


def _enlarge_tiles() -> None:
    """Let few programs do the work: the interpreter's time is that of their statements."""
    gpu.TILE_COLUMNS = 4096
    gpu.MAX_LOADED_BYTES = 1 << 22
    fused_norm.TILE_BYTES = fused_norm.IRREPS_TILE_BYTES = 1 << 19
    gpu.TILES_PER_PROGRAM = fused_norm.TILES_PER_PROGRAM = 1


def set_backend_flags(precision: str, is_deterministic: bool = True) -> None:
    """Set torch's flags as a training of this precision does, or as cuDNN is fastest."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = is_deterministic
    torch.backends.cudnn.benchmark = not is_deterministic
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = not is_deterministic


def set_torch_defaults() -> None:
    """Set torch's flags as they are by default: TF32 in convolutions alone, cuDNN's heuristics."""
    set_backend_flags("float32", is_deterministic=False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def make_network(
    campaign: Campaign, name: str, field_factor: float | None = None, image_size: int | None = None
) -> nn.Module:
    """Build the study's network of a group, or `cnn`, with dense layers, in training."""
    settings = {"architecture": "cnn"} if name == "cnn" else {"group": name}
    scale = campaign.scale.field_factor if field_factor is None else field_factor
    return make_model(campaign, settings | {"scale": scale}, image_size or campaign.scale.image_size)


def make_model(campaign: Campaign, settings: dict[str, Any], image_size: int) -> nn.Module:
    """Build any network from its settings, with the same weights every time."""
    torch.manual_seed(0)
    network = build_model(ModelConfig.model_validate(settings), image_size, NUM_CLASSES)
    return network.to(campaign.device).train()


def make_limit(network: nn.Module) -> nn.Module:
    """Return the dense limit of a network, its filters in the layout of its maps."""
    return make_dense_limit(network).to(memory_format=torch.channels_last)


def make_harmonic(network: nn.Module, should_be: Callable[[str], bool] = lambda name: True) -> int:
    """Let the layers of these names do without a dense filter where blocks stay in irreps; return their number."""
    layers = selection.get_steerable_layers(network)
    for name, layer in layers.items():
        layer.harmonic = True  # asked for by is_fusable
        layer.harmonic = fused_blocks.is_fusable(layer) and should_be(name)
    return sum(layer.harmonic for layer in layers.values())


def choose_kernels(
    campaign: Campaign, network: nn.Module, kernels: str, batch_size: int, precision: str, is_training: bool
) -> tuple[int, float]:
    """Apply `dense`, `harmonic`, `fused` or `auto`; return the number of harmonic layers and the estimate, ms.

    `auto` is what a training or an evaluation chooses before its trial. Without a GPU there is no estimate, and
    `auto` is harmonic.
    """
    num_harmonic = make_harmonic(network, lambda _: kernels != "dense")
    for layer in selection.get_steerable_layers(network).values():
        layer.is_fused = kernels == "fused"
    choice = {name: layer.harmonic for name, layer in selection.get_steerable_layers(network).items()}
    if not campaign.is_cuda:
        return num_harmonic, 0.0
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    arguments = (selection.BatchShape(batch_size, campaign.scale.image_size), campaign.device, dtype, is_training)
    if kernels == "auto":
        choice = selection.choose_by_ceilings(network, *arguments)
        selection.apply_choice(network, choice, campaign.device)
    seconds = selection.estimate_seconds(network, choice, *arguments)
    return sum(choice.values()), round(1000 * seconds, 2)


def make_images(campaign: Campaign, batch_size: int, image_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Return noise images, channels last, and labels."""
    size = image_size or campaign.scale.image_size
    images = torch.rand(batch_size, 3, size, size, device=campaign.device)
    labels = torch.randint(NUM_CLASSES, (batch_size,), device=campaign.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def run_step(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    """Compute the gradients of a batch, as a training step without its optimizer."""
    network.zero_grad(set_to_none=True)
    with autocast(images.device, precision):
        logits = network(images)
    nn.functional.cross_entropy(logits.float(), labels).backward()


def flatten_gradients(network: nn.Module) -> Tensor:
    return torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None])
