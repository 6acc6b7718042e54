"""Options of sbatch and srun that have no setting of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.config.sweep import Sweep, SweepError, load_sweep

C4 = "blocks: [{points: [{model.group: C4}]}]\n"


def load(directory: Path, text: str, *overrides: str, profile: str = "") -> Sweep:
    """Read a sweep, and a profile."""
    (directory / "x.yaml").write_text(text)
    (directory / "p.yaml").write_text(profile or "{}")
    return load_sweep(directory / "x.yaml", overrides, directory / "p.yaml")


def load_error(directory: Path, text: str, *overrides: str, profile: str = "") -> str:
    """Return the only error of a sweep, without its directory."""
    with pytest.raises(SweepError) as caught:
        load(directory, text, *overrides, profile=profile)
    (error,) = caught.value.errors
    return str(error).replace(f"{directory}/", "")


def test_options_come_from_profile_base_rules_and_command_line_one_by_one(tmp_path: Path) -> None:
    profile = "sbatch: {reservation: night, licenses: 'sky:1', nice: 1, exclusive: true}\n"
    text = f"base: {{resources: {{sbatch: {{nice: 2}}}}}}\n{C4}"
    text += "resources: [{when: {model.group: C4}, set: {sbatch.nice: 3, sbatch: {mail-user: me@here}}}]\n"
    overrides = ("resources.sbatch.exclusive=false", "resources.sbatch.hold=true", "resources.srun=[--mpi=none]")
    resources = load(tmp_path, text, *overrides, profile=profile).runs[0].resources
    expected = {"reservation": "night", "licenses": "sky:1", "nice": 3, "mail-user": "me@here", "hold": True}
    assert resources.sbatch.requested == expected
    assert resources.srun == ("--mpi=none",)


def test_the_resolved_sweep_has_the_options_of_each_point(tmp_path: Path) -> None:
    text = "blocks: [{points: [{model.group: C4, resources.sbatch.nice: 1}, {model.group: C8}]}]\n"
    for options in ("", "base: {resources: {sbatch: {gres: 'gpu:a100:2', exclusive: true}}}\n"):
        sweep = load(tmp_path, options + text)
        assert load(tmp_path, sweep.resolved_yaml).runs == sweep.runs


def test_a_rule_may_ask_for_an_option(tmp_path: Path) -> None:
    text = "blocks: [{points: [{model.group: C4, resources.sbatch.nice: 1}, {model.group: C8}]}]\n"
    text += "resources: [{when: {resources.sbatch.nice: 1}, set: {nodes: 2}}]\n"
    assert [run.resources.nodes for run in load(tmp_path, text).runs] == [2, 1]


def test_resources_with_different_options_are_different_and_can_be_told_apart_in_a_dict() -> None:
    options = [{}, {"nice": 1}, {"nice": 2}, {"nice": 1, "hold": True}]
    resources = [ResourcesConfig.model_validate({"sbatch": option}) for option in options]
    assert len(set(resources)) == 4
    assert ResourcesConfig.model_validate({"sbatch": {"hold": True, "nice": 1}}) in set(resources)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partition: gpu", "partition: got gpu; expected as resources.partition"),
        ("part: gpu", "part: got gpu; expected as resources.partition"),  # sbatch takes abbreviations
        ("gpus: 1", "gpus: got 1; expected as resources.gpus_per_node, and a type of GPU as sbatch.gres"),
        ("mem-per-cpu: 4G", "mem-per-cpu: got '4G'; expected as resources.memory_gb"),
        ("exclude: n1", "exclude: got n1; expected as resources.exclude_nodes"),
        ("requeue: expedite", "requeue: got expedite; expected as resources.requeue"),
        ("output: x", "output: got x; expected to be left out: galaxyhpc sets --output itself"),
        ("wait: true", "wait: got true; expected to be left out: galaxyhpc sets --wait itself"),
        ("no-requeue: true", "no-requeue: got true; expected to be left out: galaxyhpc sets --no-requeue itself"),
        ("mail_user: x", "mail_user: got x; expected under the long name of an option of sbatch, such as mail-user"),
        ("--hold: true", "--hold: got true; expected under the long name of an option of sbatch, such as mail-user"),
        ("mail-type: [END]", "mail-type: got [END]; expected to be text without spaces"),
        ("reservation:", "reservation: got null; expected to be text without spaces"),
        ("reservation: a b", "reservation: got 'a b'; expected to be text without spaces"),
        ("gres: 'gpu:a:1,gpu:b:1'", "gres: got 'gpu:a:1,gpu:b:1'; expected to name one kind of GPU"),
        ("licenses.x: 1", "licenses: got {x: 1}; expected to be text without spaces"),
    ],
)
def test_an_option_that_is_a_setting_or_galaxyhpcs_own_is_refused_with_file_and_line(
    tmp_path: Path, option: str, message: str
) -> None:
    assert load_error(tmp_path, C4, profile=f"sbatch:\n  nice: 1\n  {option}\n").startswith(
        f"p.yaml:3: resources.sbatch.{message}"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--cpus-per-task=2", "'--cpus-per-task=2'; expected as resources.cpus_per_task"),
        ("--outp=x", "'--outp=x'; expected to be left out: galaxyhpc sets --output itself"),
        ("--kill-on-bad-exit=0", "'--kill-on-bad-exit=0'; expected to be left out"),
        ("-c2", "'-c2'; expected one word each: --option or --option=value"),
        ("--mpi none", "'--mpi none'; expected one word each: --option or --option=value"),
    ],
)
def test_an_argument_of_srun_is_refused_in_the_same_way(tmp_path: Path, argument: str, message: str) -> None:
    text = f"base:\n  resources.srun:\n  - --mpi=none\n  - {argument}\n{C4}"
    assert load_error(tmp_path, text).startswith(f"x.yaml:4: resources.srun: got {message}")


@pytest.mark.parametrize(
    ("gres", "settings", "num_gpus"),
    [
        ("gpu:a100:2", "", 2),
        ("gpu:a100", "", 1),
        ("gpu", "", 1),
        ("nvme:1,gpu:4", "", 4),
        ("gres/gpu:2", "", 2),
        ("gpu:a100", "gpus_per_node: 4", 4),
        ("gpu:a100:4", "gpus_per_node: 4", 4),
        ("gpu:a100:4", "gpus_per_node: auto", 4),
        ("gpu:a100", "gpus_per_node: auto", "auto"),
        ("gpus_of_mine:2", "", 0),
    ],
)
def test_the_number_of_gpus_may_be_in_gres(tmp_path: Path, gres: str, settings: str, num_gpus: object) -> None:
    profile = f"sbatch: {{gres: '{gres}'}}\n{settings}\n"
    assert load(tmp_path, C4, profile=profile).runs[0].resources.gpus_per_node == num_gpus


def test_two_numbers_of_gpus_are_refused(tmp_path: Path) -> None:
    error = load_error(tmp_path, C4, "resources.sbatch.gres=gpu:a100:2", profile="gpus_per_node: 4\n")
    assert error == (
        "--set: resources.sbatch.gres: got 'gpu:a100:2'; gpus_per_node is 4 and sbatch.gres is gpu:a100:2; "
        "expected one number, or the type alone: gpu:a100"
    )
