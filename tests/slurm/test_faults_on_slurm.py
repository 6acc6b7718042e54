"""Fault injection on a real Slurm, all faults at once: preemption, kills, time limit, full disk, lost node.

All jobs train the same run, each in its own sweep, so that one uninterrupted run per world size is the reference for
all. The jobs of two processes start together on one node, where their rendezvous files must not collide. A job that
does not come back by itself is submitted again, as a second launch does.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from galaxyhpc.config.schema import (
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    RequestedResources,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.launch import slurm_executor
from galaxyhpc.runtime import slurm
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.verify_resume import hash_outputs
from jobs.train import TrainJob

DEADLINE = 900.0  # s, for all faults together, on a busy machine
AT = 10  # first step at which a fault may strike

UNBROKEN = "nothing"
ALONE = "nothing, one process"
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
FEWER = "two processes, then one"
CROWD = (UNBROKEN, TIME, TASK, EARLY)  # two processes each, all on node1 at once
SUBMITTED_AGAIN = (TASK, SAVING, CANCELLED, DISK, FEWER)  # the others resume by themselves

CONFIG = RunConfig(
    data=DataConfig(image_size=33, demo=DemoConfig(galaxies=300, size=32)),
    model=ModelConfig(architecture="cnn", scale=0.1),
    train=TrainConfig(epochs=2, batch_size=8),
    evaluate=EvaluateConfig(conditions=("clean",)),
    resources=RequestedResources(checkpoint_minutes=0.0),
)
TWO = ResourcesConfig(tasks_per_node=2, time_minutes=60, exclude_nodes=("node2", "node3", "node4"))
ONE = {"tasks_per_node": 1}
LATER: dict[str, dict[str, Any]] = {FEWER: {}} | dict.fromkeys((ALONE, SAVING, CANCELLED, DISK, ARRAY, LOOP), ONE)
ELSEWHERE = {
    PREEMPTED: ONE | {"partition": "low", "exclude_nodes": ("node1", "node3", "node4")},
    WITHOUT_NOTICE: ONE | {"exclude_nodes": ("node1", "node2", "node3")},
    NODE: ONE | {"exclude_nodes": ("node1", "node2", "node4")},
}


@dataclass
class Patient:
    """A run, its current job, and the faults injected so far."""

    fault: str
    run: RunDir
    jobs: list[str] = field(default_factory=list)
    queued: str = ""  # state of the job; empty after its end
    at_once: int = 0  # largest number of jobs of the crowd that ran at the same time
    blows: dict[str, tuple[float, int]] = field(
        default_factory=dict
    )  # fault -> time in s since 1970, newest checkpoint

    def submit(self) -> None:
        """Submit the run as a launch does; twice in one array if the fault needs an array."""
        is_with_fewer = self.fault == FEWER and self.jobs
        resources = TWO.model_copy(update=ONE if is_with_fewer else (LATER | ELSEWHERE).get(self.fault, {}))
        part = slurm_executor.JobArray(resources, [self.run] * (2 if self.fault == ARRAY else 1), 1, None)
        submission = slurm_executor.Submission(self.run.sweep_dir)
        self.jobs += submission.submit_stage("train", TrainJob, [part], [""])[0][:1]

    @property
    def job(self) -> str:
        return self.jobs[-1]

    @property
    def struck(self) -> bool:
        return self.fault in self.blows

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == "started"]

    @property
    def step(self) -> int:
        """Step of the newest checkpoint."""
        return max((int(path.name[5:]) for path in checkpoint.list_checkpoints(self.run)), default=0)

    def processes(self) -> list[int]:
        """Return the ids of the processes that hold the run, rank 0 first."""
        locks = {f":{lock.stat().st_ino}": lock.name for lock in self.run.path.glob(".lock-*")}
        pids = {}
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and (name := locks.get(words[5][words[5].rindex(":") :])):
                pids[name] = int(words[4])
        return [pids[name] for name in sorted(pids)]

    def strike(self, fault: str, blow: Callable[[Patient], object]) -> None:
        self.blows[fault] = time.time(), self.step
        blow(self)

    def kill(self, number: int, *ranks: int) -> None:
        for rank, process in enumerate(self.processes()):
            if rank in ranks or not ranks:
                with suppress(ProcessLookupError):
                    os.kill(process, number)


def preempt(patient: Patient) -> None:
    """Submit a job of a higher partition, which takes the node."""
    command = ["sbatch", "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 2"]
    subprocess.run([*command, f"--nodelist={patient.starts[-1]['nodes']}"], check=True, capture_output=True)


def crash(patient: Patient) -> None:
    """Kill slurmd and all processes of the job at once, as when a node loses power."""
    home = Path(os.environ["SLURM_CONF"]).parents[1]
    os.kill(int((home / "run" / "slurmd-node3.pid").read_text()), signal.SIGKILL)
    steps = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{patient.job}\."], capture_output=True, text=True)
    for step in map(int, steps.stdout.split()):
        os.kill(step, signal.SIGKILL)
    patient.kill(signal.SIGKILL)


def kill_while_saving(patient: Patient) -> None:
    deadline = time.monotonic() + 60
    while not list(patient.run.checkpoint_dir.glob(".step_*")):
        assert time.monotonic() < deadline
    patient.kill(signal.SIGKILL)


def fill(patient: Patient) -> None:
    """Fill the run's disk."""
    with suppress(OSError), (patient.run.sweep_dir / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def cancel(patient: Patient) -> None:
    subprocess.run(["scancel", patient.job], check=True)


def hang_until_killed(patient: Patient) -> None:
    """Requeue the job while its processes are stopped, so that nothing is saved."""
    subprocess.run(["scontrol", "requeue", patient.job], check=True)
    while patient.processes():
        patient.kill(signal.SIGSTOP)
        time.sleep(0.01)


def send(number: str) -> Callable[[Patient], object]:
    """Return a fault that signals the processes, not the script that started them."""
    return lambda patient: subprocess.run(["scancel", f"--signal={number}", f"{patient.job}.0"], capture_output=True)


def signal_again_and_again(patient: Patient) -> None:
    """Signal an array task while others of its array wait: scancel then repeats the signal after some seconds."""
    again = f"timeout 15 scancel --signal=USR2 {patient.job} >/dev/null 2>&1 &"
    subprocess.run(["sh", "-c", again], check=True)


def run_out_of_time(patient: Patient) -> None:
    """Shorten the time limit: Slurm checks it every 30 s and signals 90 s before the end, which wakes the processes."""
    patient.kill(signal.SIGSTOP)
    start = next(event["time"] for event in patient.run.read_events() if event["event"] == "assigned")
    limit = f"TimeLimit={math.ceil((time.time() - start + 45) / 60)}"  # min; the signal comes at once or in 15 s
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
    ARRAY: signal_again_and_again,
    FEWER: cancel,
}


