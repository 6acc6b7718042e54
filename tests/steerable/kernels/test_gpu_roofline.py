"""The choice of kernels for a GPU, by the ceilings of two cards, against what was measured on them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.kernels import gpu_roofline, selection
from galaxyhpc.steerable.kernels.cpu_timing import LayerInput
from galaxyhpc.steerable.kernels.gpu_roofline import Block, Ceilings, CostModel

CEILINGS = {"H100": Ceilings(790e12, 55e12, 3.0e12), "H200": Ceilings(790e12, 55e12, 4.3e12)}
FULL_FLOAT32 = Ceilings(55e12, 55e12, 3.0e12)
CUDA = torch.device("cuda")
LAYERS = {
    (card, name): times
    for card in CEILINGS
    for name, times in json.loads((Path(__file__).parents[2] / "benchmarks" / "gpu_layers.json").read_text())[card][
        "step_ms"
    ].items()
}


def make_block(name: str) -> Block:
    """Return a block of a convolution alone, described as "D16 12->24 129 px"."""
    group, fields, side, _ = name.split()
    in_fields, out_fields = map(int, fields.split("->"))
    basis_spec = (group, 3, "regular", "regular", None)
    return Block(LayerInput(basis_spec, (in_fields, out_fields), 1, 1, 32, (int(side), int(side))))


@pytest.mark.parametrize(("card", "name"), LAYERS)
def test_the_choice_is_never_measured_to_be_slower_than_dense(card: str, name: str) -> None:
    (is_harmonic,) = CostModel(CEILINGS[card], torch.bfloat16, True).choose([make_block(name)])
    times = LAYERS[card, name]
    assert times["harmonic" if is_harmonic else "dense"] < 1.05 * times["dense"]


@pytest.mark.parametrize(("card", "name"), LAYERS)
def test_estimates_are_near_what_was_measured(card: str, name: str) -> None:
    model, block = CostModel(CEILINGS[card], torch.bfloat16, True), make_block(name)
    times = LAYERS[card, name]
    if "112->192 9" in name:
        return  # half of the estimate is the expansion of the filter, which was not measured
    assert 0.7 < 1000 * model.estimate(block, False) / times["dense"] < 1.4
    assert 0.55 < 1000 * model.estimate(block, True) / times["harmonic"] < 1.4


def choose(group: str, ceilings: Ceilings, dtype: torch.dtype, is_training: bool, batch_size: int) -> tuple[int, float]:
    """Return how many layers of a network are harmonic, and how many times faster it is so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_roofline, "get_ceilings", lambda device, dtype: ceilings)
        with torch.device("meta"):
            network = build_model(ModelConfig(group=group), 255)
        shape = selection.BatchShape(batch_size, 255)
        choice = selection.choose_by_ceilings(network, shape, CUDA, dtype, is_training)
        dense, ours = (
            selection.estimate_seconds(network, kernels, shape, CUDA, dtype, is_training)
            for kernels in (dict.fromkeys(choice, False), choice)
        )
    assert not choice["blocks.0.0"]  # from colours to fields
    return sum(choice.values()), dense / ours


@pytest.mark.parametrize(
    ("group", "min_layers", "max_layers", "speedup"),
    [
        ("D16", 8, 10, 1.9),
        ("D8", 6, 8, 1.15),
        ("D4", 0, 2, 1.0),
        ("C8", 0, 2, 1.0),
        ("C4", 0, 0, 1.0),
        ("C1", 0, 0, 1.0),
    ],
)
def test_large_groups_train_without_dense_filters_and_small_ones_with_them(
    group: str, min_layers: int, max_layers: int, speedup: float
) -> None:
    num_layers, ratio = choose(group, CEILINGS["H100"], torch.bfloat16, True, 128)
    assert min_layers <= num_layers <= max_layers
    assert speedup <= ratio < 1.2 * speedup


STEPS = {
    (line["network"], line["kernels"]): line["ms"]
    for line in json.loads((Path(__file__).parents[2] / "benchmarks/gpu/h100-2026-11-28.json").read_text())["results"][
        "steps"
    ]
    if line["batch"] == 128 and line["ms"] > 30  # others are bound by their launches
}


@pytest.mark.parametrize(("group", "kernels"), [key for key in STEPS if key[1] in ("dense", "harmonic")])
def test_estimates_of_whole_steps_are_near_what_was_measured(
    group: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_roofline, "get_ceilings", lambda device, dtype: CEILINGS["H100"])
    with torch.device("meta"):
        network = build_model(ModelConfig(group=group), 255)
    layers = list(selection.get_steerable_layers(network))
    choice = {name: kernels == "harmonic" and number > 0 for number, name in enumerate(layers)}
    seconds = selection.estimate_seconds(
        network, choice, selection.BatchShape(128, 255), CUDA, torch.bfloat16, is_training=True
    )
    assert 0.7 < STEPS[group, kernels] / (1000 * seconds) < 1.45


@pytest.mark.parametrize(
    ("group", "num_layers", "speedup"), [("D16", 10, 6.0), ("D8", 10, 3.3), ("D4", 9, 1.7), ("C1", 0, 1.0)]
)
def test_in_full_float32_most_groups_are_evaluated_without_dense_filters(
    group: str, num_layers: int, speedup: float
) -> None:
    num_harmonic, ratio = choose(group, FULL_FLOAT32, torch.float32, False, 128)
    assert num_harmonic == num_layers
    assert speedup <= ratio < 1.3 * speedup


def test_the_changes_of_layout_are_part_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is the best of all: a layer that alone would be faster dense is not where its neighbours are not."""
    monkeypatch.setattr(gpu_roofline, "MARGIN", 1.0)
    with torch.device("meta"):
        network = build_model(ModelConfig(group="D8", scale=0.7), 129)
    chain, *others = selection.trace_block_chains(network, selection.BatchShape(64, 129), torch.bfloat16, True)
    blocks, model = list(chain.values()), CostModel(CEILINGS["H100"], torch.bfloat16, True)
    assert not others and len(blocks) == 11
    best = min(product([False, True], repeat=7), key=lambda choice: model.estimate_chain(blocks[2:9], choice))
    assert tuple(model.choose(blocks[2:9])) == best and any(best)
    assert model.estimate_chain(blocks, model.choose(blocks)) < model.estimate_chain(blocks, [False] * 11)


def test_a_card_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_roofline, "MATMUL_SIZE", 64)
    monkeypatch.setattr(gpu_roofline, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    get = gpu_roofline._get_ceilings.__wrapped__
    ceilings = get(torch.device("cpu"), torch.float32, False)
    assert min(ceilings) > 0
    (path,) = (tmp_path / "galaxyhpc").glob("rates-*.json")
    monkeypatch.setattr(gpu_roofline, "measure_ceilings", lambda device, dtype: FULL_FLOAT32)
    assert get(torch.device("cpu"), torch.float32, False) == ceilings
    for damaged in ("", "[]", "{}", path.read_text().replace("product", "produce"), '{"copy": -1.0}'):
        path.write_text(damaged)
        assert get(torch.device("cpu"), torch.float32, False) == FULL_FLOAT32
    assert get(torch.device("cpu"), torch.float32, True) == FULL_FLOAT32  # TF32 is another rate
    assert len(list((tmp_path / "galaxyhpc").glob("rates-*.json"))) == 2
