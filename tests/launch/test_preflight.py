"""Runs are checked before anything is submitted."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile

import h5py
import numpy as np
import pytest
from helpers import sources
from helpers.data_files import write_file, write_images_with_missing_filter
from helpers.tiers import slow

from galaxyhpc.config.conditions import DEFAULT_CONDITIONS, list_severity_pairs
from galaxyhpc.config.schema import (
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.sources import hdf5
from galaxyhpc.launch import preflight, smoke_test
from galaxyhpc.launch.__main__ import PROBLEMS_LOG_WIDTH, main
from galaxyhpc.launch.galaxy_checks import fill_in_class_names
from galaxyhpc.models import profile
from galaxyhpc.models.build_model import build_model, count_parameters, multiply_adds
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

SMALL = DataConfig(image_size=33, demo=DemoConfig(galaxies=300, size=32))


def run(group: str | None, cache: Path, seed: int = 0, **changed: object) -> RunConfig:
    model = ModelConfig(group=group, scale=0.1) if group else ModelConfig(architecture="cnn", scale=0.1)
    return RunConfig(model=model, data=SMALL.model_copy(update={"cache": str(cache), **changed}), seed=seed)


def problems(runs: list[RunConfig], directory: Path) -> list[str]:
    """Return what is wrong, and see that nothing was written because of it."""
    before = sorted(directory.rglob("*"))
    with pytest.raises(preflight.PreflightError) as caught:
        preflight.check_sweep(runs, directory)
    assert sorted(directory.rglob("*")) == before
    return str(caught.value).splitlines()


def galaxies(path: Path, seed: int = 0, count: int = 120) -> Path:
    """Write a file laid out as Galaxy10_DECals.h5, pixels of noise."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["images"] = random.integers(0, 255, (count, 16, 16, 3), np.uint8)
        file["ans"] = np.arange(count) % 10
        file["ra"], file["dec"] = random.uniform(0, 360, count), random.uniform(-30, 60, count)
    return path


def test_the_network_of_every_run_is_profiled(tmp_path: Path) -> None:
    runs = [run("C4", tmp_path), run("C4", tmp_path, seed=1), run(None, tmp_path)]
    profiles = preflight.check_sweep(runs, tmp_path / "sweep").networks
    assert list(profiles) == [config.run_id for config in runs]
    network, first = build_model(runs[0].model, 33), profiles[runs[0].run_id]
    assert (first.parameters, first.multiply_adds) == (count_parameters(network), multiply_adds(network, 33))
    assert profiles[runs[1].run_id] == first != profiles[runs[2].run_id]
    assert not (tmp_path / "sweep").exists()


def test_a_network_with_a_thousand_seeds_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    profile_network = profile.profile_network
    monkeypatch.setattr(profile, "profile_network", lambda *key: built.append(key) or profile_network(*key))
    runs = [run("C2", tmp_path, seed) for seed in range(1000)]
    assert len(preflight.check_sweep(runs, tmp_path / "sweep").configs) == 1000
    assert len(built) == 1


def test_all_problems_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    monkeypatch.setattr(smoke_test, "INVARIANCE_TOLERANCE", 0.0)  # so that rounding alone is a problem
    sources = [str(tmp_path / name) for name in ("absent.h5", "text.h5")]
    runs = [run(group, tmp_path, source=source) for group, source in zip(("C4", "D4"), sources, strict=True)]
    lines = problems(runs, tmp_path / "sweep")
    assert len(lines) == 5
    assert (
        lines[0].startswith("data.source: got ") and "expected one value per sweep: launch a sweep for each" in lines[0]
    )
    assert "absent.h5: got no such file" in lines[1] and "text.h5" in lines[2]
    assert lines[3].startswith("C4 steerable_cnn at 33 px: its logits change by")
    assert lines[4].startswith("D4 steerable_cnn at 33 px: its logits change by")


def test_problems_are_one_table_that_a_log_does_not_wrap() -> None:
    long = "/a/long/path" * 30
    error = preflight.PreflightError([preflight.Problem(long, "got [this]", "do that")])
    console = make_console(log_width=PROBLEMS_LOG_WIDTH)
    console.file = text = io.StringIO()
    preflight.print_problems(error, console)
    assert all(word in text.getvalue() for word in (long, "got [this]", "do that", "nothing was submitted or written"))


def test_runs_that_would_be_divided_differently_are_no_sweep(tmp_path: Path) -> None:
    lines = problems([run("C2", tmp_path), run("C2", tmp_path, split_seed=1)], tmp_path / "sweep")
    assert lines == ["data.split_seed: got 0, 1; expected one value per sweep: launch a sweep for each"]


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("float32", "sgd"), ("bfloat16", "adamw"), slow("float32", "adamw"), slow("bfloat16", "sgd")],
)
def test_a_first_training_step_of_every_tiny_network_succeeds(precision: str, optimizer: str) -> None:
    train = TrainConfig(precision=precision, optimizer=optimizer, label_smoothing=0.1)
    for model in (ModelConfig(group="D4"), ModelConfig(group="C4", head="flatten"), ModelConfig(architecture="cnn")):
        assert smoke_test.check_tiny_model(model, train)[1] == ""


