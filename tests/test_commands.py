"""The commands: `galaxyhpc VERB` and `python -m galaxyhpc.VERB`, real processes in a user's own directory."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiers import slow_unless
from helpers.warm_processes import run_python

import galaxyhpc.demo
import jobs.train
from galaxyhpc.__main__ import VERBS, main
from galaxyhpc.launch.slurm_executor import make_python_command
from galaxyhpc.runtime.child_python import format_assignments, make_child_environment
from galaxyhpc.storage.run_dir import read_state
from galaxyhpc.storage.sweep_dir import find_runs

ROOT = Path(__file__).parents[1]
NAMES = [name for group in VERBS.values() for name in group]
START_MODULES = ("galaxyhpc.runtime.process", "galaxyhpc.storage.caches")
CONSOLE_SCRIPT = "import sys; from galaxyhpc.__main__ import main; sys.exit(main())"  # as pip writes it
SWEEP = """
name: tiny
base:
  data: {source: demo, image_size: 33, demo: {galaxies: 300, size: 32}}
  model: {architecture: cnn, scale: 0.1}
  train: {epochs: 1, batch_size: 50}
  evaluate: {conditions: [clean]}
blocks: [{points: [{}]}]
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script, in a directory of its own."""
    path = tmp_path_factory.mktemp("bin") / "galaxyhpc"
    path.write_text(f"{CONSOLE_SCRIPT}\n")
    return path


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory in which jobs.py and inspect.py are a user's own, and raise when they are imported."""
    for name in ("jobs", "inspect"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user was imported')\n")
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    return tmp_path


def call(directory: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, *arguments], os.environ | environment
    return subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, timeout=300)


def test_help_lists_every_verb_with_one_line_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:-1] for line in lines if line.endswith(":")] == list(VERBS)
    assert [line.split()[0] for line in lines if line.startswith("  ")] == NAMES
    assert max(map(len, lines)) <= 120


