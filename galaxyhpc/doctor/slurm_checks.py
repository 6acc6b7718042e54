"""Checks of Slurm: whether it answers, what its configuration allows, and what sbatch says to a launch."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from galaxyhpc.doctor import Finding
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import format_count

# the smallest run; what the profile asks for is added by `load_sweep`
SWEEP = """
name: doctor
base: {data: {source: demo, image_size: 33, demo: {galaxies: 300, size: 33}}, model: {architecture: cnn, scale: 0.1}}
blocks: [{points: [{}]}]
"""
NOTICE = ("preempt_send_user_signal", "send_user_signal")  # Slurm 22.05, and later


def check_slurm(runs_dir: Path, profile: Path | None) -> Iterator[Finding]:
    """Yield whether Slurm answers, and what its configuration allows."""
    if shutil.which("sbatch") is None:
        yield Finding("ok", "Slurm", "not installed here: a launch runs on this machine")
        return
    if not slurm.is_up():
        if slurm.is_down():
            remedy = "try again later, or launch with --executor local"
            yield Finding("fails", "Slurm", "its controller does not answer (scontrol ping)", remedy)
        else:
            text = "installed, but not configured: a launch runs on this machine"
            yield Finding("warning", "Slurm", text, "set SLURM_CONF if there is a cluster")
        return
    settings = slurm.get_configuration()
    yield Finding("ok", "Slurm", f"{settings.get('SLURM_VERSION', 'unknown version')}, answers")
    yield from _check_settings(settings)


def _check_settings(settings: dict[str, str]) -> Iterator[Finding]:
    max_size = slurm.get_max_array_size()
    if max_size == 1:
        text = "MaxArraySize allows no arrays: every run is a job of its own"
        yield Finding("warning", "Slurm arrays", text, "ask the administrator to allow job arrays")
    else:
        yield Finding("ok", "Slurm arrays", f"MaxArraySize {max_size}: larger sweeps are split into several arrays")
    requeue = "by default" if settings.get("JobRequeue", "1") == "1" else "not by default; a launch asks for it"
    yield Finding("ok", "Slurm requeue", f"jobs are requeued {requeue} (JobRequeue)")
    yield _check_preemption(settings)
    yield _check_accounting(settings)


def _check_preemption(settings: dict[str, str]) -> Finding:
    kind = settings.get("PreemptType", "preempt/none")
    if kind == "preempt/none":
        return Finding("ok", "Slurm preemption", "none: no job is stopped for another one")
    mode = settings.get("PreemptMode", "unknown mode")
    parameters = f"{settings.get('PreemptParameters', '')},{settings.get('SlurmctldParameters', '')}".split(",")
    if not set(NOTICE) & set(parameters):
        remedy = "ask the administrator for SlurmctldParameters=preempt_send_user_signal (22.05) or "
        remedy += "PreemptParameters=send_user_signal (later)"
        text = f"{kind}, {mode}, without notice: work since the last checkpoint is lost"
        return Finding("warning", "Slurm preemption", text, remedy)
    return Finding("ok", "Slurm preemption", f"{kind}, {mode}, with notice: runs save before they are stopped")


def _check_accounting(settings: dict[str, str]) -> Finding:
    kind = settings.get("AccountingStorageType", "accounting_storage/none")
    if kind in ("accounting_storage/none", "(null)", ""):
        remedy = "`retry` asks the controller, which forgets old jobs; name the runs to retry them"
        return Finding("warning", "Slurm accounting", "none: how an old job ended is unknown", remedy)
    if not slurm.does_accounting_answer():
        return Finding("warning", "Slurm accounting", f"{kind}, but sacct does not answer", "try again later")
    return Finding("ok", "Slurm accounting", f"{kind}, sacct answers")


def check_launch(runs_dir: Path, profile: Path | None) -> Iterator[Finding]:
    """Yield what a launch of the smallest run with these resources says before it submits."""
    from galaxyhpc.config.sweep import SweepError, load_sweep
    from galaxyhpc.launch.local_executor import detect_machine
    from galaxyhpc.launch.plan import with_absolute_paths
    from galaxyhpc.launch.preflight import PreflightError, check_sweep
    from galaxyhpc.storage.sweep_dir import resolve_sweep_dir

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.yaml"
        path.write_text(SWEEP, encoding="utf-8")
        try:
            sweep = load_sweep(path, [], profile)
        except SweepError as error:
            yield Finding("fails", "profile", str(error), "correct the profile")
            return
    configs = [with_absolute_paths(config, runs_dir) for config in sweep.runs]
    try:
        checked = check_sweep(configs, resolve_sweep_dir(runs_dir, sweep.name), "auto")
    except PreflightError as error:
        for problem in error.problems:
            yield Finding("fails", "launch", f"{problem.location}: {problem.message}", problem.advice)
        return
    text = f"a run {f'with {profile} ' if profile else ''}passes all checks"
    for start in checked.start_times.values():
        text += f"; sbatch would start it at {time.strftime('%Y-%m-%d %H:%M', time.localtime(start))}"
    num_gpus = max(config.resources.resolved.gpus_per_node for config in checked.configs)
    if not slurm.is_up() and num_gpus > (num_here := len(detect_machine(None).gpu_ids)):
        text += f", but got {format_count(num_here, 'GPU')} here of {num_gpus} that the profile asks for, and no Slurm"
        yield Finding("warning", "launch", text, "runs use what is here; run this where jobs are submitted")
        return
    yield Finding("ok", "launch", text)


CHECKS: tuple[Callable[[Path, Path | None], Iterator[Finding]], ...] = (check_slurm, check_launch)