def test_a_first_step_without_loss_or_gradient_is_a_problem() -> None:
    model, train = ModelConfig(architecture="cnn"), TrainConfig(optimizer="sgd")
    network = build_model(model.model_copy(update=smoke_test.TINY_SETTINGS), 33)
    network.mlp[0].bias.data[0] = float("nan")
    assert "loss of nan" in smoke_test._check_training_step(network, train)
    network.mlp.requires_grad_(False)
    for value in network.mlp.parameters():
        value.grad = None
    assert "got no gradient" in smoke_test._check_training_step(network, train)


def test_other_galaxies_than_a_sweep_was_begun_with_are_refused_converted_or_not(tmp_path: Path) -> None:
    path, sweep = galaxies(tmp_path / "g.h5"), tmp_path / "sweep"
    config = run("C2", tmp_path / "cache", source=str(path), link_arcsec=0.0)
    load_split(config.data, prepare(config.data), sweep)
    assert preflight.check_sweep([config], sweep).costs.num_galaxies == 120
    elsewhere = run("C2", tmp_path / "another cache", source=str(path), link_arcsec=0.0)
    assert preflight.check_sweep([elsewhere], sweep).configs == [elsewhere]  # the same labels and positions
    galaxies(path, seed=1)
    (line,) = problems([elsewhere], sweep)
    assert "split.csv: made from galaxies" in line and "now other labels or positions of" in line and "restore" in line
    prepare(elsewhere.data)
    (line,) = problems([elsewhere], sweep)
    assert "now other fingerprint" in line
    (line,) = problems([run("C2", tmp_path, source=str(path), link_arcsec=1.0)], sweep)
    assert "split.csv: made with" in line


def _write_unreadable(path: Path, cause: str) -> str:
    """Write a file whose header and columns are right and that no job can use; return what is said."""
    images = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    if cause == "filter":
        write_images_with_missing_filter(path)
        return "compressed with filter 32001 (Blosc)"
    if cause == "positions":
        write_file(path, ra=np.zeros(120), dec=np.zeros(120))
        return "ra and dec: got 120 of 120 galaxies at ra 0, dec 0"
    if cause == "pixels":
        images[60:] = 0
        write_file(path, images=images)
        return "images: got 60 of 120 images from row 0 on with one value"
    write_file(path, ra=np.full(120, 30.0), dec=np.where(np.arange(120) >= 108, 1.0, np.arange(120) / 2.0 + 10))
    return "class 9 (Edge-on with Bulge): got no galaxy for"


@pytest.mark.parametrize("link_arcsec", [67.0, 0.0])
@pytest.mark.parametrize("cause", ["filter", "positions", "pixels", "division"])
def test_a_file_that_every_run_would_fail_at_is_a_problem_with_its_cause(
    tmp_path: Path, cause: str, link_arcsec: float
) -> None:
    said = _write_unreadable(tmp_path / "a.h5", cause)
    config = run("C2", tmp_path / "cache", source=str(tmp_path / "a.h5"), link_arcsec=link_arcsec)
    (line,) = problems([config], tmp_path / "sweep")
    assert said in line and "smaller data.link_arcsec" not in line
    assert not (tmp_path / "cache").exists()


def test_galaxies_that_are_too_close_for_the_link_are_told_before_a_job_divides_them(tmp_path: Path) -> None:
    dec = np.where(np.arange(120) >= 108, 1.0 + np.arange(120) / 1000, np.arange(120) / 2.0 + 10)  # 3.6 arcsec apart
    path = str(write_file(tmp_path / "a.h5", ra=np.full(120, 30.0), dec=dec))
    (line,) = problems([run("C2", tmp_path / "cache", source=path)], tmp_path / "sweep")
    assert "linked by data.link_arcsec (67)" in line and "expected a smaller data.link_arcsec" in line
    followed = run("C2", tmp_path / "cache", source=path, link_arcsec=1.0)
    assert preflight.check_sweep([followed], tmp_path / "sweep").configs == [followed]


def test_a_file_of_several_image_sizes_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    check_last_slice = hdf5._check_last_slice
    monkeypatch.setattr(hdf5, "_check_last_slice", lambda *key: read.append(key) or check_last_slice(*key))
    path = str(write_file(tmp_path / "a.h5"))
    runs = [run(None, tmp_path / "cache", source=path, image_size=size) for size in (33, 63, 65)]
    assert preflight.check_sweep(runs, tmp_path / "sweep").costs.num_galaxies == 120
    assert len(read) == 1


