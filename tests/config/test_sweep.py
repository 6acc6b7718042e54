"""Sweeps: which runs a file means, and what is error about one that means none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.tiers import num_examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from galaxyhpc.config.conditions import CONDITIONS
from galaxyhpc.config.schema import EvaluateConfig, RunConfig
from galaxyhpc.config.sweep import MAX_RUNS, Sweep, SweepError, load_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "x.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load_errors(path: Path, *overrides: str, profile: Path | None = None) -> list[str]:
    """Return the errors of a sweep, without the path of its directory."""
    with pytest.raises(SweepError) as caught:
        load_sweep(path, overrides, profile)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return [line.replace(f"{path.parent}/", "") for line in caught.value.errors]


def list_groups(sweep: Sweep) -> list[str | None]:
    return [run.model.group for run in sweep.runs]


C4 = "blocks: [{points: [{model.group: C4}]}]\n"


# The runs of a file


def test_a_grid_is_a_product_in_the_order_of_the_file_with_seeds_innermost(write: Write) -> None:
    sweep = load_sweep(write("blocks: [{grid: {model.group: [C4, C2], model.width: [fields, parameters]}}]\nseeds: 2"))
    assert [(r.model.group, r.model.width, r.seed) for r in sweep.runs] == [
        (group, width, seed) for group in ("C4", "C2") for width in ("fields", "parameters") for seed in (0, 1)
    ]
    assert sweep.name == "x"


def test_a_zip_pairs_and_points_are_taken_as_they_are(write: Write) -> None:
    sweep = load_sweep(
        write(
            "name: mixed\n"
            "blocks:\n"
            "  - zip: {model.group: [C4, D4], train.learning_rate: [1e-2, 1e-3]}\n"
            "  - points: [{model.architecture: cnn, model.group: null}, {model: {group: C1, width: parameters}}]\n"
            "seeds: [7]\n"
        )
    )
    assert [(r.model_tag, r.train.learning_rate, r.model.width, r.seed) for r in sweep.runs] == [
        ("C4-steerable_cnn", 0.01, "fields", 7),
        ("D4-steerable_cnn", 0.001, "fields", 7),
        ("cnn", 0.001, "fields", 7),
        ("C1-steerable_cnn", 0.001, "parameters", 7),
    ]
    assert sweep.name == "mixed"


def test_nested_and_dotted_keys_are_the_same(write: Write) -> None:
    nested = load_sweep(write("base: {data: {demo: {size: 32}}}\nblocks: [{grid: {model: {group: [C4]}}}]"))
    dotted = load_sweep(write("base: {data.demo.size: 32}\nblocks: [{grid: {model.group: [C4]}}]"))
    assert nested.runs == dotted.runs
    assert nested.runs[0].data.demo.size == 32


def test_a_combination_is_excluded_and_a_list_means_any_of(write: Write) -> None:
    sweep = load_sweep(
        write(
            "blocks: [{grid: {model.group: [C4, D8, D16], model.width: [fields, parameters]}}]\n"
            "exclude: [{model.group: C4, model.width: parameters}, {model.group: [D8, D16], model.width: fields}]\n"
        )
    )
    assert [(r.model.group, r.model.width) for r in sweep.runs] == [
        ("C4", "fields"),
        ("D8", "parameters"),
        ("D16", "parameters"),
    ]


def test_exclude_sees_defaults_and_may_remove_what_would_not_fit_together(write: Write) -> None:
    sweep = load_sweep(
        write(
            "blocks: [{grid: {model.architecture: [steerable_cnn, cnn], model.group: [null, C4]}}]\n"
            "exclude:\n"
            "  - {model.architecture: cnn, model.group: C4, train.epochs: 100}\n"
            "  - {model.architecture: steerable_cnn, model.group: null, train.milestones: [0.25, 0.5, 0.75]}\n"
        )
    )
    assert [run.model_tag for run in sweep.runs] == ["C4-steerable_cnn", "cnn"]


LAYERS = """
base: {resources: {nodes: 3, cpus_per_task: 3, memory_gb: 3, gpus_per_node: 3, time_minutes: 3}, train.epochs: 3}
blocks:
  - base: {resources: {cpus_per_task: 4, memory_gb: 4, gpus_per_node: 4, time_minutes: 4}, train.epochs: 4}
    points: [{model.group: C4, resources: {memory_gb: 5, gpus_per_node: 5, time_minutes: 5}, train.epochs: 5}]
