"""Hostile sweep files and options: exit status 0 or 2, errors with their location, and nothing written."""

from __future__ import annotations

import copy
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hostile import FUZZ_SETTINGS, VALID_SWEEP, CommandResult, capture_command, snapshot_tree, workspace
from helpers.tiers import num_examples, slow, slow_unless
from hypothesis import given, settings
from hypothesis import strategies as st

from galaxyhpc.config.sweep import load_sweep
from galaxyhpc.launch import __main__ as launch

__all__ = ["workspace"]


def dry_run(*options: str) -> int:
    return launch.main(["sweep.yaml", "--executor", "debug", "--dry-run", *options])


def check_dry_run(workspace: Path, content: bytes, capfd: pytest.CaptureFixture[str], *options: str) -> CommandResult:
    """Run launch --dry-run on a sweep and check that nothing is written."""
    (workspace / "work" / "sweep.yaml").write_bytes(content)
    before = snapshot_tree(workspace)
    status, lines = capture_command(lambda: dry_run(*options), capfd)
    assert snapshot_tree(workspace) == before
    return status, lines


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 8)}]\n" for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{last}'] * 9)}]}}\n"
    for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
C4 = "blocks: [{points: [{model.group: C4}]}]\n"
GRID = ", ".join(f"train.{name}: {list(range(1, 1001))}" for name in ("epochs", "batch_size", "early_stopping"))