def test_conditions_in_arcsec_need_the_pixel_scale_of_the_images(tmp_path: Path) -> None:
    source = sources.write_catalogue(tmp_path / "source", sources.make_sample())
    config = run("C2", tmp_path / "cache", source=str(source), classes=sources.CLASSES)
    (line,) = problems([config], tmp_path / "sweep")
    assert line.startswith(
        "evaluate.conditions: got psf_gaussian, psf_moffat, cosmic_rays, star, psf_moffat+shot_noise"
    )
    assert "expected data.field_arcsec=SIDE_OF_AN_IMAGE, or evaluate.conditions without them" in line
    data = config.data.model_copy(update={"field_arcsec": 40.0})
    assert preflight.check_sweep([config.model_copy(update={"data": data})], tmp_path / "sweep")
    clean = config.model_copy(update={"evaluate": EvaluateConfig(conditions=("clean", "rotation+shot_noise"))})
    assert preflight.check_sweep([clean], tmp_path / "sweep")


def test_classes_that_the_source_does_not_have_are_a_problem_and_not_replaced(tmp_path: Path) -> None:
    source = sources.write_hdf5(tmp_path / "a.h5", sources.make_sample())
    for path, message in (
        (str(source), "got 3 classes; expected the 2 of"),
        ("demo", "got 10 classes; expected the 2"),
    ):
        configs = fill_in_class_names([run("C2", tmp_path / "cache", source=path, classes=("E", "Sa"))])
        assert configs[0].data.classes == ("E", "Sa")
        (line,) = problems(configs, tmp_path / "sweep")
        assert message in line


def test_a_missing_image_of_a_catalogue_is_a_problem_before_a_job_starts(tmp_path: Path) -> None:
    source = sources.write_catalogue(tmp_path / "source", sources.make_sample())
    (tmp_path / "source/g007.png").unlink()
    config = run("C2", tmp_path / "cache", source=str(source), classes=sources.CLASSES, field_arcsec=40.0)
    (line,) = problems([config], tmp_path / "sweep")
    assert line.startswith(f"data.source: {source}: image files: got 1 of 120 that do not exist, such as ")
    assert "g007.png (catalogue.csv, line 9); expected names relative to data.images" in line


def test_a_label_fraction_that_leaves_a_process_no_batch_is_a_problem(tmp_path: Path) -> None:
    config = run("C2", tmp_path, label_fraction=0.001)
    resources = config.resources.model_copy(update={"nodes": 6})
    assert preflight.check_sweep([config], tmp_path / "sweep").configs == [config]
    (line,) = problems([config.model_copy(update={"resources": resources})], tmp_path / "sweep")
    assert line.startswith("data.label_fraction: got 0.001, which leaves 10 training galaxies; expected 2 or more")


def test_a_directory_that_jobs_cannot_write_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (line,) = problems([run("C2", tmp_path / "file" / "cache")], tmp_path / "sweep")
    assert line.startswith(f"{tmp_path / 'file' / 'cache'}: got Not a directory; expected a directory to write in")


def test_a_converted_cache_need_not_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(write_file(tmp_path / "a.h5"))
    config = run("C2", tmp_path / "cache", source=source)
    prepare(config.data)
    monkeypatch.setattr(preflight, "TemporaryFile", _refuse_in(tmp_path / "cache"))
    assert preflight.check_sweep([config], tmp_path / "sweep").configs == [config]
    (line,) = problems([run("C2", tmp_path / "cache", source=source, image_size=63)], tmp_path / "sweep")
    assert line.startswith(f"{tmp_path / 'cache'}: got Permission denied; expected")


def _refuse_in(refused: Path) -> Callable[..., AbstractContextManager[object]]:
    """Return a TemporaryFile that has no permission in one directory: tests may run as root, who has any."""

    def open_file(dir: Path) -> AbstractContextManager[object]:
        if dir == refused:
            raise PermissionError(errno.EACCES, "Permission denied")
        return TemporaryFile(dir=dir)

    return open_file