resources:
  - {when: {model.group: C4}, set: {gpus_per_node: 9, time_minutes: 6}}
  - {when: {model.group: [C1, C4]}, set: {gpus_per_node: 6}}
"""


def test_each_layer_wins_over_the_ones_before_it(write: Write) -> None:
    profile = write("{partition: gpu, nodes: 2, cpus_per_task: 2}", "profile.yaml")
    run = load_sweep(write(LAYERS), ["resources.time_minutes=7", "train.epochs=7"], profile).runs[0]
    resources = run.resources
    assert resources.qos is None  # default
    assert resources.partition == "gpu"  # profile
    assert resources.nodes == 3  # the sweep's base
    assert resources.cpus_per_task == 4  # the block's base
    assert resources.memory_gb == 5  # the point
    assert resources.gpus_per_node == 6  # the last rule
    assert (resources.time_minutes, run.train.epochs) == (7, 7)  # --set


def test_set_wins_is_recorded_and_makes_equal_points_one(write: Write) -> None:
    path = write("blocks: [{grid: {model.group: [C1, C2], train.epochs: [1, 2]}}]\nexclude: [{model.group: C2}]\n")
    sweep = load_sweep(path, ["model.group=D4", "seeds=[4, 5]", "name=other", "train.learning_rate=1e-3"])
    assert [(r.model.group, r.train.epochs, r.seed) for r in sweep.runs] == [
        ("D4", 1, 4),
        ("D4", 1, 5),
        ("D4", 2, 4),
        ("D4", 2, 5),
    ]
    assert sweep.name == "other"
    assert yaml.safe_load(sweep.resolved_yaml)["overrides"][0] == "model.group=D4"


def test_the_last_set_of_a_key_counts(write: Write) -> None:
    assert load_sweep(write(C4), ["train.epochs=3", "train.epochs=5"]).runs[0].train.epochs == 5


def test_environment_variables_are_filled_in_where_paths_are(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXIES", "/data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("ABSENT", raising=False)
    text = (
        "base:\n  data: {source: '${GALAXIES}/g.h5', cache: '${ABSENT:-/tmp/${GALAXIES}'}\n"
        "  resources:\n    setup: ['source ${EMPTY:-env}.sh', 'echo $HOME $(hostname)']\n"
    )
    run = load_sweep(write(text.replace("/tmp/${GALAXIES}", "/tmp}") + C4)).runs[0]
    assert (run.data.source, run.data.cache) == ("/data/g.h5", "/tmp")
    assert run.resources.setup == ("source env.sh", "echo $HOME $(hostname)")


def test_numbers_and_words_are_read_as_a_scientist_means_them(write: Write) -> None:
    text = "base: {train: {learning_rate: 1e-3, weight_decay: 1E-4}, resources: {account: no, qos: '1e3'}}\n"
    run = load_sweep(write(text + C4)).runs[0]
    assert (run.train.learning_rate, run.train.weight_decay) == (0.001, 0.0001)
    assert (run.resources.account, run.resources.qos) == ("no", "1e3")


def test_anchors_and_merges_work(write: Write) -> None:
    sweep = load_sweep(
        write(
            "blocks:\n"
            "  - base: &short {train.epochs: 3, train.warmup: 0.5}\n"
            "    points: [{model.group: &g C4}]\n"
            "  - base: {<<: *short, train.epochs: 4}\n"
            "    points: [{model.group: *g}]\n"
        )
    )
    assert [(r.train.epochs, r.train.warmup, r.model.group) for r in sweep.runs] == [(3, 0.5, "C4"), (4, 0.5, "C4")]


def test_the_resolved_yaml_loads_to_the_same_runs_and_text(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXIES", "/da ta/é: 'x' #1.h5")
    text = LAYERS.replace("train.epochs: 3}", "train.epochs: 3, data.source: '${GALAXIES}', resources.qos: '1e3'}")
    text += "seeds: [3, 1]\n"
    sweep = load_sweep(write(text), ["train.epochs=7"], write("{partition: 'yes', setup: [a b, '#c']}", "p.yaml"))
    monkeypatch.delenv("GALAXIES")
    again = load_sweep(write(sweep.resolved_yaml, "again.yaml"))
    assert again == sweep
    assert load_sweep(write(sweep.resolved_yaml, "again.yaml"), ["seeds=1"]).runs[0].seed == 0
    assert sweep.runs[0].data.source == "/da ta/é: 'x' #1.h5"


@pytest.mark.slow
def test_a_resolved_sweep_of_many_runs_and_settings_loads_again(write: Write) -> None:
    names = [f"data.demo.{name}: [100, 200]" for name in ("galaxies", "seed")]
    names += [f"train.{name}: [0.1, 0.2]" for name in ("momentum", "decay", "warmup", "label_smoothing", "clip_norm")]
    names += [f"augment.{name}: [0.1, 0.2]" for name in ("rotation", "shift", "flip")]
    names += [f"data.{name}: [0.1, 0.2]" for name in ("validation_fraction", "label_fraction", "link_arcsec")]
    sweep = load_sweep(write(f"base: {{model.group: C4}}\nblocks: [{{grid: {{{', '.join(names)}}}}}]\n"))
    assert len(sweep.runs) == 2**13
    assert load_sweep(write(sweep.resolved_yaml, "again.yaml")).runs == sweep.runs


@pytest.mark.parametrize(
    ("name", "tags", "seeds"),
    [
        ("quickstart", "cnn C1 C4 D4", 2),
        ("real_sample", "cnn C1 C4 D4", 2),
        ("pretrained_squeezenet", "cnn cnn cnn", 3),
        ("all_groups", "cnn C1 C2 C4 C8 C16 D1 D2 D4 D8 D16", 5),
        ("efigi", "cnn C1 C4 C8 D4 D8", 3),
        ("handedness", "cnn C1 C4 C8 D1 D4 D8", 3),
    ],
)
def test_the_included_sweeps_have_their_networks(
    name: str, tags: str, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALAXY10_H5", "/somewhere/galaxies.h5")
    monkeypatch.setenv("SQUEEZENET_WEIGHTS", "/somewhere/weights.pth")
    monkeypatch.setenv("EFIGI", "/somewhere")
    sweep = load_sweep(SWEEPS / f"{name}.yaml")
    assert sweep.name == name
    assert [run.model.group or "cnn" for run in sweep.runs] == [tag for tag in tags.split() for _ in range(seeds)]
    assert len({run.run_id for run in sweep.runs}) == len(sweep.runs)
    sources = {"quickstart": "demo", **dict.fromkeys(("efigi", "handedness"), "/somewhere/catalogue.csv")}
    assert {run.data.source for run in sweep.runs} == {sources.get(name, "/somewhere/galaxies.h5")}


def test_in_all_groups_every_network_normalises_over_as_many_images_and_gets_its_batch() -> None:
    for run in load_sweep(SWEEPS / "all_groups.yaml").runs:
        assert run.resources.micro_batch == 32
        assert run.train.batch_size % (run.resources.num_tasks * run.resources.micro_batch) == 0
        assert run.resources.gpus_per_node == "auto"  # as many tasks, and none that changes what a pass sees


def test_a_sweep_is_loaded_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from galaxyhpc.config.sweep import load_sweep;"
        f"load_sweep(Path({str(SWEEPS / 'quickstart.yaml')!r}), ['evaluate.conditions=[clean]']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_conditions_of_a_sweep_are_those_of_the_table() -> None:
    combinations = ("rotation+shot_noise", "psf_moffat+shot_noise")
    assert EvaluateConfig().conditions == (*CONDITIONS, *combinations)
    assert EvaluateConfig(conditions=("jpeg+star+flip",)).conditions == ("jpeg+star+flip",)


# What is error about a file that means none


def test_all_errors_are_reported_at_once_at_their_lines_and_each_once(write: Write) -> None:
    text = """\
