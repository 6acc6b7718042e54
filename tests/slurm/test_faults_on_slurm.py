"""Every fault of a cluster at once, on a real Slurm: two-process trainings are preempted, killed, starved and cut off.

All of them train the same run, each in a sweep of its own, so that one unbroken run says how all have to end. They
start together on one node, where their meeting points must not collide; what does not come back by itself is
submitted again, as a second launch would.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from galaxyhpc import checkpoint, cluster, slurm
from galaxyhpc.config import (
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
    WantedResources,
)
from galaxyhpc.data import prepare
from galaxyhpc.rundir import RunDir, state, write_text
from galaxyhpc.verify_resume import digests
from jobs.train import TrainJob

DEADLINE = 400.0  # s, for all faults together, on a machine that does other things as well
AT = 10  # the step from which on a fault may strike

UNBROKEN = "nothing"
PREEMPTED = "preempted, with notice"
WITHOUT_NOTICE = "preempted, without notice"
TIME = "time limit"
NODE = "node lost"
TASK = "one process killed"
SAVING = "killed while saving"
CANCELLED = "scancel"
DISK = "disk full"
EARLY = "USR2 before Python listens"
TERM = "TERM that Slurm did not mean"
ARRAY = "USR2 to an array element, repeated"
LOOP = "requeued without progress"
FEWER = "four processes, then two"
CROWD = (UNBROKEN, TIME, TASK, SAVING, CANCELLED, DISK, EARLY, TERM, ARRAY, LOOP)  # two processes each, on node1
SUBMITTED_AGAIN = (TASK, SAVING, CANCELLED, DISK, LOOP, FEWER)  # the others come back by themselves

CONFIG = RunConfig(
    data=DataConfig(image_size=33, demo=DemoConfig(galaxies=300, size=32)),
    model=ModelConfig(architecture="cnn", scale=0.1),
    train=TrainConfig(epochs=4, batch_size=8),
    evaluate=EvaluateConfig(conditions=("clean",)),
    resources=WantedResources(checkpoint_minutes=0.0),
)
TWO = ResourcesConfig(tasks_per_node=2, time_minutes=60, exclude_nodes=("node2", "node3", "node4"))
ELSEWHERE = {
    PREEMPTED: {"partition": "low", "exclude_nodes": ("node1", "node3", "node4")},
    WITHOUT_NOTICE: {"exclude_nodes": ("node1", "node2", "node3")},
    NODE: {"exclude_nodes": ("node1", "node2", "node4")},
    FEWER: {"tasks_per_node": 4},
}


@dataclass
class Patient:
    """A run, the job it has now, and what has happened to it."""

    fault: str
    run: RunDir
    jobs: list[str] = field(default_factory=list)
    struck: float | None = None  # when, in seconds since 1970
    newest: int = 0  # checkpoint on the disk at that moment

    def submit(self) -> None:
        """Hand the run to Slurm, as a launch does; twice in one array where the array is the point."""
        resources = TWO.model_copy(update=ELSEWHERE.get(self.fault, {}) if not self.jobs else {})
        part = cluster.Array(resources, [self.run] * (2 if self.fault == ARRAY else 1), 1, None)
        submission = cluster.Submission(self.run.sweep)
        self.jobs += submission.stage("train", TrainJob, [part], [""])[0][:1]

    @property
    def job(self) -> str:
        return self.jobs[-1]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [event for event in self.run.events() if event["event"] == "started"]

    @property
    def step(self) -> int:
        """The newest step that is on the disk."""
        return max((int(path.name[5:]) for path in checkpoint.found(self.run)), default=0)

    def processes(self) -> list[int]:
        """The processes that hold the run, rank 0 first."""
        held = {f":{lock.stat().st_ino}": lock.name for lock in self.run.path.glob(".lock-*")}
        found = {}
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and (name := held.get(words[5][words[5].rindex(":") :])):
                found[name] = int(words[4])
        return [found[name] for name in sorted(found)]

    def kill(self, number: int, *ranks: int) -> None:
        for rank, process in enumerate(self.processes()):
            if rank in ranks or not ranks:
                with suppress(ProcessLookupError):
                    os.kill(process, number)


def preempt(patient: Patient) -> None:
    """A job of a higher partition takes the node."""
    command = ["sbatch", "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 2"]
    subprocess.run([*command, f"--nodelist={patient.starts[-1]['nodes']}"], check=True, capture_output=True)


def crash(patient: Patient) -> None:
    """A node loses power: its slurmd and all processes of its job are gone in the same moment."""
    home = Path(os.environ["SLURM_CONF"]).parents[1]
    os.kill(int((home / "run" / "slurmd-node3.pid").read_text()), signal.SIGKILL)
    steps = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{patient.job}\."], capture_output=True, text=True)
    for step in map(int, steps.stdout.split()):
        os.kill(step, signal.SIGKILL)
    patient.kill(signal.SIGKILL)


def kill_while_saving(patient: Patient) -> None:
    give_up = time.monotonic() + 60
    while not list(patient.run.checkpoints.glob(".step_*")):
        assert time.monotonic() < give_up
    patient.kill(signal.SIGKILL)


def fill(patient: Patient) -> None:
    """Leave no byte on the run's disk."""
    with suppress(OSError), (patient.run.sweep / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def cancel(patient: Patient) -> None:
    subprocess.run(["scancel", patient.job], check=True)


def hang_until_killed(patient: Patient) -> None:
    """The node hangs while Slurm takes the job back: nothing is saved although it was told."""
    subprocess.run(["scontrol", "requeue", patient.job], check=True)
    while patient.processes():
        patient.kill(signal.SIGSTOP)
        time.sleep(0.01)


def signal_again_and_again(patient: Patient) -> None:
    """While siblings wait, scancel delivers, calls that a transitional state, and delivers again some seconds later."""
    again = f"timeout 15 scancel --signal=USR2 {patient.job} >/dev/null 2>&1 &"
    subprocess.run(["sh", "-c", again], check=True)


def run_out_of_time(patient: Patient) -> None:
    """Slurm looks every 30 s and tells 90 s before the end; it wakes with its signal what is too slow to be done."""
    patient.kill(signal.SIGSTOP)
    begun = next(event["time"] for event in patient.run.events() if event["event"] == "assigned")
    used = time.time() - begun
    limit = f"TimeLimit={math.ceil(used / 60) + 2}"
    subprocess.run(["scontrol", "update", f"JobId={patient.job}", limit], check=True)


STRIKES: dict[str, Callable[[Patient], object]] = {
    PREEMPTED: preempt,
    WITHOUT_NOTICE: preempt,
    TIME: run_out_of_time,
    NODE: crash,
    TASK: lambda patient: patient.kill(signal.SIGKILL, 1),
    SAVING: kill_while_saving,
    CANCELLED: cancel,
    DISK: fill,
    TERM: lambda patient: subprocess.run(["scancel", "--signal=TERM", f"{patient.job}.0"], check=True),
    ARRAY: signal_again_and_again,
    FEWER: cancel,
}


def in_queue(patient: Patient) -> str:
    """The state of the patient's job, empty when it is over."""
    queued = (slurm.queue() or {}).get(patient.job)
    return queued.state if queued else ""


def treat(patient: Patient) -> bool:
    """Do what is due to a patient at this moment; return whether it is done with."""
    if patient.run.best_file.exists():
        return True
    if patient.fault == EARLY and not patient.starts and in_queue(patient) == "RUNNING":
        subprocess.run(["scancel", "--signal=USR2", f"{patient.job}.0"], check=False, capture_output=True)
        patient.struck = time.time()
    if patient.fault == LOOP and patient.struck is None:
        if state(patient.run).name == "failed":
            patient.struck, patient.newest = time.time(), patient.step
        elif patient.processes() and in_queue(patient) == "RUNNING":
            hang_until_killed(patient)
    if patient.fault in STRIKES and patient.struck is None and patient.step >= AT:
        patient.struck, patient.newest = time.time(), patient.step
        STRIKES[patient.fault](patient)
    if patient.fault == TIME and patient.struck and in_queue(patient) == "PENDING":
        subprocess.run(["scontrol", "update", f"JobId={patient.job}", "TimeLimit=60"], check=True)
    if patient.fault in SUBMITTED_AGAIN and patient.struck and len(patient.jobs) == 1 and not in_queue(patient):
        (patient.run.sweep / "filler").unlink(missing_ok=True)
        patient.submit()
    return False


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Patient]]:
    """All faults, each on its patient, until every run is trained."""
    place = tmp_path_factory.mktemp("a storm")
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"cache": str(place / "cache")})})
    prepare(config.data)
    small = place / DISK
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        patients = {
            fault: Patient(fault, RunDir(place / fault / config.run_id)) for fault in (*CROWD, *ELSEWHERE)
        }  # the unbroken one first
        for patient in patients.values():
            write_text(patient.run.config_file, config.model_dump_json())
            patient.submit()
        give_up = time.monotonic() + DEADLINE
        slurmd = False
        while False in [treat(patient) for patient in patients.values()]:
            node = patients[NODE]
            if node.struck and not slurmd and in_queue(node) == "PENDING":  # it has to go on elsewhere
                elsewhere = ["scontrol", "update", f"JobId={node.job}", "ExcNodeList=node1,node2,node3"]
                subprocess.run(elsewhere, check=True)
                slurmd = subprocess.run(["slurmd", "-N", "node3"]).returncode == 0  # somebody switches it on again
            assert time.monotonic() < give_up, evidence(patients)
            time.sleep(0.1)
        while slurm.queue():
            time.sleep(0.2)
        yield patients
    finally:
        left = [job for patient in patients.values() for job in patient.jobs]
        subprocess.run(["scancel", *left], check=False)
        subprocess.run(["umount", "--lazy", small], check=False)


