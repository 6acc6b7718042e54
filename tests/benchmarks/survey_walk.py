"""A survey of generated galaxies through Slurm, with jobs killed at random: times, images per second, hash of parts.

    eval "$(tests/slurm/cluster up)"
    python tests/benchmarks/survey_walk.py RUN DIRECTORY --galaxies 1000000 --shards 500 --jobs 4 --kills 2

RUN is a run that was trained on generated galaxies. Shards of parquet are written to DIRECTORY/shards, with 2,000
different images of 40 px (a minute of work), as PNG, which repeat; every row has an id and a position of its own. The
prediction and its HATS catalogue go to DIRECTORY/out. With --unbroken, everything is predicted again in one process,
and the hashes are compared. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from galaxyhpc.data.simulate import render_image
from galaxyhpc.prediction.survey import SurveyDir
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import get_report_records

NUM_IMAGES, SIDE, POLL_SECONDS = 2000, 40, 1.0


def encode(row: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render_image(row % 10, [row, row % 10], SIDE)).save(file, "PNG")
    return file.getvalue()


def write_shards(directory: Path, num_galaxies: int, num_shards: int) -> None:
    """Write the galaxies with ids g0000000, ... and positions that cover the sky evenly."""
    directory.mkdir(parents=True)
    images = [encode(row) for row in range(NUM_IMAGES)]
    generator = np.random.default_rng(0)
    ra, dec = generator.uniform(0, 360, num_galaxies), np.degrees(np.arcsin(generator.uniform(-1, 1, num_galaxies)))
    for shard, rows in enumerate(np.array_split(np.arange(num_galaxies), num_shards)):
        columns = {"image": [images[row % NUM_IMAGES] for row in rows], "id": [f"g{row:07}" for row in rows]}
        table = pa.table(columns | {"ra": ra[rows], "dec": dec[rows]})
        parquet.write_table(table, directory / f"shard-{shard:04}.parquet", row_group_size=1000)


def predict(run: Path, directory: Path, output: str, *options: str) -> float:
    """Call the command; return the seconds that it took."""
    command = [sys.executable, "-m", "galaxyhpc.predict", str(run), "--input", str(directory / "shards")]
    start = time.monotonic()
    subprocess.run([*command, "--output", str(directory / output), *options], check=True)
    return time.monotonic() - start


def kill_at_random(survey: SurveyDir, num_kills: int, num_shards: int) -> list[str]:
    """Kill processes of jobs that are at work, each after a random share of the units; return what was killed."""
    shares = sorted(random.uniform(0.1, 0.7) for _ in range(num_kills))
    killed: list[str] = []
    while len(killed) < num_kills:
        time.sleep(POLL_SECONDS / 10)
        if len(survey.list_done()) < shares[len(killed)] * num_shards:
            continue
        tasks = [RunDir(path) for path in survey.path.glob("task-*") if path.name not in killed]
        task = random.choice(tasks)
        started = [event for event in task.read_events() if event["event"] == "started"]
        if started:
            os.kill(started[-1]["pid"], signal.SIGKILL)
            killed.append(task.run_id)
    return killed


def wait_for_report(survey: SurveyDir) -> None:
    """Wait until the last job has recorded its end."""
    ends = ("predicted", "failed")
    while not any(event["event"] in ends for event in get_report_records(survey.path).read_events()):
        time.sleep(POLL_SECONDS)
    while not survey.hats_dir.exists():
        time.sleep(POLL_SECONDS)


def hash_parts(survey: SurveyDir) -> str:
    """Return the SHA-256 of the contents of all parts, in their order."""
    total = hashlib.sha256()
    for number in sorted(survey.list_done()):
        total.update(survey.get_part(number).read_bytes())
    return total.hexdigest()


def count_ids(survey: SurveyDir) -> tuple[int, int]:
    """Return the number of ids in the parts, and of different ones."""
    parts = [parquet.read_table(survey.get_part(number), columns=["id"]) for number in sorted(survey.list_done())]
    ids = pa.concat_tables(parts)["id"].combine_chunks()
    return len(ids), len(ids.unique())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--galaxies", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--unbroken", action="store_true")
    options = parser.parse_args()
    survey, figures = SurveyDir((options.directory / "out").resolve()), {}
    if not (options.directory / "shards").exists():
        write_shards(options.directory / "shards", options.galaxies, options.shards)
    slurm = ("--executor", "slurm", "--max-parallel", str(options.jobs), "--hats")
    start = time.monotonic()
    figures["seconds of the command"] = predict(options.run, options.directory, "out", *slurm)
    figures["killed"] = kill_at_random(survey, options.kills, options.shards)
    wait_for_report(survey)
    figures["seconds until the report and the catalogue"] = time.monotonic() - start
    figures["galaxies per second"] = options.galaxies / figures["seconds until the report and the catalogue"]
    figures["ids, different ids"] = count_ids(survey)
    figures["bytes per galaxy"] = sum(path.stat().st_size for path in survey.parts_dir.iterdir()) / options.galaxies
    figures["hash"] = hash_parts(survey)
    if options.unbroken:
        figures["seconds, unbroken"] = predict(options.run, options.directory, "unbroken", "--executor", "debug")
        figures["hash, unbroken"] = hash_parts(SurveyDir(options.directory / "unbroken"))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
