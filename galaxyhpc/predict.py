"""Classify your own galaxies with a trained model: `galaxyhpc predict runs/SWEEP/RUN_ID images.h5 *.png`.

Files: HDF5 with `images` (N, S, S, 3), uint8 or floats in [0, 1]; PNG and JPEG; FITS with g, r, z or R, G, B planes.
Images are square, of any size, and should look like the training images: about 67 arcsec of sky with the galaxy in the
middle. Writes one CSV row per galaxy. Exit status 2: nothing was written; the error is one line.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from galaxyhpc.data import image_files
from galaxyhpc.data.galaxy10 import CLASSES, resize
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import OVERWRITE_HELP, atomic_write, check_output, sanitize

BATCH_SIZE = 64  # galaxies

GalaxyImage = tuple[str, int, image_files.UInt8Array]  # file, index in it, (3, S, S)


def read_galaxies(paths: Iterable[Path], image_size: int) -> Iterator[GalaxyImage]:
    """Yield every galaxy of these files, resized to (3, image_size, image_size) as the training images are.

    Raises
    ------
    ImageError
    """
    for path in paths:
        images = (image for batch in image_files.read_images(path) for image in batch)
        for index, image in enumerate(images):
            yield sanitize(str(path)), index, resize(image[None], image_size)[0]


@torch.inference_mode()
def classify(classifier: Classifier, images: Sequence[image_files.UInt8Array]) -> NDArray[np.float64]:
    """Return the (n, 10) probabilities of (3, S, S) images, not calibrated if the run has no temperature."""
    device = next(classifier.network.parameters()).device
    pixels = torch.from_numpy(np.stack(images)).to(device).float() / 255.0
    return softmax(classifier.network(pixels).float().cpu().numpy(), classifier.temperature or 1.0)


def get_columns(classifier: Classifier) -> list[str]:
    """Return the names of the columns: probabilities that are not calibrated are called raw."""
    raw = "" if classifier.temperature else "raw_"
    names = [f"{raw}p_{name.replace(' ', '_')}" for name in CLASSES]
    return ["source", "index", "class", "name", f"{raw}probability", *names, "run_id", "trained_on"]


def write_predictions(classifier: Classifier, galaxies: Iterable[GalaxyImage], output: Path) -> int:
    """Write one row per galaxy, the whole file or none of it; return the number of galaxies.

    Raises
    ------
    ImageError, OSError
    """
    origin = [classifier.run.run_id, "GENERATED galaxies" if classifier.generated else "real galaxies"]
    remaining, num_written = iter(galaxies), 0
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(get_columns(classifier))
        while batch := list(islice(remaining, BATCH_SIZE)):
            sources, indices, images = zip(*batch, strict=True)
            for source, index, probabilities in zip(sources, indices, classify(classifier, images), strict=True):
                label = int(probabilities.argmax())
                numbers = [f"{probability:.6f}" for probability in (probabilities[label], *probabilities)]
                table.writerow([source, index, label, CLASSES[label], *numbers, *origin])
            num_written += len(batch)
    return num_written


def get_warnings(classifier: Classifier) -> list[str]:
    """Return what a reader of the probabilities has to know."""
    run, messages = classifier.run, []
    if classifier.temperature is None:
        messages.append(f"probabilities are RAW, not calibrated: `galaxyhpc evaluate {run.path}` fits the temperature")
    if classifier.generated:
        messages.append(f"{run.run_id} was trained on GENERATED galaxies: do not rely on its predictions for real ones")
    return messages


def main(arguments: list[str] | None = None) -> int:
    """Classify the galaxies named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc predict", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/SWEEP/RUN_ID")
    parser.add_argument("files", nargs="+", metavar="FILE", help="*.h5, *.png, *.jpg, *.fits; globs may be quoted")
    output_help = "file to write (%(default)s)"
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), metavar="CSV", help=output_help)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    options, console = parser.parse_args(arguments), make_console()
    try:
        if options.output.suffix.lower() != ".csv":  # no image is ever written over
            raise image_files.ImageError(
                f"--output: got {sanitize(str(options.output))}; expected a name that ends in .csv"
            )
        check_output(options.output, options.overwrite)
        paths = image_files.find_files(options.files)
        total = sum(map(image_files.count_images, paths))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        classifier = trained_model.load(options.run, device)
        galaxies = track(
            read_galaxies(paths, classifier.image_size),
            "classifying",
            total=total,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        num_written = write_predictions(classifier, galaxies, options.output)
    except (ValueError, OSError, NotTrainedError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for line in [f"{options.output}: {num_written} galaxies; files read: {len(paths)}", *get_warnings(classifier)]:
        console.print(line, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
