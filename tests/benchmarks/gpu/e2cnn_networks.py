"""Networks of e2cnn's modules, built beforehand in processes of their own: the GPU does not wait for minutes of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from campaign import Campaign
from networks import make_network
from schedule import NETWORKS_DIR
from torch import nn

import galaxyhpc.steerable.compat  # noqa: F401  files of networks hold e2cnn's bases, which it makes hashable

sys.path.append(str(Path(__file__).parents[1]))  # with acceleration.py, here and where files are read
STUDY_NETWORKS = ("D16", "C4", "D8")  # the study's, by their group
EXAMPLE_NETWORKS = ("Wide-ResNet C8", "tutorial C8", "Wide-ResNet D8", "tutorial D16, half as wide")  # as e2cnn's own
TINY_STUDY_NETWORKS, TINY_EXAMPLE_NETWORKS = ("C4",), ("Wide-ResNet D8, narrow",)


def list_study_networks(campaign: Campaign) -> tuple[str, ...]:
    return TINY_STUDY_NETWORKS if campaign.is_tiny else STUDY_NETWORKS


def list_example_networks(campaign: Campaign) -> tuple[str, ...]:
    return TINY_EXAMPLE_NETWORKS if campaign.is_tiny else EXAMPLE_NETWORKS


def build_networks(campaign: Campaign) -> None:
    """Build all networks side by side, a process each, and keep them in files."""
    get_path(campaign, "").parent.mkdir(exist_ok=True)
    campaign.run_side_by_side(save_network, [*list_study_networks(campaign), *list_example_networks(campaign)])


def save_network(campaign: Campaign, name: str) -> None:
    """Build a network and write its file, whole."""
    import cloudpickle  # e2cnn's groups hold functions that have no name

    start = time.time()
    network = build_network(campaign, name)
    path = get_path(campaign, name)
    torch.save(network, path.with_suffix(".tmp"), pickle_module=cloudpickle)
    path.with_suffix(".tmp").rename(path)
    campaign.record(e2cnn_network=name, build_seconds=round(time.time() - start, 1))


def load_network(campaign: Campaign, name: str) -> nn.Module:
    """Return a network in training, from its file if there is one."""
    path = get_path(campaign, name)
    network = torch.load(path, weights_only=False) if path.exists() else build_network(campaign, name)
    return network.to(campaign.device).train()


def build_network(campaign: Campaign, name: str) -> nn.Module:
    """Build a network on the CPU, with the same weights every time."""
    if name in list_study_networks(campaign):
        from galaxyhpc.benchmark.e2cnn_model import E2cnnModel

        return E2cnnModel(make_network(campaign, name).cpu(), campaign.scale.image_size)
    from acceleration import NETWORKS

    torch.manual_seed(0)
    network: nn.Module = NETWORKS[name][0]()
    return network


def get_path(campaign: Campaign, name: str) -> Path:
    """Return the file of a network."""
    return campaign.out_dir / NETWORKS_DIR / f"{name}.pt"