def test_disk_space_is_estimated_for_missing_files_only(tmp_path: Path) -> None:
    config = run("C2", tmp_path / "cache")
    networks = {config.run_id: profile.NetworkProfile(10**6, 1)}
    sweep, num_severities = tmp_path / "sweep", len(list_severity_pairs(DEFAULT_CONDITIONS))
    result_bytes = num_severities * 0.2 * 300 * 41 + preflight.LOG_BYTES
    estimate = preflight.estimate_bytes([config], networks, 300, sweep)
    assert estimate == {sweep: pytest.approx(result_bytes + 52e6), tmp_path / "cache": 300 * 3 * (33**2 + 32**2)}
    trained = RunDir(sweep / config.run_id)
    write_text(trained.best_file, "")
    prepare(config.data)
    estimate = preflight.estimate_bytes([config], networks, 300, sweep)
    assert estimate == {sweep: pytest.approx(result_bytes), tmp_path / "cache": 0.0}
    classes = tuple(f"class {number}" for number in range(1000))
    many = config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})})
    bytes_by_directory = preflight.estimate_bytes([many], networks | {many.run_id: networks[config.run_id]}, 300, sweep)
    logit_bytes = num_severities * 0.2 * 300 * 4002
    assert bytes_by_directory[sweep] == pytest.approx(logit_bytes + preflight.LOG_BYTES + 52e6)  # another run


def test_a_disk_that_would_fill_up_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LOG_BYTES", 1e18)
    (line,) = problems([run("C2", tmp_path)], tmp_path / "sweep")
    assert "1000000000.0 GB are needed" in line and "GB are free; free disk space" in line


RSS = """
import sys, torch, galaxyhpc.training.trainer
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.profile import profile_network, estimate_training_bytes
torch.set_num_threads(1)
group, size, batch = sys.argv[1] or None, int(sys.argv[2]), int(sys.argv[3])
model = ModelConfig(group=group, scale=0.5) if group else ModelConfig(architecture="cnn")
config = RunConfig(model=model, data=DataConfig(image_size=size), train=TrainConfig(batch_size=batch))
estimate = estimate_training_bytes(profile_network(model, size), config)
network = build_model(model, size)
optimizer = torch.optim.AdamW(network.parameters())
for _ in range(2):
    optimizer.zero_grad()
    network(torch.rand(batch, 3, size, size)).sum().backward()
    optimizer.step()
with open("/proc/self/status") as file:  # not ru_maxrss: a process inherits that of the one which started it
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(estimate / (1024 * peak))
"""


@pytest.mark.parametrize(("group", "size", "batch"), [("C16", "33", "2"), ("", "65", "192")])
@pytest.mark.slow
def test_the_memory_estimate_is_near_what_a_process_takes_at_its_peak(group: str, size: str, batch: str) -> None:
    answer = subprocess.run([sys.executable, "-c", RSS, group, size, batch], capture_output=True, text=True, check=True)
    assert 0.75 < float(answer.stdout) < 1.33


def test_a_split_that_cannot_be_read_refuses_the_launch_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "base: {model: {scale: 0.1}, data: {image_size: 33, demo: {galaxies: 300, size: 32}}}\n"
    (tmp_path / "tiny.yaml").write_text(text + "blocks: [points: [{model.architecture: cnn}]]\n")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "split.csv").write_bytes(b"\xff\xfe\x00")
    assert main(["tiny.yaml", "--executor", "local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "split.csv" in line


def test_gpus_without_a_process_are_a_warning(tmp_path: Path) -> None:
    resources = [{}, {"gpus_per_node": 2}, {"gpus_per_node": 2, "tasks_per_node": 2}]
    config = run("C1", tmp_path)
    runs = [config.model_copy(update={"resources": ResourcesConfig(**settings)}) for settings in resources]
    (warning,) = preflight._find_idle_gpus(runs)
    assert str(warning) == "resources: got 2 GPUs and 1 tasks per node; set tasks_per_node: 2 to use them all"


def test_runs_with_other_classes_are_no_sweep(tmp_path: Path) -> None:
    runs = [run("C2", tmp_path), run("C2", tmp_path, classes=("E", "Sp"))]
    lines = problems(runs, tmp_path / "sweep")
    assert lines[0].startswith("data.classes: got (") and "expected one value per sweep" in lines[0]


@pytest.mark.parametrize("num_classes", [2, 3, 1000])
def test_a_network_of_any_number_of_classes_passes_its_trial(num_classes: int) -> None:
    model = ModelConfig(group="C2", scale=0.1)
    assert smoke_test.check_tiny_model(model, TrainConfig(), num_classes)[1] == ""
    network = build_model(model, 33, num_classes)
    assert profile.profile_network(model, 33, num_classes).parameters == count_parameters(network)


def test_a_class_that_no_split_can_share_is_told_by_its_name(tmp_path: Path) -> None:
    labels, dec = np.arange(120) % 2, np.linspace(-20, 60, 120)
    labels[:6], dec[:6] = 2, 10.0  # six galaxies at one place are one sky group
    file = write_file(tmp_path / "a.h5", classes=["E", "Sp", "Ring & co"], ans=labels, dec=dec, ra=np.full(120, 5.0))
    lines = problems([run("C2", tmp_path, source=str(file), classes=("E", "Sp", "Ring & co"))], tmp_path / "sweep")
    assert "class 2 (Ring & co): got no galaxy for " in "\n".join(lines)
