"""From encoded galaxies to logits, in batches: decoded and resized in worker processes, classified by one or more runs.

On a CPU a worker decodes a batch and classifies it as well, on one core: no core waits for another, and no threads of a
network compete with the workers. On a GPU the workers decode ahead of the networks, which this process runs; pixels
reach the GPU as uint8, and the next batch is launched before the results of the last one are fetched. Either way a few
batches per worker are in memory, however many galaxies there are.

Pixels are those of the short form of `predict`, bit for bit: the same functions crop and resize them, one by one. A GPU
resizes a batch at once if its images have one size and at most twice the bytes of what the networks see, such as 256 px
for 224: that takes 72 % of a core's time for a JPEG, 94 % for an array. For 65 px it takes 42 % (81 %), but the workers
would send 15 times the bytes, which takes this process longer than 16 cores need to resize. There the sums of a GPU may
round to the next grey level; on a CPU the batch has the same bits.

Networks run as in the evaluation, with the kernels that the run chose, in float32. On a GPU, runs that were trained in
bfloat16 compute in it: probabilities of 600 galaxies of EFIGI then differ by 0.002 (rms), at most by 0.015, and for six
networks the class remains for 98.3 to 99.8 % (bfloat16 of a CPU).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from galaxyhpc.config.schema import DataConfig, RunConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import GalaxyImage, ImageError, UInt8Array
from galaxyhpc.data.loader import send_to_device
from galaxyhpc.data.sources.conversion import resample, resize
from galaxyhpc.data.survey.units import UnitGalaxies, decode_image
from galaxyhpc.evaluation.trained_model import Classifier, is_trained_on_grey
from galaxyhpc.models.activations import compute_activations
from galaxyhpc.models.profile import profile_network
from galaxyhpc.prediction.workers import WorkerError, Workers
from galaxyhpc.storage.files import sanitize

__all__ = ["Pipeline", "PredictedBatch", "WorkerError", "classify_galaxies"]

MAX_BATCH_SIZES = {"cpu": 32, "cuda": 256}  # galaxies; more are no faster
MAX_DECODED_BYTES = 2**25  # of a batch: on a GPU's node, two of each worker wait
MAX_BYTES_RATIO = 2  # of images as they are to those of the networks; this process takes 0.7 ms per MB from the workers
MAX_CPU_BYTES = 2**28  # of the maps of a worker's network, about
MAX_GPU_MEMORY_FRACTION = 0.25  # for the maps
MAPS_IN_MEMORY = 3  # of the largest: a layer's input, its output, a working copy
WHITE = 250  # of 255: what a saturated band is at least, after JPEG and resizing
MAX_WHITE_FRACTION = 0.01  # of the pixels: none of 697 galaxies of Galaxy10 has more, a saturated star has 8 %


class PredictedBatch(NamedTuple):
    """Logits of n galaxies, in order, and what is known of their images."""

    rows: NDArray[np.int64]  # (n,) in the source
    ids: list[str]
    ra: NDArray[np.float64]  # (n,) degrees, NaN where unknown
    dec: NDArray[np.float64]  # (n,) degrees, NaN where unknown
    sources: list[str]
    logits: NDArray[np.float32]  # (runs, n, K), not calibrated; NaN where there is no image
    features: NDArray[np.float16] | None  # (n, F) pooled, of the first run; NaN where there is no image
    num_filled: NDArray[np.int64]  # (n,) pixels without a value, taken as sky
    flaws: list[str]  # of images that show no galaxy
    upsampled: NDArray[np.bool_]  # (n,) images smaller than those of a network
    saturated: NDArray[np.bool_]  # (n,) images that are white where a galaxy is not
    errors: list[str]  # why there is no image


class Galaxy(NamedTuple):
    """A row of `UnitGalaxies`."""

    row: int
    id: str
    ra: float
    dec: float
    encoded: Any


class EncodedBatch(NamedTuple):
    """Galaxies of one source whose images are not decoded."""

    source: str
    galaxies: Sequence[Galaxy]


class DecodedBatch(NamedTuple):
    """Galaxies whose images are decoded."""

    pixels: dict[int, UInt8Array]  # size S in px: (m, 3, S, S), of the m galaxies with an image; one black one if m = 0
    has_image: NDArray[np.bool_]  # (n,)
    known: PredictedBatch  # without logits, and nothing saturated


@dataclass(frozen=True)
class Decoder:
    """What has to be known to make images of encoded galaxies."""

    config: DataConfig  # its crop and bands
    allow_grey: bool
    sizes: tuple[int, ...]  # px of the networks, ascending
    keeps_sizes: bool = False  # leaves resizing to a GPU where that is faster


def make_decoder(classifiers: Sequence[Classifier], keeps_sizes: bool = False) -> Decoder:
    """Return the decoder of images that all these runs take.

    Raises
    ------
    DataError
        If the runs crop images, or stretch FITS images, differently.
    """
    first = classifiers[0].config.data
    for other in classifiers:
        for name in ("crop", "fits"):
            if getattr(other.config.data, name) != getattr(first, name):
                got = f"got data.{name} that differs from that of {classifiers[0].run.path}"
                expected = "runs that see the same images: predict with each on its own"
                raise DataError(sanitize(f"{other.run.path}: {got}; expected {expected}"))
    allow_grey = all(is_trained_on_grey(classifier.run, classifier.config) for classifier in classifiers)
    sizes = tuple(sorted({classifier.image_size for classifier in classifiers}))
    return Decoder(first, allow_grey, sizes, keeps_sizes)


def decode(decoder: Decoder, encoded: EncodedBatch) -> DecodedBatch:
    """Decode a batch; a galaxy whose image cannot be used has the reason in `errors`."""
    source, galaxies = encoded
    images = [
        decode_image(galaxy.encoded, decoder.config, decoder.allow_grey, galaxy.id or f"row {galaxy.row}")
        for galaxy in galaxies
    ]
    good = [image for image in images if not isinstance(image, ImageError)]
    has_image = np.array([not isinstance(image, ImageError) for image in images])
    # one by one: a batch of float32 pixels does not fit into the caches of a core
    pixels = {
        size: np.concatenate([resize(image.pixels[None], size) for image in good] or [_make_black_image(size)])
        for size in _choose_sizes(decoder, good)
    }
    upsampled, saturated = np.zeros((2, len(images)), bool)
    upsampled[has_image] = [len(image.pixels) < decoder.sizes[-1] for image in good]
    known = PredictedBatch(
        rows=np.array([galaxy.row for galaxy in galaxies], np.int64),
        ids=[galaxy.id for galaxy in galaxies],
        ra=np.array([galaxy.ra for galaxy in galaxies], np.float64),
        dec=np.array([galaxy.dec for galaxy in galaxies], np.float64),
        sources=[source] * len(images),
        logits=np.empty((0, len(images), 0), np.float32),
        features=None,
        num_filled=np.array([getattr(image, "num_filled", 0) for image in images], np.int64),
        flaws=[getattr(image, "flaw", "") for image in images],
        upsampled=upsampled,
        saturated=saturated,
        errors=[sanitize(str(image)) if isinstance(image, ImageError) else "" for image in images],
    )
    return DecodedBatch(pixels, has_image, known)


def _choose_sizes(decoder: Decoder, images: Sequence[GalaxyImage]) -> tuple[int, ...]:
    """Return the sizes in which images leave a worker: those of the networks, or their own if the GPU resizes them."""
    sides = {len(image.pixels) for image in images}
    num_pixels = sum(size**2 for size in decoder.sizes)
    is_kept = decoder.keeps_sizes and len(sides) == 1 and max(sides) ** 2 <= MAX_BYTES_RATIO * num_pixels
    return tuple(sides) if is_kept else decoder.sizes


def _make_black_image(size: int) -> UInt8Array:
    return np.zeros((1, 3, size, size), np.uint8)


def find_saturated(pixels: Tensor) -> Tensor:
    """Return which of (n, 3, S, S) images, from 0 to 255, are white in more of their pixels than galaxies are."""
    num_white = (pixels.amin(1) >= WHITE).sum((1, 2))
    return num_white.double() / pixels.shape[-1] ** 2 > MAX_WHITE_FRACTION


class Outputs(NamedTuple):
    """What networks make of m images, on their device."""

    logits: list[Tensor]  # of each run, (m, K)
    features: Tensor | None  # (m, F) of the first run
    saturated: Tensor  # (m,)


@torch.inference_mode()
def run_networks(classifiers: Sequence[Classifier], pixels: dict[int, UInt8Array], with_features: bool) -> Outputs:
    """Run every network on images (m, 3, S, S) of its size; a GPU may still be computing when this returns."""
    device = next(classifiers[0].network.parameters()).device
    sent = {size: send_to_device(torch.from_numpy(array), device) for size, array in pixels.items()}
    sizes = sorted({classifier.image_size for classifier in classifiers})
    shown = {size: sent[size] if size in sent else resample(next(iter(sent.values())).float(), size) for size in sizes}
    images = {size: values.float() / 255.0 for size, values in shown.items()}
    logits, features = [], None
    for number, classifier in enumerate(classifiers):
        is_bfloat16 = device.type == "cuda" and classifier.config.train.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16):
            if with_features and number == 0:
                activations = compute_activations(classifier.network, images[classifier.image_size])
                features = activations.pooled
                logits.append(activations.logits)
            else:
                logits.append(classifier.network(images[classifier.image_size]).float())
    return Outputs(logits, features, find_saturated(shown[sizes[0]]))


def collect(decoded: DecodedBatch, outputs: Outputs) -> PredictedBatch:
    """Return a batch with its logits and features."""

    def spread(values: Tensor) -> NDArray[np.float32]:
        """Return a row for each galaxy, NaN for those without an image."""
        rows = np.full((len(decoded.has_image), values.shape[1]), np.nan, np.float32)
        rows[decoded.has_image] = values[: decoded.has_image.sum()].cpu().numpy()
        return rows

    logits = np.stack([spread(values) for values in outputs.logits])
    features = None if outputs.features is None else spread(outputs.features).astype(np.float16)
    saturated = np.zeros(len(decoded.has_image), bool)
    saturated[decoded.has_image] = outputs.saturated[: decoded.has_image.sum()].cpu().numpy()
    return decoded.known._replace(logits=logits, features=features, saturated=saturated)


def classify_batch(
    classifiers: Sequence[Classifier], with_features: bool, decoder: Decoder, encoded: EncodedBatch
) -> PredictedBatch:
    """Decode and classify a batch in this process."""
    decoded = decode(decoder, encoded)
    return collect(decoded, run_networks(classifiers, decoded.pixels, with_features))


def choose_batch_size(configs: Sequence[RunConfig], device: torch.device) -> int:
    """Return the number of images, a power of 2, that fit into memory and use the device well.

    It depends on the networks and the device alone, and with it the last bits of the logits.
    """
    largest = max(
        profile_network(config.model.without_pretrained, config.data.image_size).largest_activation
        for config in configs
    )
    pixels = sum(3 * size**2 for size in {config.data.image_size for config in configs})
    is_cpu = device.type == "cpu"
    memory = (
        MAX_CPU_BYTES if is_cpu else MAX_GPU_MEMORY_FRACTION * torch.cuda.get_device_properties(device).total_memory
    )
    size = min(MAX_BATCH_SIZES[device.type], memory // (4 * MAPS_IN_MEMORY * largest), MAX_DECODED_BYTES // pixels)
    return 1 << max(0, int(size).bit_length() - 1)


class Pipeline:
    """Networks, and worker processes that last until it is closed: `with Pipeline(...) as pipeline`."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        num_workers: int,
        batch_size: int | None = None,
        with_features: bool = False,
    ) -> None:
        self.classifiers, self.with_features = tuple(classifiers), with_features
        self.device = next(classifiers[0].network.parameters()).device
        self.decoder = make_decoder(classifiers, keeps_sizes=self.device.type != "cpu")
        self.batch_size = batch_size or choose_batch_size(
            [classifier.config for classifier in classifiers], self.device
        )
        for classifier in classifiers:
            classifier.network.train().eval()  # drops the filters that evaluation keeps, which cannot be pickled
        task = partial(classify_batch, self.classifiers, with_features, self.decoder)
        self.workers = Workers(task if self.device.type == "cpu" else partial(decode, self.decoder), num_workers)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.close()

    def classify(self, galaxies: Iterable[UnitGalaxies], source: str = "") -> Iterator[PredictedBatch]:
        """Yield the predictions of these galaxies of a source, in order, in batches.

        Raises
        ------
        WorkerError
            If a worker was killed; the pipeline may be used again. What a worker raises is raised here.
        """
        results = self.workers.map(EncodedBatch(source, batch) for batch in make_batches(galaxies, self.batch_size))
        if self.device.type == "cpu":
            yield from results
        else:
            yield from classify_decoded(self.classifiers, self.with_features, results)