def evidence(patients: dict[str, Patient]) -> str:
    """What is to be known of a storm that does not end."""
    lines = [subprocess.run(["squeue"], capture_output=True, text=True).stdout]
    for fault, patient in patients.items():
        if not patient.run.best_file.exists():
            lines.append(f"{fault}: {patient.jobs} step {patient.step} struck {patient.struck} {state(patient.run)}")
            lines += [str(event) for event in patient.run.events()[-4:]]
            lines += [log.read_text()[-1500:] for log in sorted((patient.run.sweep / "log").glob("*.out"))]
    return "\n".join(lines)


def test_every_fault_ends_with_the_bits_of_an_unbroken_run(storm: dict[str, Patient]) -> None:
    wanted = digests(storm[UNBROKEN].run)
    print(f"\n{'fault':36}{'comes back':18}{'struck at':>10}{'resumed at':>11}{'bit-equal':>10}{'seconds':>8}")
    different = []
    for fault, patient in storm.items():
        equal = digests(patient.run) == wanted
        later = [event for event in patient.starts if patient.struck and event["time"] > patient.struck]
        resumed, seconds = (later[0]["step"], later[0]["time"] - patient.struck) if later else ("-", 0.0)
        how = "launched again" if fault in SUBMITTED_AGAIN else "by itself"
        print(f"{fault:36}{how:18}{patient.newest:>10}{resumed:>11}{'yes' if equal else 'no':>10}{seconds:>8.1f}")
        if not equal and fault != FEWER:
            different.append(fault)
        if fault != UNBROKEN:
            assert later and (len(patient.starts) >= 2 or fault == LOOP), fault
            assert later[0]["step"] >= patient.newest or fault == EARLY, f"{fault}: saved steps were lost"
    assert different == []


