"""Points checked before anything is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from galaxyhpc import preflight
from galaxyhpc.config import DataConfig, ModelConfig, RunConfig
from galaxyhpc.models import build_model, count_parameters, multiply_adds

OWN = "make a sweep of each"
SMALL = DataConfig(image_size=33)


def run(group: str | None, seed: int = 0, **data: object) -> RunConfig:
    model = ModelConfig(group=group, scale=0.1) if group else ModelConfig(architecture="cnn", scale=0.1)
    return RunConfig(model=model, data=SMALL.model_copy(update=data), seed=seed)


def test_every_run_is_told_what_its_network_costs() -> None:
    runs = [run("C4"), run("C4", seed=1), run(None)]
    found = preflight.check(runs)
    assert list(found) == [config.run_id for config in runs]
    network = build_model(runs[0].model, 33)
    assert found[runs[0].run_id] == preflight.Network(count_parameters(network), multiply_adds(network, 33))
    assert found[runs[1].run_id] == found[runs[0].run_id] != found[runs[2].run_id]


def test_a_thousand_seeds_of_a_network_build_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    measure = preflight._measure
    monkeypatch.setattr(preflight, "_measure", lambda *key: built.append(key) or measure(*key))
    assert len(preflight.check([run("C2", seed) for seed in range(1000)])) == 1000
    assert len(built) == 1


def test_all_problems_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    monkeypatch.setattr(preflight, "TOLERANCE", 0.0)  # so that rounding alone is a problem
    runs = [run("C4", source=str(tmp_path / "absent.h5")), run("D4", source=str(tmp_path / "text.h5"))]
    with pytest.raises(preflight.PreflightError) as caught:
        preflight.check(runs)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert "absent.h5: no such file" in lines[0] and "text.h5" in lines[1]
    assert lines[2].startswith("data.source: found ") and lines[2].endswith(
        "in one sweep; allowed is one value: " + OWN
    )
    assert lines[3].startswith("C4 steerable_cnn at 33 px: its logits change by")
    assert lines[4].startswith("D4 steerable_cnn at 33 px: its logits change by")


def test_runs_that_would_be_divided_differently_are_no_sweep() -> None:
    with pytest.raises(preflight.PreflightError, match=r"data\.split_seed: found 0, 1 in one sweep"):
        preflight.check([run("C2"), run("C2", split_seed=1)])
