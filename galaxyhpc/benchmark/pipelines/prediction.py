"""Predictions of a survey: images per second decoded, classified, and both, from files of each format.

Three sets of workers take turns: they decode, run the network on decoded images, or do both as `predict` does. On a CPU
each set has all cores, which both stages share: the limit of both is 1 / (1 / decoded + 1 / classified), and the slower
stage is compared as it would be with half of the cores. On a GPU the limit is the slower stage. The ratio to the limit
is also given by CPU time, which the load of other programs hardly changes.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from io import BytesIO
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from galaxyhpc.benchmark.implementations import Case
from galaxyhpc.benchmark.timing import TimingBudget
from galaxyhpc.config.schema import DataConfig, RunConfig
from galaxyhpc.data.simulate import render_image
from galaxyhpc.data.survey.units import find_units, read_unit
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.models.build_model import build_model
from galaxyhpc.prediction import pipeline
from galaxyhpc.prediction.pipeline import EncodedBatch, Pipeline
from galaxyhpc.prediction.workers import Workers
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.storage.run_dir import RunDir

SIDE = 256  # px of the images in the files
NUM_RENDERED = 20  # different galaxies
NUM_GALAXIES = 200  # in the files of a format
MIN_BATCHES = 6  # of each worker in a round: at its end, some wait for the last one

JsonDict = dict[str, Any]
Stage = Callable[[int], tuple[float, float]]
Images = NDArray[np.uint8]


def measure_predictions(cases: Iterable[Case], budget: TimingBudget, report: Callable[[list[JsonDict]], None]) -> None:
    """Time every network with every format, and report all results after each."""
    results: list[JsonDict] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), render_galaxies(SIDE))
        for case in cases:
            classifier = make_classifier(case)
            for name, path in files.items():
                if not budget.is_spent:
                    known = {"network": case.name, "format": name, "side": SIDE, "size": case.image_size}
                    results.append(known | measure_file(classifier, path, case.num_threads, budget))
                    report(results)


def write_files(folder: Path, images: Images) -> dict[str, Path]:
    """Write galaxies in every format that can be read here; return the files to predict, by format."""
    files = {}
    for name, write in WRITERS.items():
        with suppress(ImportError):  # pyarrow is an extra
            files[name] = write(folder, images)
    return files


def measure_file(classifier: Classifier, path: Path, num_workers: int, budget: TimingBudget) -> JsonDict:
    """Time rounds of decoding, of the network, and of both."""
    with ExitStack() as stack:
        stages = make_stages(classifier, path, num_workers, stack)
        seconds = {name: stage(2 * num_workers)[0] for name, stage in stages.items()}  # processes start
        seconds = {name: stage(2 * num_workers)[0] for name, stage in stages.items()}
        num_per_worker = math.ceil(2 * budget.round_seconds / max(seconds.values()))
        num_batches = num_workers * max(MIN_BATCHES, num_per_worker)
        rounds = [{name: stage(num_batches) for name, stage in stages.items()} for _ in range(budget.num_rounds)]
    num_galaxies = num_batches * pipeline.choose_batch_size([classifier.config], get_device(classifier))
    speeds = {name: num_galaxies / min(times[name][0] for times in rounds) for name in stages}
    cpu_seconds = {name: min(times[name][1] for times in rounds) / num_galaxies for name in stages}
    is_cpu = get_device(classifier).type == "cpu"
    stage_speeds = speeds["decoded"], speeds["classified"]
    limit = 1 / sum(1 / speed for speed in stage_speeds) if is_cpu else min(stage_speeds)
    result: JsonDict = {"images_per_second": speeds, "limit": limit, "fraction_of_limit": speeds["both"] / limit}
    result["fraction_of_slower"] = speeds["both"] / min(stage_speeds) * (2 if is_cpu else 1)
    if is_cpu:
        result["cpu_seconds_per_image"] = cpu_seconds
        needed = cpu_seconds["decoded"] + cpu_seconds["classified"]
        result["fraction_of_limit_by_cpu_time"] = needed / cpu_seconds["both"]
    return result


def get_device(classifier: Classifier) -> torch.device:
    """Return where its network is."""
    return next(classifier.network.parameters()).device


def make_stages(classifier: Classifier, path: Path, num_workers: int, stack: ExitStack) -> dict[str, Stage]:
    """Return what takes turns: a function of the number of batches that returns seconds and CPU seconds."""
    started = stack.enter_context(Pipeline([classifier], num_workers))
    batches = iterate_batches(path, started)
    decoded = pipeline.decode(started.decoder, next(batches))
    tasks: dict[str, Callable[[EncodedBatch], object]] = {
        "decoded": partial(pipeline.decode, started.decoder),
        "classified": partial(_classify, classifier, decoded),
        "both": started.workers.task,
    }
    if get_device(classifier).type != "cpu":
        del tasks["both"], tasks["classified"]
    stages: dict[str, Stage] = {}
    for name, task in tasks.items():
        workers = Workers(partial(_run_task, task, name == "both"), num_workers)
        stack.callback(workers.close)
        stages[name] = partial(_time_workers, workers, repeat(None) if name == "classified" else batches)
    if get_device(classifier).type != "cpu":
        stages["classified"] = lambda count: _time(
            pipeline.classify_decoded([classifier], False, repeat(decoded, count))
        )
        stages["both"] = lambda count: _time(
            pipeline.classify_decoded([classifier], False, started.workers.map(islice(batches, count)))
        )
    return stages


def iterate_batches(path: Path, started: Pipeline) -> Iterator[EncodedBatch]:
    """Yield full batches for ever, each time read from the file."""
    config = started.decoder.config
    (unit,) = find_units([str(path)], config)
    galaxies = chain.from_iterable(read_unit(unit, config) for _ in repeat(None))
    return (EncodedBatch("", batch) for batch in pipeline.make_batches(galaxies, started.batch_size))


def _classify(classifier: Classifier, decoded: pipeline.DecodedBatch, _: object) -> pipeline.PredictedBatch:
    return pipeline.collect(decoded, pipeline.run_networks([classifier], decoded.pixels, False))


def _run_task(task: Callable[[Any], object], is_result_needed: bool, item: object) -> tuple[object, float]:
    """Return the CPU seconds of a task, and its result if it is to be sent to the process that collects them."""
    start = time.process_time()
    result = task(item)
    return result if is_result_needed else None, time.process_time() - start


def _time_workers(workers: Workers, items: Iterator[object], num_batches: int) -> tuple[float, float]:
    """Return the seconds and CPU seconds, those of this process included, of a number of batches."""
    start, cpu_start = time.perf_counter(), time.process_time()
    cpu_seconds = sum(seconds for _, seconds in workers.map(islice(items, num_batches)))
    return time.perf_counter() - start, time.process_time() - cpu_start + cpu_seconds


def _time(results: Iterable[object]) -> tuple[float, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    deque(results, maxlen=0)
    return time.perf_counter() - start, time.process_time() - cpu_start


def render_galaxies(side: int) -> Images:
    """Return simulated galaxies, (NUM_RENDERED, side, side, 3)."""
    return np.stack([render_image(number % 10, [0, number], side) for number in range(NUM_RENDERED)])


def _encode(image: Images, image_format: str) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, image_format)
    return file.getvalue()


def _write_catalogue(folder: Path, images: Images, ending: str, write: Callable[[Path, Images], object]) -> Path:
    """Write NUM_GALAXIES image files and the CSV file that names them."""
    names = [f"{number}{ending}" for number in range(NUM_GALAXIES)]
    for number, name in enumerate(names):
        write(folder / name, images[number % len(images)])
    path = folder / f"{ending[1:]}.csv"
    path.write_text("\n".join(["file", *names]) + "\n", encoding="utf-8")
    return path


def _write_fits(path: Path, image: Images) -> None:
    """Write an image as if it were flux in three bands."""
    from astropy.io import fits

    flux = np.flip(image, 0).transpose(2, 0, 1).astype(np.float32) / 255
    fits.writeto(path, flux, fits.Header({"BANDS": "zrg"}))


def _write_parquet(folder: Path, images: Images) -> Path:
    import pyarrow
    from pyarrow import parquet

    encoded = [_encode(image, "JPEG") for image in images]
    structs = [{"bytes": encoded[number % len(images)], "path": None} for number in range(NUM_GALAXIES)]
    parquet.write_table(pyarrow.table({"image": structs}), folder / "images.parquet")
    return folder / "images.parquet"


def _write_hdf5(folder: Path, images: Images) -> Path:
    with h5py.File(folder / "images.h5", "w") as file:
        file["images"] = images[np.arange(NUM_GALAXIES) % len(images)]
    return folder / "images.h5"


WRITERS: dict[str, Callable[[Path, Images], Path]] = {
    "PNG": lambda folder, images: _write_catalogue(
        folder, images, ".png", lambda path, image: path.write_bytes(_encode(image, "PNG"))
    ),
    "JPEG": lambda folder, images: _write_catalogue(
        folder, images, ".jpg", lambda path, image: path.write_bytes(_encode(image, "JPEG"))
    ),
    "parquet of JPEG": _write_parquet,
    "HDF5": _write_hdf5,
    "FITS": lambda folder, images: _write_catalogue(folder, images, ".fits", _write_fits),
}


def make_classifier(case: Case) -> Classifier:
    """Return a network with random weights and the kernels that a run would choose, as a classifier."""
    config = RunConfig(data=DataConfig(image_size=case.image_size), model=case.model)
    device = torch.device(case.device)
    network = build_model(config.model, case.image_size).to(device).eval()
    shape = selection.BatchShape(pipeline.choose_batch_size([config], device), case.image_size)
    choice = selection.choose_kernels(network, shape, device, torch.float32, is_training=False)
    selection.apply_choice(network, choice, device)
    return Classifier(RunDir(Path(config.run_id)), config, network, "", None, True)