base:
  train:
    learning_rat: 1e-3
    epochs: -3
    milestones:
      - 0.5
      - half
  data: {image_size: 64}
blocks:
  - grid:
      model.group: [C1, E4]
      train.weight_decay: [0, 1, 2, 3]
  - zip: {model.group: [C8, D8], train.warmup: [0.1]}
  - points:
      - {model.architecture: cnn, model.group: C4}
seeds: [1, 1]
"""
    known = (
        "epochs, batch_size, optimizer, learning_rate, body_learning_rate, weight_decay, momentum, schedule, "
        "milestones, decay, warmup, clip_norm, ema_decay, label_smoothing, class_weights, early_stopping, precision, "
        "sync_batchnorm"
    )
    assert load_errors(write(text), "train.epochs=many", "train.size=3", profile=write("gpu: 1", "p.yaml")) == [
        "--set: train.epochs: got many; expected an integer",
        f"--set: train.size: unknown setting; did you mean data.demo.size? known: {known}",
        "p.yaml:1: resources.gpu: unknown setting; known: nodes, tasks_per_node, gpus_per_node, cpus_per_task, "
        "memory_gb, time_minutes, partition, account, qos, constraint, exclude_nodes, sbatch, srun, requeue, setup, "
        "micro_batch, convolution, checkpoint_minutes",
        f"x.yaml:3: train.learning_rat: unknown setting; did you mean learning_rate? known: {known}",
        "x.yaml:4: train.epochs: got -3; expected a number >= 1",
        "x.yaml:7: train.milestones: got half; expected a number",
        "x.yaml:8: data.image_size: got 64; not exact under quarter turns for steerable_cnn; "
        "nearest exact sizes: 63, 65",
        "x.yaml:11: model.group: got E4; expected C1 to C64 (rotations) or D1 to D64 (rotations and reflections)",
        "x.yaml:13: blocks[1].zip: got lists of lengths {model.group: 2, train.warmup: 1}; expected equal lengths",
        "x.yaml:15: model.group: got C4; architecture cnn takes no group",
        "x.yaml:16: seeds[1]: duplicate 1, first at x.yaml:16",
    ]


EXPECTED_ERRORS = {
    "": "x.yaml:1: got nothing; expected a mapping with name, overrides, base, blocks,",
    "# only a comment": "x.yaml:1: got nothing; expected a mapping",
    "null": "x.yaml:1: got nothing; expected a mapping",
    "- 1": "x.yaml:1: got [1]; expected a mapping",
    "{}": "x.yaml:1: blocks: got nothing; expected a list of blocks, each with exactly one of grid, zip, points",
    "blocks: []": "x.yaml:1: blocks: got []; expected a list with at least one item",
    "blocks: 3": "x.yaml:1: blocks: got 3; expected a list",
    "train.epochs: 3\n" + C4: "x.yaml:1: train: unknown key; settings of all points are given in base; known: name",
    "block: []\n" + C4: "x.yaml:1: block: unknown key; did you mean blocks? known: name, overrides, base,",
    "a: [1\n": "x.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'",
    "a: b: c": "x.yaml:1: not valid YAML: mapping values are not allowed here",
    "a: \x07": "x.yaml:1: not valid YAML: special characters are not allowed",
    'a: "\\UFFFFFFFF"': "x.yaml:1: not valid YAML",
    "[" * 1500: "x.yaml:1: not valid YAML: nested too deeply",
    "base: &a {model: *a}": "x.yaml:1: got more than 40 levels, or an alias inside its own anchor",
    "base:\n  data: {source: ${X}}": "x.yaml:2: not valid YAML: expected ',' or '}', but got '{'; quote '${NAME}'",
    C4 + "base: !!python/object:os.system {}": "x.yaml:2: base: got the tag tag:yaml.org,2002:python/object:os.",
    C4 + "base: {train.epochs: !!int x}": "x.yaml:2: base.train.epochs: got x; expected !!int, as its tag says",
    C4 + "base: {1: 2}": "x.yaml:2: base: got the key '1'; expected names as keys",
    C4 + "base: {<<: 3}": "x.yaml:2: base: got 3; expected a mapping to merge with <<",
    C4 + "base:\n  seed: 3": "x.yaml:3: seed: unknown setting; seeds are given by `seeds` at the top of the sweep",
    C4 + "base:": "x.yaml:2: base: got null; expected a mapping of settings",
    C4 + "base: {data: 3}": "x.yaml:2: data: got 3; expected a mapping of settings",
    C4 + "base: {learning_rate: 3}": "x.yaml:2: learning_rate: unknown setting; did you mean train.learning_rate?",
    C4 + "base: {train.epochs: 1,\n train.epochs: 2}": "x.yaml:3: base.train.epochs: duplicate key, first at x.yaml:2",
    C4
    + "base: {train.epochs: 1,\n train: {epochs: 2}}": "x.yaml:3: base.train.epochs: duplicate key, first at x.yaml:2",
    C4 + "base: {train.epochs: true}": "x.yaml:2: train.epochs: got true; expected an integer",
    C4 + "base: {train.epochs: '3'}": "x.yaml:2: train.epochs: got '3'; expected an integer",
    C4 + "base: {train.learning_rate: 1e999}": "x.yaml:2: train.learning_rate: got inf; expected a finite number",
    C4 + "base: {train.clip_norm: 0}": "x.yaml:2: train.clip_norm: got 0; expected a number > 0",
    C4 + "base: {train.sync_batchnorm: yes}": "x.yaml:2: train.sync_batchnorm: got yes; expected true or false",
    C4 + "base: {model.width: area}": "x.yaml:2: model.width: got area; expected 'fields', 'parameters' or",
    C4 + "base: {model.group: [C4]}": "x.yaml:2: model.group: got [C4]; expected text",
    C4 + "base: {data.source: ''}": "x.yaml:2: data.source: got ''; expected non-empty text",
    C4 + "base: {data.demo.size: 1000}": "x.yaml:2: data.demo.size: got 1000; expected a number <= 256",
    C4 + "base: {data.demo: {siz: 1000}}": "x.yaml:2: data.demo.siz: unknown setting; did you mean size?",
    C4 + "base: {data.validation_fraction: 0.8}": "x.yaml:2: data.validation_fraction: got 0.8; validation_",
    C4 + "base: {evaluate: {conditions: [klean]}}": "x.yaml:2: evaluate.conditions: got klean; expected one of clean,",
    C4 + "base:\n  evaluate.conditions: [clean,\n    a+b]": "x.yaml:4: evaluate.conditions: got 'a+b'; expected",
    C4 + "base: {evaluate: {conditions: []}}": "x.yaml:2: evaluate.conditions: got []; expected at least one item",
    C4 + "base: {data: {source: '${UNSET}'}}": "x.yaml:2: data.source: got ${UNSET}, which is not set",
    C4 + "base: {data: {source: '${a b}'}}": "x.yaml:2: data.source: got '${a b}'; expected ${NAME} and",
    C4 + "base: {resources: {qos: '${UNSET}'}}": "x.yaml:2: resources.qos: got '${UNSET}'; expected environment",
    "blocks:\n  - {}": "x.yaml:2: blocks[0]: got none; expected exactly one of grid, zip, points",
    "blocks:\n  - 3": "x.yaml:2: blocks[0]: got 3; expected a mapping with base, grid, zip, points",
    "blocks:\n  - {grid: {model.group: [C4]}, zip: {train.epochs: [3]}}": "x.yaml:2: blocks[0]: got grid and zip",
    "blocks:\n  - {gird: {}}": "x.yaml:2: blocks[0].gird: unknown key; did you mean grid? known: base, grid, zip,",
    "blocks:\n  - grid: {}": "x.yaml:2: blocks[0].grid: got {}; expected at least one setting",
    "blocks:\n  - grid:\n     model.group: []": "x.yaml:3: model.group: got []; expected a list with at least",
    "blocks:\n  - grid:\n     model.group: C4": "x.yaml:3: model.group: got C4; expected a list",
    "blocks:\n  - points: []": "x.yaml:2: blocks[0].points: got []; expected a list with at least one item",
    "blocks:\n  - points: [3]": "x.yaml:2: blocks[0].points[0]: got 3; expected a mapping of settings",
    "blocks:\n  - points:\n    - {}": "x.yaml:3: model: got nothing; architecture steerable_cnn needs a group",
    C4 + "exclude: [{}]": "x.yaml:2: exclude[0]: got {}; expected at least one setting",
    C4 + "exclude: [{model.group: C8}]": "x.yaml:2: exclude[0]: matches no point",
    C4 + "exclude: [{model.group: E8}]": "x.yaml:2: model.group: got E8; expected C1 to C64",
    C4 + "exclude: [{model.group: C4}]": "x.yaml:2: exclude: excludes every point (1); expected to leave at least one",
    C4 + "resources: [{when: {model.group: D4}, set: {nodes: 2}}]": "x.yaml:2: resources[0]: matches no point",
    C4 + "resources: [{when: {model.group: C4}}]": "x.yaml:2: resources[0].set: got nothing; expected a mapping",
    C4 + "resources: [{when: {model.group: C4}, set: {gpu: 1}}]": "x.yaml:2: resources.gpu: unknown setting; known:",
    C4 + "resources: {nodes: 1}": "x.yaml:2: resources: got {nodes: 1}; expected a list of rules with when",
    C4 + "exclude: [{train: {}}]": "x.yaml:2: exclude[0]: got {train: {}}; expected at least one setting",
    C4 + "exclude:\n- train.milestones:\n  - 0.5\n  - 7": "x.yaml:5: train.milestones: got 7; expected a number < 1.0",
    C4 + "exclude: [{resources.sbatch.bad_name: 1}]": "x.yaml:2: resources.sbatch.bad_name: got 1; expected under the",
    C4 + "base: {resources: {gpus_per_node: 2, sbatch: {gres: 'gpu:3', 'a(': 1}}}": "x.yaml:2: resources.sbatch.a(: go",
    C4 + "base: {data.fits.bands: gr}": "x.yaml:2: data.fits.bands: got gr; expected three letters, the bands for red",
    C4 + "base: {model.group: C4, model: {group: C8}}": "x.yaml:2: base.model.group: duplicate key, first at x.yaml:2",
    "blocks:\n- grid: {resources.sbatch: {}}": "x.yaml:2: blocks[0].grid: got {resources: {sbatch: {}}}; expected at",
    "blocks:\n- zip: {train: {}}": "x.yaml:2: blocks[0].zip: got {train: {}}; expected at least one setting",
    "blocks:\n- grid: {model.group: C4}\nexclude: [{train.epochs: 100}]": "x.yaml:2: model.group: got C4; expected a l",
    C4 + "seeds: []": "x.yaml:2: seeds: got []; expected a list with at least one item",
    C4 + "seeds: 0": "x.yaml:2: seeds: got 0; expected a list, or how many: 1 to 10,000",
    C4 + "seeds: true": "x.yaml:2: seeds: got true; expected a list, or how many",
    C4 + "seeds: [1.0]": "x.yaml:2: seeds[0]: got 1.0; expected an integer",
    C4 + "name: ../x": "x.yaml:2: name: got '../x'; expected 1 to 100 characters from A-Z a-z 0-9 . _ -, not starting",
    C4 + "name: 3": "x.yaml:2: name: got 3; expected 1 to 100",
    C4 + "overrides: [3]": "x.yaml:2: overrides[0]: got 3; expected text",
    "blocks:\n  - grid: {model.group: [C4,\n      C4]}": "x.yaml:3: blocks: duplicate run, first at x.yaml:2 (C4-",
    C4 + "base: {data.image_size: 64}": "x.yaml:2: data.image_size: got 64; not exact under quarter turns for",
}


@pytest.mark.parametrize("text", EXPECTED_ERRORS)
def test_an_error_has_its_line_the_value_it_got_and_what_was_expected(
    write: Write, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    (error,) = load_errors(write(text))
    assert error.startswith(EXPECTED_ERRORS[text])


def test_the_kind_of_a_block_is_checked_beside_its_settings(write: Write) -> None:
    text = "blocks:\n- base: {train.epochs: 0}\n- grid: {train.epochs: [0]}\n  zip: {train.epochs: [3]}\n"
    text += "seeds: [1, 1, -1]\n"
    assert [error.partition(";")[0] for error in load_errors(write(text))] == [
        "x.yaml:2: train.epochs: got 0",
        "x.yaml:2: blocks[0]: got none",
        "x.yaml:3: train.epochs: got 0",
        "x.yaml:3: blocks[1]: got grid and zip",
        "x.yaml:5: seeds[2]: got -1",
        "x.yaml:5: seeds[1]: duplicate 1, first at x.yaml:5",
    ]


def test_two_points_with_the_same_run_id_are_an_error_with_both_lines(write: Write) -> None:
    text = (
        "blocks:\n  - points:\n      - {model.group: C4}\n  - points:\n      - {model.group: C4, resources.nodes: 2}\n"
    )
    (error,) = load_errors(write(text))
    assert error.startswith("x.yaml:5: blocks: duplicate run, first at x.yaml:3 (C4-steerable_cnn-s0-")


def test_a_duplicate_block_is_one_error(write: Write) -> None:
    block = "  - grid: {model.group: [C1, C2, C4], train.epochs: [1, 2]}\n"
    (error,) = load_errors(write(f"blocks:\n{block}{block}"))
    assert error.startswith("x.yaml:3: blocks: duplicate run, first at x.yaml:2 (C1-")
    assert error.endswith(" and 5 more)")


def test_set_does_not_make_a_good_file_a_bad_one(write: Write) -> None:
    path = write(
        "blocks: [{grid: {model.group: [C4, C8], model.width: [fields, parameters]}}]\n"
        "exclude: [{model.group: C8, model.width: parameters}]\n"
        "resources: [{when: {model.group: C8, model.width: fields}, set: {nodes: 2}}]\n"
    )
    assert list_groups(load_sweep(path, ["model.group=C4"])) == ["C4", "C4"]
    assert list_groups(load_sweep(path, ["model.width=parameters"])) == ["C4"]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("train.epochs", "--set: got train.epochs; expected dotted.key=value"),
        ("=3", "--set: got '=3'; expected dotted.key=value"),
        ("train.epoch=3", "--set: train.epoch: unknown setting; did you mean epochs? known: epochs,"),
        ("train.epochs=[", "--set: train.epochs: not valid YAML"),
        ("train.epochs=", "--set: train.epochs: got null; expected an integer"),
        ("train={epochs: 0}", "--set: train.epochs: got 0; expected a number >= 1"),
        ("data.image_size=64", "--set: data.image_size: got 64; not exact under quarter turns"),
        ("data.image_size=16", "--set: data.image_size: got 16; too small for steerable_cnn; smallest size: 33"),
        ("model.architecture=cnn", "--set: model.architecture: got cnn; architecture cnn takes no group"),
        ("seeds=none", "--set: seeds: got none; expected a list, or how many"),
        ("name=.x", "--set: name: got '.x'; expected 1 to 100"),
        (
            "blocks=[]",
            "--set: blocks: unknown setting; did you mean model.blocks? known: data, model, train, augment, ",
        ),
    ],
)
def test_an_error_of_set_is_reported_as_one(write: Write, override: str, error: str) -> None:
    (line,) = load_errors(write(C4), override)
    assert line.startswith(error)


def test_files_that_cannot_be_read_are_errors(tmp_path: Path, write: Write) -> None:
    assert load_errors(tmp_path / "absent.yaml") == ["absent.yaml: cannot be read: No such file or directory"]
    assert load_errors(tmp_path) == [f"{tmp_path.name}: cannot be read: Is a directory"]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\n# \xe9t\xe9\n")
    assert load_errors(latin) == ["latin.yaml:2: got byte 0xe9; expected UTF-8 text"]
    (error,) = load_errors(write(C4), profile=write("resources: {nodes: 2}", "q.yaml"))
    assert error.endswith("a profile holds the settings of resources themselves, without this level")
    assert load_errors(write(C4), profile=tmp_path / "p.yaml") == ["p.yaml: cannot be read: No such file or directory"]
    assert load_errors(Path("/dev/zero"))[0].startswith("zero: got more than 20,000,000 bytes")


@pytest.mark.parametrize(
    "text",
    [
        f"blocks: [{{grid: {{data.split_seed: [{', '.join(map(str, range(101)))}], model.group: [{'C4, ' * 100}]}}}}]",
        f"blocks: [{{grid: {{data.split_seed: {list(range(5001))}, model.group: [C4]}}}}]\nseeds: 2",
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    ],
)
def test_a_sweep_of_too_many_runs_or_values_is_refused(write: Write, text: str) -> None:
    (error,) = load_errors(write(text))
    assert f"{MAX_RUNS:,}" in error or "200,000 values, aliases expanded" in error


# Arbitrary files

WORDS = st.sampled_from(
    [
        *[
            "name",
            "base",
            "blocks",
            "grid",
            "zip",
            "points",
            "exclude",
            "seeds",
            "resources",
            "when",
            "set",
            "model.group",
        ],
        *["model", "data", "data.source", "data.demo", "demo", "size", "train.epochs", "evaluate.conditions", "nodes"],
        *["resources.setup", "C4", "D4", "E4", "cnn", "clean", "${X}", "${X:-y}", "<<"],
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=5) | WORDS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
GROUPS = st.lists(st.sampled_from(["C1", "C4", "D4"]), min_size=1, max_size=3, unique=True)
WIDTHS = st.lists(st.sampled_from(["fields", "parameters"]), min_size=1, max_size=2, unique=True)
TEXT = st.text(max_size=8) | st.sampled_from(
    ["1e3", "yes", "12:30", "2020-01-01", "~", "", " #", "a\nb", "\x85", "'\""]
)
GOOD = st.fixed_dictionaries(
    {
        "blocks": st.tuples(
            st.fixed_dictionaries({"grid": st.fixed_dictionaries({"model.group": GROUPS, "model.width": WIDTHS})})
        )
    },
    optional={
        "base": st.fixed_dictionaries(
            {},
            optional={
                "data.cache": TEXT,
                "resources": st.fixed_dictionaries({"partition": TEXT, "setup": st.lists(TEXT, max_size=2)}),
                "train": st.fixed_dictionaries({"learning_rate": st.floats(1e-300, 1e300)}),
            },
        ),
        "seeds": st.integers(1, 3) | st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
        "resources": st.just([{"when": {"model.group": ["C1", "C4", "D4"]}, "set": {"nodes": 2}}]),
    },
)
FAULTY = st.tuples(GOOD, st.sampled_from(["base", "blocks", "exclude", "seeds", "resources"]), ANYTHING).map(
    lambda parts: {**parts[0], parts[1]: parts[2]}
)
TOKENS = st.lists(WORDS | st.sampled_from([*"[]{}:,&*!|>%@-?#'\"\n\t\\", "\n  ", ": ", "- ", "&a ", "*a"]), max_size=25)
TEXTS = (
    st.text()
    | TOKENS.map("".join)
    | (GOOD | FAULTY | ANYTHING).map(lambda data: yaml.safe_dump(json.loads(json.dumps(data))))
)


@settings(max_examples=num_examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(content=TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=30), override=TEXTS)
@example(content=C4.encode(), override="train.epochs=3")
@example(content=b"%YAML 1." + b"9" * 5000, override="data.source='\ud800'")
@example(content=b"blocks: [{points: [{model.group: " + b"9" * 5000 + b"}]}]", override='name="\\ud800"')
def test_any_file_is_a_sweep_or_errors_on_one_line_each(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, override: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    for overrides in ([], [override], [f"model={override}"]):
        path.write_bytes(content)
        try:
            sweep = load_sweep(path, overrides)
        except SweepError as error:
            assert error.errors
            assert all(line.isprintable() for line in error.errors)
            continue
        assert all(isinstance(run, RunConfig) for run in sweep.runs)
        path.write_text(sweep.resolved_yaml, encoding="utf-8")
        assert load_sweep(path) == sweep