@pytest.mark.parametrize(
    "content",
    [
        *(BOMB, MERGES, "a: &a [*a]", "a: &a {<<: *a}", "? [a, b]\n: 1", "- 1", "name: [", "%YAML 9.9\n---\na: 1"),
        *("[" * 5000, "{a: " * 5000, "- " * 5000, "a:\n" + "".join(" " * n + "b:\n" for n in range(1, 2000))),
        *(f"x: !!{tag}" for tag in ("python/object/apply:os.system [id]", "python/name:os.system", "binary a=", "set")),
        *("!!python/object/new:type {}", "--- 1\n--- 2", "a: 1\na: 2", "blocks: 2020-01-01", "a: 1_000", "a: 0x10"),
        *(C4 + f"seeds: {seeds}" for seeds in ("1000000000", "9" * 4000, "[9999999999]", "-1", ".inf", "[[0]]", "1e9")),
        *(C4 + f"name: {name}" for name in ("../x", "/etc/x", "~", "..", ".x", '"a\\nb"', '"a\\0b"', "a/b", "x" * 101)),
        f"blocks: [{{grid: {{{GRID}}}}}]",
        C4 + f"base: {{{', '.join(f'train.epochs{n}: 1' for n in range(2_000))}}}",
        C4 + 'base: {data: {source: "${PATH}\\0"}}',
        "\0",
        "a\x00b: 1",
        "\x85\u2028\ufeff",
        "a: \x1b[2J",
        b"\xff\xfe" + C4.encode("utf-16-le"),
        C4.encode("utf-32"),
        b"\xed\xa0\x80: 1",
        b"\x80\x81",
        b"",
        bytes(range(256)),
    ],
    ids=lambda content: ascii(content[:30]),
)
def test_a_hostile_sweep_file_is_refused_with_its_location_and_with_little_memory(
    content: str | bytes, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, lines = check_dry_run(workspace, content if isinstance(content, bytes) else content.encode(), capfd)
    assert status == 2 and all(line.startswith("sweep.yaml:") and line.isprintable() for line in lines), lines[:3]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_byte_order_mark_and_a_merge_are_accepted(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_dump(VALID_SWEEP).replace("base:", "base:\n  <<: {augment.flip: 0.1}", 1)
    assert check_dry_run(workspace, b"\xef\xbb\xbf" + text.encode(), capfd) == (0, [])


PATHS = ["~nobody-of-this-name/x", "a\0b", "\ud800", "a\nb", "loop", "loop/x", "pipe", "x" * 300, "/dev/null/x", ""]


@pytest.fixture
def traps(workspace: Path) -> Path:
    (workspace / "work" / "loop").symlink_to("loop")
    os.mkfifo(workspace / "work" / "pipe")
    return workspace


@pytest.mark.parametrize(
    "path",
    slow_unless(PATHS[::4], [*PATHS, "../../x", "/proc/self/mem", "/", ".", "~", "/etc/passwd", "${X:-$(id)}"]),
)
@pytest.mark.parametrize("key", ["data.source", "data.cache"])
def test_a_hostile_path_in_a_sweep_is_refused_or_only_shown(
    key: str, path: str, traps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = {**VALID_SWEEP, "base": {**VALID_SWEEP["base"], key: path}}
    if key == "data.source":
        del sweep["base"]["data"], sweep["base"][key]
        sweep["base"]["data"] = {**VALID_SWEEP["base"]["data"], "source": path}
    status, _ = check_dry_run(traps, json.dumps(sweep).encode(), capfd)
    assert status == 2 or key == "data.cache"


@pytest.mark.parametrize(
    ("option", "path"),
    [
        (option, path) if path in PATHS[::4] else slow(option, path)
        for option in ("--runs", "--profile")
        for path in PATHS
        if path and (option, path) != ("--profile", "pipe")  # which may be a profile that is still being written
    ],
)
def test_a_hostile_path_on_the_command_line_is_refused_or_only_shown(
    option: str, path: str, traps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_dry_run(traps, json.dumps(VALID_SWEEP).encode(), capfd, option, path)


@pytest.mark.parametrize(
    "text",
    [
        *("data.image_size=64001", f"data.image_size={10**300}", f"train.epochs={10**99}", "train.epochs=1e400"),
        *("resources.memory_gb=1e308", "resources.memory_gb=1e-300", "model.scale=.nan", "seeds=1000000000"),
        *("resources.partition='a b'", 'resources.partition="a\\n#SBATCH --wrap=id"', "resources.account='#'"),
        *('resources.setup=["\\0"]', 'resources.qos="\\ud800"', "evaluate.conditions=[clean, clean]", "name=../x"),
        *("\0=1", "=", "\ud800=\ud800", "a=!!python/name:os.system", "x=" + "[" * 3000, "data={source: {}}"),
        *(f"data.demo.galaxies={10**13}", f"data.demo.seed={10**200}", f"resources.nodes={10**10}", "__class__=1"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_a_hostile_setting_on_the_command_line_is_an_error_of_set(
    text: str, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, lines = check_dry_run(workspace, json.dumps(VALID_SWEEP).encode(), capfd, "--set", text)
    assert status == 2 and all(line.startswith("--set: ") for line in lines), lines


HOSTILE = st.sampled_from(
    [
        *(None, True, -1, 0, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "~", "../../x", "/etc/passwd"),
        *("a\nb", "\0", "\x1b[2J", "${HOME}", "${", "<<", "2020-01-01", "C64", "D65", "x" * 5000, [], {}, [[[[]]]]),
        *({"a": {"b": [{}]}}, ["C4"] * 300, list(range(3000)), "\u2028", "$(touch x)", "C4\n", "é" * 300),
    ]
).map(copy.deepcopy)  # the lists and mappings are mutated in place


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return a valid sweep with up to three of its nodes dropped, doubled or replaced."""
    sweep = copy.deepcopy(VALID_SWEEP)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = sweep
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 2)):
                node = node[key]
                continue
            match draw(st.sampled_from(["drop", "double", "replace", "replace", "new"])):
                case "drop":
                    del node[key]
                case "double" if isinstance(node, list):
                    node.append(node[key])
                case "new" if isinstance(node, dict):
                    node[draw(st.text(max_size=5))] = draw(HOSTILE)
                case _:
                    node[key] = draw(HOSTILE)
            break
    return sweep


@settings(FUZZ_SETTINGS, max_examples=num_examples(80))
@given(sweep=mutated())
def test_a_valid_sweep_with_a_few_nodes_mutated_is_a_plan_or_an_error(
    sweep: Any, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, lines = check_dry_run(workspace, json.dumps(sweep).encode(), capfd)
    assert status in (0, 2) and (status == 0 or lines)


@settings(FUZZ_SETTINGS, max_examples=num_examples(80))
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_error_with_its_location(
    content: bytes, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, lines = check_dry_run(workspace, content, capfd)
    assert status == 2 and all(line.startswith("sweep.yaml:") and line.isprintable() for line in lines)


@pytest.mark.parametrize("link", ["the sweep", "a run"])
def test_a_sweep_is_not_launched_through_a_link_that_leads_elsewhere(
    link: str, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (workspace / "work" / "sweep.yaml").write_text(json.dumps(VALID_SWEEP))
    target = workspace / "work" / "runs" / "good"
    target = target / load_sweep(Path("sweep.yaml")).runs[0].run_id if link == "a run" else target
    target.parent.mkdir(parents=True)
    (workspace / "elsewhere").mkdir()
    target.symlink_to(workspace / "elsewhere")
    status, lines = capture_command(lambda: launch.main(["sweep.yaml", "--executor", "debug"]), capfd)
    assert status == 2 and len(lines) == 1 and "symbolic link" in lines[0]
    assert not list((workspace / "elsewhere").iterdir()) and not (workspace / "work" / "runs" / ".cache").exists()


@pytest.mark.parametrize("name", ["50%j", "a\\b", "a\nb", "caf\udce9"])
def test_a_directory_where_slurm_could_not_write_its_logs_is_refused_before_anything_is_written(
    name: str, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (workspace / "work" / "sweep.yaml").write_text(json.dumps(VALID_SWEEP))
    before = snapshot_tree(workspace)
    status, lines = capture_command(lambda: launch.main(["sweep.yaml", "--executor", "debug", "--runs", name]), capfd)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("--runs: got") and lines[0].isprintable()
    assert snapshot_tree(workspace) == before
