"""The rank of a process, from the environment of submitit or torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest

from galaxyhpc.runtime.rank import RankInfo, get_rank_info


def test_a_process_by_hand_is_alone_and_one_of_torchruns_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (get_rank_info().rank, get_rank_info().world_size) == (0, 1)
    environment = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "GROUP_WORLD_SIZE": "4",
        "TORCHELASTIC_RUN_ID": "x",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert get_rank_info() == RankInfo(3, 8, 1, 4, job_attempt="x.0")


def test_a_task_of_a_slurm_job_has_its_rank_nodes_and_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    environment |= {"SLURM_JOB_ID": "9", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    environment |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": "5"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert get_rank_info() == RankInfo(3, 4, 1, 2, "node[1-2]", "7_2.5")


def test_the_first_start_of_a_job_has_number_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert get_rank_info().job_attempt == "9.0"