def classify_decoded(
    classifiers: Sequence[Classifier], with_features: bool, batches: Iterable[DecodedBatch]
) -> Iterator[PredictedBatch]:
    """Yield the predictions of decoded batches; a GPU computes a batch while the one before it is collected."""
    previous = None
    for decoded in batches:
        current = decoded, run_networks(classifiers, decoded.pixels, with_features)
        if previous is not None:
            yield collect(*previous)
        previous = current
    if previous is not None:
        yield collect(*previous)


def make_batches(galaxies: Iterable[UnitGalaxies], batch_size: int) -> Iterator[list[Galaxy]]:
    """Yield full batches, and a last one, whatever the numbers of galaxies that are read at once."""
    rows = (
        Galaxy(*values)
        for part in galaxies
        for values in zip(part.rows, part.ids, part.ra, part.dec, part.encoded, strict=True)
    )
    while batch := list(islice(rows, batch_size)):
        yield batch


def classify_galaxies(
    galaxies: Iterable[UnitGalaxies],
    classifiers: Sequence[Classifier],
    num_workers: int,
    batch_size: int | None = None,
    with_features: bool = False,
) -> Iterator[PredictedBatch]:
    """Yield the predictions of all galaxies in order, by worker processes that start and end here; 0: none."""
    with Pipeline(classifiers, num_workers, batch_size, with_features) as pipeline:
        yield from pipeline.classify(galaxies)