def test_every_verb_is_a_module_that_runs_and_the_other_way_round() -> None:
    package = ROOT / "galaxyhpc"
    folders = {path.parent.name for path in package.glob("*/__main__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    assert folders | modules == set(NAMES)


@pytest.mark.parametrize("verb", slow_unless(["launch", "status", "train", "demo"], NAMES))
def test_a_verb_is_called_the_same_in_its_own_help(verb: str, tmp_path: Path) -> None:
    calls = (("galaxyhpc", verb), (f"galaxyhpc.{verb}",))
    texts = [run_python("-m", *how, "--help", cwd=tmp_path, COLUMNS="100") for how in calls]
    assert texts[0].returncode == 0 and texts[0].stdout == texts[1].stdout, texts[0].stderr
    assert texts[0].stdout.startswith(f"usage: galaxyhpc {verb} ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["lunch", "x.yaml"], "did you mean launch?"), (["frobnicate"], "`galaxyhpc --help` lists the verbs")],
)
def test_an_unknown_verb_is_one_line_with_a_near_match(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"galaxyhpc: unknown verb '{arguments[0]}'; {hint}"


def test_train_asks_for_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.train.main(["runs/none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "runs/none: got neither config.json nor plan.csv; expected one run: runs/SWEEP/RUN_ID"


def test_arguments_and_exit_status_pass_through(script: Path, tmp_path: Path) -> None:
    answers = [call(tmp_path, *how, "status", "no such run") for how in ((script,), ("-m", "galaxyhpc"))]
    assert [answer.returncode for answer in answers] == [2, 2]
    assert "no such run" in answers[0].stderr and answers[0].stderr == answers[1].stderr
    assert call(tmp_path, script, "demo", "out.h5", "--n", "100", "--size", "32").returncode == 0
    assert (tmp_path / "out.h5").exists()
    assert call(tmp_path, script).returncode == 2 and call(tmp_path, script, "--version").stdout.startswith("galaxyhpc")


@pytest.mark.parametrize(
    "verb",
    slow_unless(
        ["status", "verify_resume"],
        ["status", "cancel", "retry", "train", "evaluate", "aggregate", "export", "inspect", "fsck", "verify_resume"],
    ),
)
def test_a_run_that_does_not_exist_is_an_error_without_a_traceback(verb: str, tmp_path: Path) -> None:
    more = ["--failed"] if verb == "retry" else ["out"] if verb == "export" else []
    answer = run_python("-m", "galaxyhpc", verb, "runs/none", *more, cwd=tmp_path)
    assert answer.returncode == 2 and "runs/none" in answer.stderr and "Traceback" not in answer.stderr, answer.stderr


OUTPUTS = {
    "predict": ["runs/none", "a.png", "--output"],
    "export": ["runs/none"],
    "inspect": ["runs/none", "--output"],
    "explore": ["demo", "--output"],
    "demo": ["--n", "100", "--size", "32"],
    "benchmark": ["--parts", "data", "--out"],
}


@pytest.mark.parametrize("verb", OUTPUTS)
def test_what_exists_where_the_user_wants_the_output_is_kept(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / {"predict": "mine.csv", "explore": "mine.html"}.get(verb, "mine")
    file = output / "mine" if verb in ("export", "inspect") else output
    file.parent.mkdir(exist_ok=True)
    file.write_text("dear")
    command = importlib.import_module(
        f"galaxyhpc.{verb}" if verb in ("export", "demo") else f"galaxyhpc.{verb}.__main__"
    )
    assert command.main([*OUTPUTS[verb], str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.endswith(f"{output}: already exists; expected a new name, or --overwrite") and file.read_text() == "dear"
    )


def test_demo_replaces_generated_galaxies_on_demand_and_others_never(tmp_path: Path) -> None:
    command = [str(tmp_path / "g.h5"), "--n", "100", "--size", "32"]
    statuses = [galaxyhpc.demo.main([*command, *more]) for more in ([], ["--seed", "1"], ["--overwrite"])]
    (tmp_path / "g.h5").write_text("real galaxies")
    assert [*statuses, galaxyhpc.demo.main([*command, "--overwrite"])] == [0, 2, 0, 2]


def test_neither_the_help_nor_the_package_loads_what_is_not_asked_for() -> None:
    code = "import sys; from galaxyhpc.__main__ import main; main(['--help']); print(*sys.modules)"
    loaded = call(ROOT, "-c", code).stdout.splitlines()[-1].split()
    assert {"torch", "numpy", "pydantic", "argparse"}.isdisjoint(loaded)
    own = {name for name in loaded if name.startswith("galaxyhpc")}
    assert own <= {"galaxyhpc", "galaxyhpc.__main__", "galaxyhpc.runtime", "galaxyhpc.storage", *START_MODULES}


def test_the_python_api_is_there() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", galaxyhpc.__version__)
    assert all(callable(getattr(galaxyhpc, name)) for name in galaxyhpc.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = galaxyhpc.nothing


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_users_own_jobs_and_inspect_modules_break_no_launch_and_no_job(hostile: Path, script: Path) -> None:
    for start in (("-m", "galaxyhpc.launch", "tiny.yaml", "--executor", "local"), (script, "status", "runs/tiny")):
        answer = call(hostile, *start)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    (run,) = find_runs(hostile / "runs" / "tiny")
    assert read_state(run).name == "evaluated"
    run.results_file.unlink()
    repro = subprocess.run(["sh", run.path / "repro.sh"], cwd=hostile, capture_output=True, text=True)
    assert repro.returncode == 0 and run.results_file.exists(), repro.stderr


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_training_and_evaluating_by_hand_ignore_them_too(job: str, hostile: Path) -> None:
    answer = call(hostile, "-m", f"galaxyhpc.{job}", "runs/none")
    assert answer.returncode == 2 and "imported" not in answer.stderr and len(answer.stderr.splitlines()) == 1


def test_a_child_is_handed_the_path_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/somewhere", str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # which some clusters do not pass on to their jobs
    assert make_child_environment()["PYTHONPATH"] == f"{ROOT}:{ROOT}"
    monkeypatch.delenv("PYTHONPATH")
    assert make_child_environment() == {"PYTHONSAFEPATH": "1"} and format_assignments() == "PYTHONSAFEPATH=1"
    monkeypatch.setattr(sys, "path", [str(ROOT), "/somewhere"])  # as in `python -m`, called in the checkout
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert make_child_environment() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{ROOT}:/mine"}
    command = f"{make_python_command()} -c 'import sys; print(sys.path[:2])'"
    answer = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str([str(ROOT), "/mine"])
