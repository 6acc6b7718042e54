"""Whole commands in environments of other users: none of it changes a figure, a number, or whether a command starts.

Real processes: settings of matplotlib and other libraries, output that is not UTF-8, no home directory.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.data_files import write_file
from helpers.sweeps import collect_sweep

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.models.build_model import build_model
from galaxyhpc.storage.caches import LIBRARY_CACHES
from galaxyhpc.storage.files import sha256, write_text
from galaxyhpc.storage.run_dir import RunDir

ROOT = Path(__file__).parents[1]
DARK_STYLE = "axes.facecolor: black\nfigure.facecolor: black\nfont.family: serif\nfont.size: 30\nsavefig.bbox: tight\n"
SWEEP = """# 90° rotations, for Jürgen †
name: tiny
base:
  data: {source: Gäläxien.h5, image_size: 33}
  model: {scale: 0.1}
  train: {epochs: 1, batch_size: 50}
blocks: [{points: [{model.group: C4}]}]
"""
NO_UTF8 = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
# without an entry in passwd; it may read all files, such as those of a Python in the home directory of root
AS_ANOTHER_USER = ["setpriv", "--reuid=54321", "--clear-groups"]
AS_ANOTHER_USER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
NOT_INHERITED = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", *LIBRARY_CACHES)


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """A directory with a data file, a sweep, the results of one, and a network; every user may write everywhere."""
    directory = Path(tempfile.mkdtemp(prefix="galaxyhpc-environment-"))
    data_file = write_file(directory / "Gäläxien.h5")
    write_text(directory / "tiny.yaml", SWEEP)
    sweep = collect_sweep(directory / "runs" / "measured")
    sweep.plan.to_csv(directory / "runs" / "measured" / "plan.csv", index=False)
    data = DataConfig(source=str(data_file), cache=str(directory / "cache"), image_size=33)
    config = RunConfig(model=ModelConfig(group="C4", scale=0.1), data=data)
    run = RunDir(directory / "runs" / "trained" / "run")
    write_text(run.config_file, config.model_dump_json())
    load_split(data, prepare(data), run.sweep_dir)
    torch.manual_seed(0)
    torch.save({"model": build_model(config.model, 33).state_dict()}, run.best_file)
    yield directory
    shutil.rmtree(directory)


def call(directory: Path, verb: str, *arguments: str, is_nobody: bool = False, **environment: str) -> str:
    """Run a command, perhaps as a user who is not in passwd, with these variables of its own; return its output."""
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o777)
    kept = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    kept |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [*(AS_ANOTHER_USER if is_nobody else ()), sys.executable, "-m", f"galaxyhpc.{verb}", *arguments]
    answer = subprocess.run(command, cwd=directory, env=kept | environment, capture_output=True, timeout=300)
    text = str((answer.stdout + answer.stderr).decode("latin-1"))
    assert answer.returncode == 0 and "Traceback" not in text and "Warning" not in text, text
    return text


def hash_files(*paths: Path) -> dict[str, str]:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return {file.name: sha256(file) for file in files if file.suffix in (".png", ".pdf", ".html")}


@pytest.fixture(scope="module")
def hostile(workspace: Path) -> dict[str, str]:
    """Variables of a user with settings of their own, some of them damaged."""
    home = workspace / "home"
    write_text(home / ".config" / "matplotlib" / "matplotlibrc", DARK_STYLE)
    for settings in (home / ".config" / "astropy" / "astropy.cfg", home / "matplotlibrc"):
        settings.parent.mkdir(exist_ok=True)
        settings.write_bytes(b"text.usetex: True\n[[[ Gr\xfc\xdfe\n")
    backend = "module://matplotlib_inline.backend_inline"
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "MATPLOTLIBRC": str(home / "matplotlibrc"),
        "MPLBACKEND": backend,
        "SOURCE_DATE_EPOCH": "today",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "arguments", "outputs"),
    [
        ("aggregate", ["runs/measured"], ["runs/measured/report"]),
        ("explore", ["Gäläxien.h5", "--output", "explore.html", "--overwrite"], ["explore.html"]),
        ("inspect", ["runs/trained/run", "--conditions", "rotation"], ["runs/trained/run/inspect"]),
    ],
)
def test_a_users_settings_change_no_byte_of_a_figure(
    verb: str, arguments: list[str], outputs: list[str], workspace: Path, hostile: dict[str, str]
) -> None:
    paths = [workspace / name for name in outputs]
    call(workspace, verb, *arguments, HOME=str(workspace))
    expected = hash_files(*paths)
    # in the current directory, matplotlib looks there first
    write_text(workspace / "matplotlibrc", f"{DARK_STYLE}text.usetex: True\n")
    call(workspace, verb, *arguments, **hostile)
    assert hash_files(*paths) == expected
    (workspace / "matplotlibrc").unlink()
    assert len(expected) > 2 or verb == "explore"


@pytest.mark.drawn
def test_figures_in_a_notebook_with_a_style_of_its_own_are_the_same() -> None:
    import matplotlib
    from helpers.tables import make_tables

    from galaxyhpc.analysis.tables import ReportInfo
    from galaxyhpc.report.figures import FIGURES
    from galaxyhpc.report.figures.defaults import use_default_style

    def draw() -> bytes:
        with use_default_style():
            figure = FIGURES["pareto"](make_tables(), ReportInfo("a sweep", False, 0.1))
            assert figure is not None
            file = io.BytesIO()
            figure.savefig(file, format="png")
            return file.getvalue()

    expected = draw()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.family": "serif"}):
        before = dict(matplotlib.rcParams)
        assert draw() == expected and dict(matplotlib.rcParams) == before


COMMANDS = [
    ("status", ["runs/measured"]),
    ("launch", ["tiny.yaml", "--dry-run", "--executor", "local"]),
    ("aggregate", ["runs/measured", "--no-intervals"]),
    ("explore", ["Gäläxien.h5", "--output", "Gäläxien.html", "--overwrite"]),
    ("predict", ["runs/trained/run", "Gäläxien.h5", "--overwrite"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "variables"), [(COMMANDS[1], NO_UTF8[1]), (COMMANDS[1], NO_UTF8[2])], ids=str)
def test_an_output_without_utf8_stops_no_command(
    command: tuple[str, list[str]], variables: dict[str, str], workspace: Path
) -> None:
    verb, arguments = command
    text = call(workspace, verb, *arguments, HOME=str(workspace), **variables)
    degree = "°" if variables.get("PYTHONIOENCODING") == "latin-1" else "?"
    assert text.isascii() or degree == "°"
    assert verb != "launch" or f"90{degree} rotations" in text


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process of another user")
@pytest.mark.parametrize(
    ("verb", "arguments", "home"),
    [
        *((*command, None) for command in COMMANDS),
        *((*COMMANDS[4], home) for home in ("/nonexistent", "/proc", "relative")),
    ],
)
def test_a_user_without_a_home_starts_every_command(
    verb: str, arguments: list[str], home: str | None, workspace: Path
) -> None:
    """With an output that is not UTF-8, either."""
    variables = NO_UTF8[0] | ({} if home is None else {"HOME": home})
    text = call(workspace, verb, *arguments, is_nobody=True, **variables)
    assert text.isascii()
    assert not (workspace / "~").exists() and not (workspace / "relative").exists()


def test_the_status_is_shown_to_anybody(workspace: Path) -> None:
    is_root = os.geteuid() == 0
    text = call(workspace, "status", "runs/measured", is_nobody=is_root, PYTHONIOENCODING="ascii", TMPDIR="/nowhere")
    assert "C1-steerable_cnn" in text


@pytest.mark.slow
def test_a_watch_ends_when_nobody_reads_it(workspace: Path) -> None:
    command = [sys.executable, "-m", "galaxyhpc.status", "runs/measured", "--watch"]
    with subprocess.Popen(command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().endswith(b"evaluated\n")
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")