def test_on_fewer_processes_the_same_galaxies_make_up_every_step(storm: dict[str, Patient]) -> None:
    one, other = storm[FEWER].run, storm[UNBROKEN].run
    assert [event["world"] for event in storm[FEWER].starts] == [4, 2]
    assert [record["samples"] for record in one.metrics()] == [record["samples"] for record in other.metrics()]
    assert len({record["samples"] for record in one.metrics()}) == CONFIG.train.epochs


def test_what_comes_back_by_itself_was_not_called_a_failure_and_left_no_stale_result(storm: dict[str, Patient]) -> None:
    for fault, patient in storm.items():
        if fault not in SUBMITTED_AGAIN:
            failed = [event for event in patient.run.events() if event["event"] == "failed"]
            assert failed == [] or fault == NODE, failed
            assert len(patient.jobs) == 1
        results = list((patient.run.sweep / "log").glob(f"{patient.job}_*_result.pkl"))
        assert results and all(pickle.loads(path.read_bytes()) == ("success", "done") for path in results), fault


def test_a_full_disk_and_a_crash_loop_say_what_they_are(storm: dict[str, Patient]) -> None:
    failed = [event for event in storm[DISK].run.events() if event["event"] == "failed"]
    logs = (storm[DISK].run.sweep / "log").glob(f"{storm[DISK].jobs[0]}_*.out")
    said = [*(event["why"] for event in failed), *(log.read_text() for log in logs)]  # the record may find no room
    assert any("No space left on device" in text for text in said)
    assert {event["cause"] for event in failed} <= {"disk", "connection"}, failed
    loop = [event for event in storm[LOOP].run.events() if event["event"] == "failed"]
    assert loop[0]["cause"] == "no progress" and "was started 3 times" in loop[0]["why"]


def test_eight_jobs_of_two_processes_start_on_one_node_and_none_meets_anothers(storm: dict[str, Patient]) -> None:
    first = [storm[fault].starts[0] for fault in CROWD[:8]]  # as many as the node carries
    assert {event["nodes"] for event in first} == {"node1"} and {event["world"] for event in first} == {2}
    assert [event["job"].partition(".")[0] for event in first] == [storm[fault].jobs[0] for fault in CROWD[:8]]
    assert max(event["time"] for event in first) - min(event["time"] for event in first) < 60


def test_no_node_is_left_draining_and_no_process_is_left_behind(storm: dict[str, Patient]) -> None:
    nodes = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], capture_output=True, text=True)
    assert {line.split()[1] for line in nodes.stdout.splitlines()} == {"idle"}, nodes.stdout
    assert all(patient.processes() == [] for patient in storm.values())
