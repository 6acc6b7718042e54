"""Log files of a run: those of its Slurm jobs lie in the sweep's log/, those of local processes in its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from galaxyhpc.storage.run_dir import RunDir

TAIL_BYTES = 64 * 1024


def quote_last_line(run: RunDir, job_id: str) -> str:
    """Return how the log of a Slurm job ends, in words; '' where there is no log."""
    file = run.sweep_dir / "log" / f"{job_id}_0_log.out"
    if not re.fullmatch(r"\d+(_\d+)?", job_id) or not file.is_file():
        return ""
    lines = read_tail(file, 100)
    causes = [line for line in lines if not line.startswith("srun: ")]  # srun reports the end of what failed
    return f"its log ends: {[*lines, *causes][-1]}" if lines else "its log is empty"


def find_newest_logs(run: RunDir, job_ids: Collection[str]) -> list[Path]:
    """Return the log files of the job that wrote last, one per process, in the order of their ranks."""
    files = [file for file in _list_files(run.log_dir) if re.search(r"_log\.(out|err)$", file.name)]
    jobs = "|".join(map(re.escape, job_ids))
    shared = _list_files(run.sweep_dir / "log") if jobs else []
    files += [file for file in shared if re.match(rf"({jobs})(_\d+)?_log\.", file.name)]
    if not files:
        return []
    newest = max(files, key=_get_mtime).name
    job = re.escape(re.sub(r"(_\d+)?_log\.(out|err)$", "", newest))
    return sorted((file for file in files if re.match(rf"{job}(_\d+)?_log\.", file.name)), key=_rank_sort_key)


def _rank_sort_key(file: Path) -> tuple[int, str]:
    return len(file.name), file.name


def _list_files(directory: Path) -> list[Path]:
    try:
        return [file for file in directory.iterdir() if file.is_file()]
    except OSError:
        return []


def _get_mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def read_tail(file: Path, num_lines: int) -> list[str]:
    """Return the last lines of a text file, without control characters of a terminal."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            text = opened.read().decode("utf-8", "replace")
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # the last state of a progress bar
    printable = ["".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in lines]
    return [line for line in printable if line][-num_lines:]
