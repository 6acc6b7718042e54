"""The short form: galaxies of a few files to one CSV, in this process, all of it or nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from galaxyhpc.config.class_names import get_probability_columns
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images import image_files
from galaxyhpc.data.sources.conversion import resize
from galaxyhpc.data.sources.parquet import find_shards
from galaxyhpc.data.sources.unlabelled import GalaxyFile, list_galaxy_files
from galaxyhpc.data.survey.named_columns import check_columns, name_columns
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import atomic_write, check_output, sanitize

BATCH_SIZE = 64  # galaxies
MAX_LISTED = 20  # bad images named one by one


@dataclass(frozen=True, eq=False)
class Galaxy:
    """A galaxy of a file: its image, or why there is none."""

    source: str  # file
    index: int  # in the file
    id: str  # empty if it has none
    position: tuple[float, float]  # ra, dec in degrees; NaN where unknown
    image: image_files.UInt8Array | None  # (3, S, S) uint8
    flaw: str = ""  # of an image that shows no galaxy
    error: str = ""
    num_filled: int = 0  # pixels without a value, taken as sky

    @property
    def note(self) -> str:
        """All that a reader of the row has to know of the image."""
        filled = f"{self.num_filled} pixels without a value" if self.num_filled else ""
        return "; ".join(filter(None, (self.flaw, filled)))


class BadImagesError(ValueError):
    """Images that cannot be classified, a line each."""

    def __init__(self, errors: Sequence[str], total: int, note: str = "") -> None:
        lines = list(dict.fromkeys(errors))
        more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        hint = [f"{len(errors)} of {total} are bad; --skip-bad classifies the others{note}"]
        super().__init__("\n".join([*lines[:MAX_LISTED], *more, *(hint if len(errors) < total else [])]))


def list_files(paths: Iterable[Path], config: DataConfig, allow_grey: bool) -> list[GalaxyFile]:
    """Return the files with images at these paths, each once."""
    files = (file for path in paths for file in list_galaxy_files(path, config, allow_grey))
    return list({(file.source, file.row): file for file in files}.values())


def read_galaxies(files: Iterable[GalaxyFile], image_size: int) -> Iterator[Galaxy]:
    """Yield every galaxy of these files, cropped and resized to (3, S, S) as the training images are."""
    for file in files:
        images = file.read_images() if file.read_images else (image_files.ImageError(file.error),)
        for number, (image, name, ra, dec) in enumerate(zip(images, file.ids, file.ra, file.dec, strict=False)):
            known = (file.source, file.row + number, sanitize(name), (ra, dec))
            if isinstance(image, image_files.ImageError):
                yield Galaxy(*known, None, error=sanitize(str(image)))
            else:
                pixels = resize(image.pixels[None], image_size)[0]
                yield Galaxy(*known, pixels, image.flaw, num_filled=image.num_filled)


@torch.inference_mode()
def classify(classifier: Classifier, images: Sequence[image_files.UInt8Array]) -> NDArray[np.float64]:
    """Return the (n, K) probabilities of (3, S, S) images, not calibrated if the run has no temperature."""
    device = next(classifier.network.parameters()).device
    pixels = torch.from_numpy(np.stack(images)).to(device).float() / 255.0
    return softmax(classifier.network(pixels).float().cpu().numpy(), classifier.temperature or 1.0)


def get_columns(classifier: Classifier) -> list[str]:
    """Return the names of the columns: probabilities that are not calibrated are called raw."""
    raw = "" if classifier.temperature else "raw_"
    columns = get_probability_columns(classifier.config.data.class_names, bool(classifier.temperature))
    known = ["source", "index", "id", "ra", "dec"]
    return [*known, "class", "name", f"{raw}probability", *columns, "run_id", "trained_on", "note", "error"]


def write_predictions(
    classifier: Classifier, galaxies: Iterable[Galaxy], output: Path, should_skip_bad: bool = False
) -> dict[str, int]:
    """Write one row per galaxy, the whole file or none of it; return the number of classified, noted and bad ones.

    Raises
    ------
    BadImagesError
        If there are bad images and they are not to be skipped, or all are bad.
    OSError
    """
    origin = [classifier.run.run_id, "GENERATED galaxies" if classifier.generated else "real galaxies"]
    remaining, num_read, num_noted, errors = iter(galaxies), 0, 0, []
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(get_columns(classifier))
        while batch := list(islice(remaining, BATCH_SIZE)):
            errors += [galaxy.error for galaxy in batch if galaxy.error]
            num_read, num_noted = num_read + len(batch), num_noted + sum(bool(galaxy.flaw) for galaxy in batch)
            if not errors or should_skip_bad:  # otherwise the others are only read, to name all bad ones
                table.writerows(_make_rows(classifier, batch, origin))
        if errors and (not should_skip_bad or len(errors) == num_read):
            raise BadImagesError(errors, num_read)
    return {"classified": num_read - len(errors), "noted": num_noted, "bad": len(errors)}


def _make_rows(classifier: Classifier, batch: Sequence[Galaxy], origin: list[str]) -> Iterator[list[object]]:
    images = [galaxy.image for galaxy in batch if galaxy.image is not None]
    probabilities = iter(classify(classifier, images)) if images else iter(())
    for galaxy in batch:
        names = classifier.config.data.class_names
        numbers = [""] * (3 + len(names))
        if galaxy.image is not None:
            values: NDArray[np.float64] = next(probabilities)
            label = int(values.argmax())
            numbers = [str(label), names[label], *(f"{value:.6f}" for value in (values[label], *values))]
        yield [
            galaxy.source,
            galaxy.index,
            galaxy.id,
            *("" if np.isnan(degrees) else float(degrees) for degrees in galaxy.position),
            *numbers,
            *origin,
            galaxy.note,
            galaxy.error.removeprefix(f"{galaxy.source}: "),
        ]


def get_warnings(classifier: Classifier) -> list[str]:
    """Return what a reader of the probabilities has to know."""
    run, messages = classifier.run, []
    if classifier.temperature is None:
        messages.append(f"probabilities are RAW, not calibrated: `galaxyhpc evaluate {run.path}` fits the temperature")
    field = trained_model.describe_field(classifier.config.data)
    messages.append(f"the images of the training show {field}; yours should show as much")
    if classifier.generated:
        messages.append(f"{run.run_id} was trained on GENERATED galaxies: do not rely on its predictions for real ones")
    return messages


def classify_files(
    run_path: Path,
    patterns: Sequence[str],
    output: Path,
    columns: Mapping[str, str],
    should_skip_bad: bool = False,
    may_overwrite: bool = False,
) -> int:
    """Write one CSV of the galaxies of these files, with columns that the user names; return 1 if some were left out.

    Raises
    ------
    ValueError, OSError, NotTrainedError
    """
    console = make_console()
    if output.suffix.lower() != ".csv":  # no image is ever written over
        raise image_files.ImageError(f"--output: got {sanitize(str(output))}; expected a name that ends in .csv")
    check_output(output, may_overwrite)
    run = trained_model.open_run(run_path)
    config = run.load_config()
    allow_grey = trained_model.is_trained_on_grey(run, config)
    paths, data = image_files.find_files(patterns), name_columns(config.data, columns)
    check_columns(chain(*(find_shards(path) or [path] for path in paths)), columns, data)
    files = list_files(paths, data, allow_grey)
    errors = [file.error for file in files if file.error]
    if errors and (not should_skip_bad or len(errors) == len(files)):
        raise BadImagesError(errors, len(files), "; damage to their pixels is found then")
    classifier = trained_model.load(run_path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    galaxies = track(
        read_galaxies(files, config.data.image_size),
        "classifying",
        total=sum(len(file.ids) for file in files),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    totals = write_predictions(classifier, galaxies, output, should_skip_bad)
    lines = [f"{output}: {totals['classified']} galaxies; files: {len({file.source for file in files})}"]
    if totals["noted"]:
        lines.append(f"images blank or with an empty band: {totals['noted']}; their classes mean nothing: column note")
    if totals["bad"]:
        lines.append(f"images left out: {totals['bad']}; the reasons are in the column error")
    for line in [*lines, *get_warnings(classifier)]:
        console.print(line, soft_wrap=True)
    return 1 if totals["bad"] else 0
