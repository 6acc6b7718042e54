"""One-pixel attack: on networks with known answers, on runs, and its success rates."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from galaxyhpc import fsck
from galaxyhpc.analysis.attack_success import AttackError, compute_success_rates
from galaxyhpc.config.schema import AttackConfig, DataConfig, DemoConfig, EvaluateConfig, ModelConfig, RunConfig
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.evaluation.attacks import attack_results
from galaxyhpc.evaluation.attacks.attack import (
    Target,
    attack,
    draw_first_candidates,
    make_target,
    mutate,
    select_galaxies,
    set_pixels,
    to_pixels,
)
from galaxyhpc.evaluation.attacks.attack_results import (
    AttackResults,
    AttackSpec,
    get_attack_file,
    make_empty_table,
    read,
)
from galaxyhpc.evaluation.attacks.one_pixel import OnePixelNetwork, supports_one_pixel
from galaxyhpc.evaluation.evaluate import evaluate, is_evaluated, load_network
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.storage.files import sha256, write_text
from galaxyhpc.storage.run_dir import RunDir, read_state

SIZE = 12  # px
SMALL = AttackConfig(galaxies=40, population=8, iterations=2)


class Lamp:
    """A network that uses one pixel: class 1 where the red of column 4, row 7 is above 3/4, else 0."""

    asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        red = images[:, 0, 7, 4]
        return torch.stack([torch.full_like(red, 7.5), 10 * red, *[torch.full_like(red, -5.0)] * 8], dim=1)


class Blind(Lamp):
    """A network that predicts class 0 for every image."""

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(torch.zeros_like(images))


def target(network: Lamp, galaxies: int, batch_size: int = 64) -> Target:
    labels = torch.zeros(galaxies, dtype=torch.int64)
    return make_target(
        network, torch.full((galaxies, 3, SIZE, SIZE), 0.2), labels, 100 + torch.arange(galaxies), batch_size
    )


def on_queries(queries: int) -> bool:
    return True


def run_attack(network: Lamp, galaxies: int, settings: AttackConfig, batch_size: int = 64) -> np.ndarray:
    result = attack(target(network, galaxies, batch_size), settings, on_queries)
    assert result is not None
    return result


def test_the_one_pixel_that_matters_is_found_and_the_queries_up_to_it_are_counted() -> None:
    lamp, settings = Lamp(), AttackConfig(population=50, iterations=40)
    result = run_attack(lamp, 6, settings)
    assert (result[:, 1:3] == [4, 7]).all() and (result[:, 3] > 0.75 * 255).all() and (result[:, 6] == 1).all()
    assert (result[:, 0] >= 1).all() and (result[:, 0] < 50 * 41).all()
    generations = -(-result[:, 0] // 50)  # whole ones are asked
    assert lamp.asked == 50 * generations.sum()
    for galaxy in range(6):  # the last query is the first success of the generations before and its own
        image = torch.full((1, 3, SIZE, SIZE), 0.2)
        shown = set_pixels(image, torch.from_numpy(result[galaxy : galaxy + 1, 1:6]))
        assert Lamp()(shown).argmax() == 1 and int((shown != image).any(1).sum()) == 1


def test_a_network_that_ignores_its_input_is_never_fooled_and_the_whole_budget_is_spent() -> None:
    blind = Blind()
    result = run_attack(blind, 3, AttackConfig(population=20, iterations=7))
    assert (result[:, 0] == 20 * 8).all() and (result[:, 6] == 0).all() and blind.asked == 3 * 20 * 8


def test_what_is_found_depends_neither_on_the_batches_nor_on_the_other_galaxies() -> None:
    settings = AttackConfig(population=10, iterations=5)
    rows = torch.tensor([5, 17, 3, 900, 12, 44])
    images = torch.rand(60, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    network = fitted(ModelConfig(group="C4", scale=0.05), images, torch.arange(60) % 10)
    images = images[:6]
    with torch.inference_mode():
        labels = network(images).argmax(1)
    full_target = make_target(network, images, labels, rows, 64)
    first = attack(full_target, settings, on_queries)
    assert first is not None and 0 < (first[:, 6] != labels.numpy()).sum() < 6
    for other in (replace(full_target, batch_size=7), replace(full_target, batch_size=1000)):
        np.testing.assert_array_equal(attack(other, settings, on_queries), first)
    alone = [attack(full_target.select(torch.tensor([galaxy])), settings, on_queries) for galaxy in range(6)]
    np.testing.assert_array_equal(np.concatenate([one for one in alone if one is not None]), first)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"group": "C4"}, 33), ({"group": "D2", "head": "flatten"}, 65), ({"architecture": "cnn"}, 63)],
    ids=str,
)
def test_what_a_pixel_does_not_reach_need_not_be_computed(settings: dict[str, Any], size: int) -> None:
    images = torch.rand(20, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = fitted(ModelConfig(**settings, scale=0.05), images, torch.arange(20) % 10)
    edges = torch.tensor([0, 1, 5, size // 2, size - 2, size - 1])
    places = torch.cat([torch.cartesian_prod(edges, edges), torch.randint(size, (40, 2))])
    result = torch.cat([places, torch.randint(256, (len(places), 3))], dim=1)
    numbers = torch.arange(len(result)) % 20
    assert supports_one_pixel(network) and not supports_one_pixel(
        build_model(ModelConfig(**settings, scale=0.05, opening=1), size)
    )
    with torch.inference_mode():
        expected, clean = network(set_pixels(images[numbers], result)), network(images)[numbers]
        torch.testing.assert_close(OnePixelNetwork(network, images)(numbers, result), expected, rtol=0, atol=2e-5)
    assert (expected - clean).abs().amax() > 1e-2


def test_first_candidates_lie_anywhere_and_their_colours_are_the_papers() -> None:
    rows = torch.arange(50)
    result = draw_first_candidates(rows, 200, SIZE)
    assert torch.equal(draw_first_candidates(rows[7:9], 200, SIZE), result[7:9])  # the same for every network and batch
    counts = torch.bincount((to_pixels(result, SIZE)[..., 1] * SIZE + to_pixels(result, SIZE)[..., 0]).flatten())
    assert len(counts) == SIZE**2 and counts.min() > 0.5 * 10_000 / SIZE**2
    colours = result[..., 2:]
    dark, bright = ((colours == value).double().mean() for value in (0.0, 1.0))
    assert abs(dark - 0.157) < 0.01 and abs(bright - 0.1585) < 0.01  # beyond 128/127 of a standard deviation
    middle = colours[(colours > 0) & (colours < 1)]
    assert abs(middle.mean() - 128 / 255) < 0.01


def test_children_are_a_parent_and_half_the_difference_of_two_others_kept_in_bounds() -> None:
    parents = draw_first_candidates(torch.arange(3), 5, SIZE)
    result = mutate(parents, torch.arange(3), 1, SIZE)
    limits = torch.tensor([SIZE, SIZE, 1.0, 1.0, 1.0], dtype=torch.float64)
    for galaxy in range(3):
        possible = torch.stack(
            [
                (parents[galaxy, a] + 0.5 * (parents[galaxy, b] - parents[galaxy, c])).clamp(min=0).minimum(limits)
                for a in range(5)
                for b in range(5)
                for c in range(5)
                if len({a, b, c}) == 3
            ]
        )
        assert (result[galaxy, :, None] - possible).abs().amax(-1).amin(1).max() < 1e-12
    assert not torch.equal(result, mutate(parents, torch.arange(3), 2, SIZE))


def test_as_many_galaxies_of_each_class_are_chosen_and_more_hold_the_fewer() -> None:
    labels, rows = np.repeat([0, 1, 2], [50, 5, 30]), np.arange(85) * 3
    assert np.bincount(labels[select_galaxies(rows, labels, 12)]).tolist() == [4, 4, 4]
    assert np.bincount(labels[select_galaxies(rows, labels, 31)]).tolist() == [13, 5, 13]
    assert len(select_galaxies(rows, labels, 10**9)) == 85
    assert set(select_galaxies(rows, labels, 12)) < set(select_galaxies(rows, labels, 31))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def fitted(config: ModelConfig, images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """Fit the last layer of a random network by least squares: many correct predictions, none of them confident."""
    torch.manual_seed(seed)
    network = build_model(config, images.shape[-1])
    for layer in network.modules():
        if isinstance(layer, FieldBatchNorm):
            layer.momentum = 1.0
    seen: list[Tensor] = []
    (*_, last) = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.train()(images)
        network.eval()(images)
        inputs = torch.cat([seen[1], torch.ones(len(images), 1)], dim=1)
        result = torch.linalg.lstsq(inputs, nn.functional.one_hot(labels, 10).float()).solution
        last.weight.copy_(result[:-1].T)
        last.bias.copy_(result[-1])
    hook.remove()
    return network


def make_run(sweep: Path, cache: Path, settings: AttackConfig = SMALL) -> RunDir:
    """Write a run whose best weights are those of a fitted network."""
    config = RunConfig(
        data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32)),
        model=ModelConfig(group="C4", scale=0.05),
        evaluate=EvaluateConfig(conditions=("clean",), batch_size=64, attack=settings),
    )
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    save_weights(run, seed=0)
    return run


def save_weights(run: RunDir, seed: int) -> None:
    config = run.load_config()
    galaxies = prepare(config.data)
    images, labels = torch.from_numpy(np.array(galaxies.images)).float() / 255.0, torch.from_numpy(galaxies.labels)
    network = fitted(config.model, images, labels, seed)
    torch.save({"model": network.state_dict(), "run_id": run.run_id}, run.best_file)


def attacked(run: RunDir) -> AttackResults:
    result = read(run)
    assert result is not None
    return result


def test_a_run_is_attacked_after_its_conditions_and_its_own_network_is_fooled_by_what_is_stored(
    tmp_path: Path, cache: Path
) -> None:
    run = make_run(tmp_path, cache, AttackConfig(galaxies=30, population=16, iterations=4))
    assert evaluate(run, StopSignal())
    config, result = run.load_config(), attacked(run)
    assert read_state(run).name == "evaluated" and is_evaluated(run, config) and result.is_complete
    assert result.spec.weights == sha256(run.best_file) and result.spec.generated and result.spec.budget == 80
    galaxies, network = prepare(config.data), load_network(run, config, torch.device("cpu"))
    table = result.table
    images = torch.from_numpy(np.array(galaxies.images[table["row"].to_numpy()]))
    pixel = torch.from_numpy(table[["x", "y", "r", "g", "b"]].to_numpy())
    after = images.clone()
    after[torch.arange(len(after)), :, pixel[:, 1], pixel[:, 0]] = pixel[:, 2:].to(torch.uint8)
    with torch.inference_mode():
        clean, fooled = (network(each.float() / 255.0).argmax(1).numpy() for each in (images, after))
    assert len(table) > 5 and (clean == table["label"]).all() and (galaxies.labels[table["row"]] == clean).all()
    assert (fooled == table["predicted"]).all() and 0 < table["success"].sum() < len(table)
    assert fsck.check_run(run).errors == ()


class StopLater(StopSignal):
    """A signal that arrives at the twentieth check."""

    looks = 0

    @property
    def is_requested(self) -> bool:
        self.looks += 1
        return self.looks >= 20


def test_an_attack_goes_on_where_it_was_and_comes_to_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = make_run(tmp_path / "a", cache)
    broken = RunDir(shutil.copytree(unbroken.path, tmp_path / "b" / unbroken.run_id))
    evaluate(unbroken, StopSignal())
    monkeypatch.setattr("galaxyhpc.evaluation.attacks.attack.GALAXIES_PER_CHUNK", 3)
    assert not evaluate(broken, StopLater())
    part = attacked(broken)
    assert 0 < len(part.table) < len(attacked(unbroken).table) and not part.is_complete
    assert not is_evaluated(broken, broken.load_config())
    assert evaluate(broken, StopSignal())
    assert get_attack_file(broken).read_bytes() == get_attack_file(unbroken).read_bytes()


def test_only_what_is_missing_is_attacked_and_other_weights_or_settings_begin_anew(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache)
    evaluate(run, StopSignal())
    before = attacked(run).table

    def with_attack(**settings: int) -> None:
        config = run.load_config()
        changed = config.evaluate.model_copy(update={"attack": SMALL.model_copy(update=settings)})
        write_text(run.config_file, config.model_copy(update={"evaluate": changed}).model_dump_json())
        assert (
            not is_evaluated(run, run.load_config())
            and evaluate(run, StopSignal())
            and is_evaluated(run, run.load_config())
        )

    with_attack(galaxies=60)
    more = attacked(run).table
    assert len(more) > len(before)
    pd.testing.assert_frame_equal(more[more["row"].isin(before["row"])].reset_index(drop=True), before)
    with_attack(galaxies=60, iterations=1)
    assert (attacked(run).table["queries"] <= 16).all()
    save_weights(run, seed=1)
    assert not is_evaluated(run, run.load_config()) and evaluate(run, StopSignal())
    assert attacked(run).spec.weights == sha256(run.best_file)


def test_without_a_wish_for_it_there_is_no_attack_and_runs_of_before_can_be_read(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, AttackConfig())
    old = json.loads(run.config_file.read_text())
    del old["evaluate"]["attack"], old["model"]["opening"]
    write_text(run.config_file, json.dumps(old))
    assert run.load_config().run_id == run.run_id and evaluate(run, StopSignal()) and not get_attack_file(run).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace("True", "False"),
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace("queries", "query"),
        lambda text: "# [[[" + text[1:],
    ],
)
def test_a_damaged_file_counts_as_absent_and_is_told_by_fsck(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path / "C4-cnn-s0-0123abcd")
    table = pd.concat([make_empty_table(), pd.DataFrame([one_row(3, True, 5), one_row(4, False, 40)])]).astype(
        make_empty_table().dtypes
    )
    attack_results.save(run, AttackResults(source(run.run_id), table, True))
    pd.testing.assert_frame_equal(attacked(run).table, table)
    write_text(get_attack_file(run), damage(get_attack_file(run).read_text()))  # type: ignore[operator]
    assert read(run) is None and "ignored: corrupt:" in caplog.text
    assert [line for line in fsck.check_run(run).errors if line.startswith("attack.csv: ")]


def source(run_id: str = "a", population: int = 10) -> AttackSpec:
    return AttackSpec(run_id, "w", "f", False, population, 3, 100)


def one_row(row: int, success: bool, queries: int) -> dict[str, object]:
    galaxy: dict[str, object] = {"row": row, "label": 1, "sky_group": row, "success": success, "queries": queries}
    return galaxy | dict.fromkeys(("x", "y", "r", "g", "b"), 1) | {"predicted": 2 if success else 1}


def make_results(rows: range, fooled: dict[int, int], population: int = 10) -> AttackResults:
    table = pd.DataFrame([one_row(row, row in fooled, fooled.get(row, 40)) for row in rows])
    return AttackResults(source(population=population), table, True)


def test_rates_of_success_are_those_of_the_galaxies_that_a_network_or_all_of_them_classify_rightly() -> None:
    attacks = {
        "A": [make_results(range(100), {0: 5, 1: 20, 90: 21})],
        "B": [make_results(range(50, 150), {55: 10, 90: 40, 140: 1})],
    }
    table = compute_success_rates(attacks, [10, 20, 40, 400]).set_index(["label", "set", "budget"])
    assert list(table.index.get_level_values("budget").unique()) == [10, 20, 40]  # no more were spent
    counts = {key: tuple(row) for key, row in zip(table.index, table[["n", "successes"]].to_numpy(), strict=True)}
    assert counts["A", "own", 10] == (100, 1) and counts["A", "own", 20] == (100, 2)
    assert counts["A", "own", 40] == (100, 3) and counts["A", "common", 40] == (50, 1)
    assert counts["B", "own", 10] == (100, 2) and counts["B", "common", 20] == (50, 1)
    for row in table.to_dict("records"):
        low, high = proportion_confint(row["successes"], row["n"], method="beta")
        assert row["rate"] == row["successes"] / row["n"] and row["seeds"] == 1
        assert (row["low"], row["high"]) == pytest.approx((np.nan_to_num(low), high), abs=1e-9)


def test_seeds_do_not_pass_for_more_galaxies() -> None:
    seeds = [make_results(range(100), {0: 1, 1: 1}), make_results(range(80), {0: 1, 1: 1, 2: 1, 3: 1})]
    table = compute_success_rates({"A": seeds}, [40]).set_index("set")
    own, common = table.loc["own"], table.loc["common"]
    assert own["n"] == 90 and own["seeds"] == 2 and own["rate"] == pytest.approx((0.02 + 0.05) / 2)
    assert common["n"] == 80 and common["rate"] == pytest.approx(3 / 80) and common["successes"] == 3
    assert (common["low"], common["high"]) == pytest.approx(proportion_confint(3, 80, method="beta"))


def test_networks_without_a_common_galaxy_and_no_networks_have_no_rate() -> None:
    assert compute_success_rates({}, [10]).empty
    table = compute_success_rates({"A": [make_results(range(5), {})], "B": [make_results(range(5, 9), {})]}, [40])
    common = table[table["set"] == "common"]
    assert common["rate"].isna().all() and (common["low"] == 0).all() and (common["high"] == 1).all()


def test_attacks_of_several_kinds_are_not_compared() -> None:
    with pytest.raises(AttackError, match="10 candidates, 3 iterations, galaxies f; 20 candidates"):
        compute_success_rates(
            {"A": [make_results(range(5), {})], "B": [make_results(range(5), {}, population=20)]}, [40]
        )