def treat(patient: Patient) -> bool:
    """Inject the next fault of a patient if it is due; return whether the patient is finished."""
    if patient.run.best_file.exists():
        return True
    if patient.fault == LOOP:
        if patient.processes() and patient.queued == "RUNNING":
            patient.strike(LOOP, hang_until_killed)
        return read_state(patient.run).name == "failed"
    if patient.fault == EARLY and not patient.starts and patient.queued == "RUNNING":
        patient.strike(EARLY, send("USR2"))
    elif patient.fault == EARLY and TERM not in patient.blows and patient.step >= AT:
        patient.strike(TERM, send("TERM"))
    elif patient.fault in STRIKES and not patient.struck and patient.step >= AT:
        patient.strike(patient.fault, STRIKES[patient.fault])
    elif patient.fault == TIME and patient.struck and patient.queued == "PENDING":
        subprocess.run(["scontrol", "update", f"JobId={patient.job}", "TimeLimit=60"], check=True)
    elif patient.fault == ARRAY and len(patient.starts) == 2:
        subprocess.run(["scancel", patient.job.replace("_0", "_1")], check=True)  # no longer needed
    elif patient.fault in SUBMITTED_AGAIN and patient.struck and len(patient.jobs) == 1 and not patient.queued:
        (patient.run.sweep_dir / "filler").unlink(missing_ok=True)
        patient.submit()
    return False


def treat_all(patients: Collection[Patient]) -> bool:
    """Query Slurm once, then treat every patient; return whether all are finished."""
    queue = slurm.get_queue()
    assert queue is not None
    for patient in patients:
        job = queue.get(patient.job)
        patient.queued = job.state if job else ""
    running = [patient for patient in patients if patient.fault in CROWD and patient.queued == "RUNNING"]
    for patient in running:
        patient.at_once = max(patient.at_once, len(running))
    return False not in [treat(patient) for patient in patients]


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Patient]]:
    """Inject every fault into its patient, until every run is trained."""
    place = tmp_path_factory.mktemp("a storm")
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"cache": str(place / "cache")})})
    galaxies = prepare(config.data)
    small = place / DISK
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        patients = {
            fault: Patient(fault, RunDir(place / fault / config.run_id)) for fault in (*CROWD, *LATER, *ELSEWHERE)
        }  # the uninterrupted one first
        for patient in patients.values():
            write_text(patient.run.config_file, config.model_dump_json())
            load_split(config.data, galaxies, patient.run.sweep_dir)
            patient.submit()
        deadline = time.monotonic() + DEADLINE
        slurmd = False
        while not treat_all(patients.values()):
            node = patients[NODE]
            if node.struck and not slurmd and node.queued == "PENDING":  # it has to resume on another node
                elsewhere = ["scontrol", "update", f"JobId={node.job}", "ExcNodeList=node1,node2,node3"]
                subprocess.run(elsewhere, check=True)
                slurmd = subprocess.run(["slurmd", "-N", "node3"]).returncode == 0  # the node is repaired
            assert time.monotonic() < deadline, evidence(patients)
            time.sleep(0.2)
        while slurm.get_queue():
            time.sleep(0.2)
        yield patients
    finally:
        left = [job for patient in patients.values() for job in patient.jobs]
        subprocess.run(["scancel", *left], check=False)
        subprocess.run(["umount", "--lazy", small], check=False)


def evidence(patients: dict[str, Patient]) -> str:
    """Describe the unfinished runs after the deadline."""
    lines = [subprocess.run(["squeue"], capture_output=True, text=True).stdout]
    for fault, patient in patients.items():
        if not patient.run.best_file.exists():
            lines.append(f"{fault}: {patient.jobs} step {patient.step} {patient.blows} {read_state(patient.run)}")
            lines += [str(event) for event in patient.run.read_events()[-4:]]
            lines += [log.read_text()[-1500:] for log in sorted((patient.run.sweep_dir / "log").glob("*.out"))]
    return "\n".join(lines)


def test_every_fault_ends_with_the_bits_of_an_uninterrupted_run(storm: dict[str, Patient]) -> None:
    expected = {1: hash_outputs(storm[ALONE].run), 2: hash_outputs(storm[UNBROKEN].run)}
    print(f"\n{'fault':36}{'resumes':18}{'struck at':>10}{'resumed at':>11}{'bit-equal':>10}{'seconds':>8}")
    different = []
    for patient in storm.values():
        looped = patient.fault == LOOP
        equal = "-" if looped else "yes" if hash_outputs(patient.run) == expected[patient.starts[-1]["world"]] else "no"
        how = {LOOP: "not at all"}.get(patient.fault) or (
            "launched again" if patient.fault in SUBMITTED_AGAIN else "by itself"
        )
        for fault, (struck, newest) in patient.blows.items():
            later = [event for event in patient.starts if event["time"] > struck]
            resumed, seconds = (later[0]["step"], later[0]["time"] - struck) if later else ("-", 0.0)
            print(f"{fault:36}{how:18}{newest:>10}{resumed:>11}{equal:>10}{seconds:>8.1f}")
            assert fault == LOOP or (later and later[0]["step"] >= newest), f"{fault}: saved steps were lost"
        if equal == "no" and patient.fault != FEWER:
            different.append(patient.fault)
        assert patient.fault in (UNBROKEN, ALONE, LOOP) or len(patient.starts) > 1
    assert {fault for patient in storm.values() for fault in patient.blows} == {*storm, TERM} - {UNBROKEN, ALONE}
    assert different == []


def test_on_fewer_processes_the_same_galaxies_make_up_every_step(storm: dict[str, Patient]) -> None:
    fewer, other = storm[FEWER].run, storm[UNBROKEN].run
    assert [event["world"] for event in storm[FEWER].starts] == [2, 1]
    assert [record["samples"] for record in fewer.read_metrics()] == [
        record["samples"] for record in other.read_metrics()
    ]
    assert len({record["samples"] for record in fewer.read_metrics()}) == CONFIG.train.epochs


def test_a_job_that_resumes_by_itself_is_no_failure_and_leaves_no_stale_result(storm: dict[str, Patient]) -> None:
    for fault, patient in storm.items():
        if fault not in SUBMITTED_AGAIN:
            failed = [event for event in patient.run.read_events() if event["event"] == "failed"]
            assert failed == [] or fault in (NODE, LOOP), failed
            assert len(patient.jobs) == 1
        if fault == LOOP:
            continue
        results = list((patient.run.sweep_dir / "log").glob(f"{patient.job}_*_result.pkl"))
        assert results and all(pickle.loads(path.read_bytes()) == ("success", "done") for path in results), fault


def test_a_full_disk_and_a_crash_loop_are_recorded_as_such(storm: dict[str, Patient]) -> None:
    failed = [event for event in storm[DISK].run.read_events() if event["event"] == "failed"]
    logs = (storm[DISK].run.sweep_dir / "log").glob(f"{storm[DISK].jobs[0]}_*.out")
    texts = [*(event["why"] for event in failed), *(log.read_text() for log in logs)]  # the record may not fit
    assert any("No space left on device" in text for text in texts)
    assert {event["cause"] for event in failed} <= {"disk", "connection"}, failed
    loop = [event for event in storm[LOOP].run.read_events() if event["event"] == "failed"]
    assert loop[0]["cause"] == "no progress" and "was started 3 times" in loop[0]["why"]


def test_four_jobs_of_two_processes_start_on_one_node_without_collision(storm: dict[str, Patient]) -> None:
    first = [storm[fault].starts[0] for fault in CROWD]
    assert {event["nodes"] for event in first} == {"node1"} and {event["world"] for event in first} == {2}
    assert [event["job"].partition(".")[0] for event in first] == [storm[fault].jobs[0] for fault in CROWD]
    assert {storm[fault].at_once for fault in CROWD} == {len(CROWD)}


def test_no_node_is_left_draining_and_no_process_is_left_behind(storm: dict[str, Patient]) -> None:
    nodes = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], capture_output=True, text=True)
    assert {line.split()[1] for line in nodes.stdout.splitlines()} == {"idle"}, nodes.stdout
    assert all(patient.processes() == [] for patient in storm.values())
