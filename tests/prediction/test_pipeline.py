"""Galaxies go through worker processes in order, with the probabilities of the short form, and errors stay clear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import SIDE, make_untrained
from helpers.sources import encode
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.data.simulate import render_image
from galaxyhpc.data.sources.conversion import resample
from galaxyhpc.data.sources.unlabelled import list_galaxy_files
from galaxyhpc.data.survey.units import UnitGalaxies
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.models.activations import compute_activations
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.profile import profile_network
from galaxyhpc.predict.csv_table import classify, read_galaxies
from galaxyhpc.prediction import pipeline
from galaxyhpc.prediction.pipeline import Pipeline, PredictedBatch, classify_galaxies
from galaxyhpc.storage.run_dir import RunDir

COUNT = 23

DATA = DataConfig(image_size=SIDE)


def make_classifier(data: DataConfig = DATA, **model: object) -> Classifier:
    config = RunConfig(data=data, model=ModelConfig.model_validate({"group": "C4", "scale": 0.1} | model))
    network = make_untrained(config.model) if data.image_size == SIDE else build_model(config.model, data.image_size)
    return Classifier(RunDir(Path("sweep") / config.run_id), config, network.eval(), "w", 1.0, True)


def make_galaxies(count: int = COUNT, chunk: int = 5) -> Iterator[UnitGalaxies]:
    """Galaxies as PNG and arrays of two sizes, of which every seventh cannot be decoded."""
    for start in range(0, count, chunk):
        rows = np.arange(start, min(start + chunk, count))
        encoded = [encode_galaxy(int(row)) for row in rows]
        yield UnitGalaxies(rows, [f"g{row}" for row in rows], rows / 10, -rows / 10, encoded)


def encode_galaxy(row: int) -> bytes | NDArray[np.uint8] | ImageError:
    if row % 7 == 3:
        return b"no image" if row % 2 else ImageError(f"g{row}: got nothing; expected an image")
    image = render_image(row % 10, [1, row], 24 if row % 4 == 1 else 40)
    return image if row % 2 else encode(image)


def encode_batch() -> pipeline.EncodedBatch:
    """All galaxies in a batch."""
    return pipeline.EncodedBatch("", next(pipeline.make_batches(make_galaxies(), COUNT)))


def join(batches: Iterable[PredictedBatch]) -> PredictedBatch:
    parts = list(batches)
    return PredictedBatch(
        *(
            None
            if values[0] is None
            else [value for part in values for value in part]
            if isinstance(values[0], list)
            else np.concatenate(values, axis=1 if name == "logits" else 0)
            for name, values in zip(PredictedBatch._fields, zip(*parts, strict=True), strict=True)
        )
    )


@pytest.fixture(scope="module")
def classifiers() -> list[Classifier]:
    return [make_classifier(), make_classifier(group="D1"), make_classifier(architecture="cnn", group=None)]


@pytest.fixture(scope="module")
def conventional(classifiers: list[Classifier]) -> list[Classifier]:
    """The network whose first batch is computed soonest."""
    return classifiers[2:]


@pytest.fixture(scope="module")
def predicted(classifiers: list[Classifier]) -> PredictedBatch:
    """All galaxies, by two workers."""
    return join(classify_galaxies(make_galaxies(), classifiers, 2, 4, with_features=True))


def test_workers_give_the_probabilities_of_the_short_form(
    classifiers: list[Classifier], predicted: PredictedBatch, tmp_path: Path
) -> None:
    good = [row for row in range(COUNT) if row % 7 != 3]
    for row in good:
        image = encode_galaxy(row)
        (tmp_path / f"{row:02}.png").write_bytes(image if isinstance(image, bytes) else encode(image))
    galaxies = read_galaxies(list_galaxy_files(tmp_path, classifiers[0].config.data), SIDE)
    images = [galaxy.image for galaxy in galaxies if galaxy.image is not None]
    for classifier, logits in zip(classifiers, predicted.logits, strict=True):
        np.testing.assert_allclose(softmax(logits[good]), classify(classifier, images), rtol=0, atol=1e-6)
        assert np.ptp(logits[good], axis=0).max() > 1e-3  # different galaxies, different logits
        assert np.isnan(logits[3::7]).all()


def test_rows_keep_their_order_and_what_is_known_of_them(predicted: PredictedBatch) -> None:
    rows = np.arange(COUNT)
    np.testing.assert_array_equal(predicted.rows, rows)
    np.testing.assert_array_equal(predicted.ra, rows / 10)
    np.testing.assert_array_equal(predicted.dec, -rows / 10)
    assert predicted.ids == [f"g{row}" for row in rows]
    np.testing.assert_array_equal(predicted.upsampled, (rows % 4 == 1) & (rows % 7 != 3))
    assert [bool(error) for error in predicted.errors] == [row % 7 == 3 for row in rows]
    assert predicted.errors[3].startswith("g3: got 8 bytes that are none, or damaged; expected a PNG")
    assert not predicted.saturated.any() and not any(predicted.flaws)


def test_this_process_alone_gives_what_workers_give(classifiers: list[Classifier], predicted: PredictedBatch) -> None:
    alone = join(classify_galaxies(make_galaxies(chunk=COUNT), classifiers, 0, 7, with_features=True))
    np.testing.assert_allclose(alone.logits, predicted.logits, rtol=0, atol=1e-5)
    assert alone.errors == predicted.errors


def test_decoding_ahead_of_the_networks_changes_nothing(
    classifiers: list[Classifier], predicted: PredictedBatch
) -> None:
    decoder = pipeline.make_decoder(classifiers)
    batches = (pipeline.EncodedBatch("", batch) for batch in pipeline.make_batches(make_galaxies(), 4))
    decoded = (pipeline.decode(decoder, batch) for batch in batches)
    ahead = join(pipeline.classify_decoded(classifiers, True, decoded))
    np.testing.assert_allclose(ahead.logits, predicted.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ahead.rows, predicted.rows)


@pytest.mark.parametrize(("side", "is_resized_later"), [(40, True), (24, True), (33, True), (64, False)])
def test_a_batch_that_the_device_resizes_has_the_pixels_of_single_images(
    side: int, is_resized_later: bool, conventional: list[Classifier]
) -> None:
    images: list[Any] = [render_image(row, [1, row], side) for row in range(5)]
    images[2] = ImageError("none")
    images[3][2:18, 2:18] = 255
    galaxies = UnitGalaxies(np.arange(5), [""] * 5, np.zeros(5), np.zeros(5), images)
    encoded = pipeline.EncodedBatch("", next(pipeline.make_batches([galaxies], 5)))
    here, later = (pipeline.decode(pipeline.make_decoder(conventional, keeps), encoded) for keeps in (False, True))
    assert list(here.pixels) == [SIDE] and list(later.pixels) == [side if is_resized_later else SIDE]
    assert sum(pixels.nbytes for pixels in later.pixels.values()) <= 2 * here.pixels[SIDE].nbytes
    (sent,) = later.pixels.values()
    difference = resample(torch.from_numpy(sent).float(), SIDE) - torch.from_numpy(here.pixels[SIDE])
    assert difference.abs().max() == 0  # grey levels; a GPU sums in another order
    expected = pipeline.collect(here, pipeline.run_networks(conventional, here.pixels, True))
    (batch,) = pipeline.classify_decoded(conventional, True, [later])
    for name, value in batch._asdict().items():
        np.testing.assert_array_equal(value, getattr(expected, name), err_msg=name)
    assert batch.saturated.tolist() == [False, False, False, True, False]


def test_features_are_the_pooled_ones_of_the_first_run(
    classifiers: list[Classifier], predicted: PredictedBatch
) -> None:
    batch = pipeline.decode(pipeline.make_decoder(classifiers), encode_batch())
    images = torch.from_numpy(batch.pixels[SIDE]) / 255.0
    with torch.inference_mode():
        expected = compute_activations(classifiers[0].network, images).pooled.numpy()
    assert predicted.features is not None and predicted.features.dtype == np.float16
    np.testing.assert_allclose(predicted.features[batch.has_image], expected, rtol=2e-3, atol=1e-4)
    assert np.isnan(predicted.features[3::7]).all()


def test_a_batch_without_any_image_has_reasons_alone(classifiers: list[Classifier]) -> None:
    galaxies = UnitGalaxies(np.arange(3), ["", "", ""], np.zeros(3), np.zeros(3), [b"", b"x", b"\x89PNG"])
    (batch,) = classify_galaxies([galaxies], classifiers, 0, None, True)
    assert batch.logits.shape == (3, 3, 10) and np.isnan(batch.logits).all() and np.isnan(batch.features).all()
    assert batch.errors[0].startswith("row 0: got nothing")
    assert not batch.upsampled.any() and not batch.saturated.any()


def test_white_images_are_saturated_and_galaxies_are_not(conventional: list[Classifier]) -> None:
    star = render_image(0, [1, 0], 40)
    star[12:20, 12:20] = 255
    galaxies = UnitGalaxies(np.arange(2), ["", ""], np.zeros(2), np.zeros(2), [star, encode_galaxy(0)])
    (batch,) = classify_galaxies([galaxies], conventional, 0)
    assert batch.saturated.tolist() == [True, False]


def test_runs_that_see_other_images_are_refused(classifiers: list[Classifier]) -> None:
    other = make_classifier(DataConfig(image_size=SIDE, crop="center"))
    with pytest.raises(DataError, match=r"C4.*: got data.crop that differs from that of .*; expected runs that see"):
        Pipeline([classifiers[0], other], 0)


def test_runs_of_other_image_sizes_share_the_decoded_images(classifiers: list[Classifier]) -> None:
    larger = make_classifier(DataConfig(image_size=63))
    both = join(classify_galaxies(make_galaxies(), [classifiers[0], larger], 0))
    alone = join(classify_galaxies(make_galaxies(), [larger], 0))
    np.testing.assert_array_equal(both.logits[1], alone.logits[0])


def test_batches_are_as_large_as_the_maps_of_the_networks_allow() -> None:
    small, large = RunConfig(data=DATA, model=ModelConfig(group="C4", scale=0.1)), ModelConfig(group="D8", scale=2.0)
    wide = RunConfig(data=DataConfig(image_size=127), model=large)
    cpu = torch.device("cpu")
    assert pipeline.choose_batch_size([small], cpu) == pipeline.MAX_BATCH_SIZES["cpu"]
    count = pipeline.choose_batch_size([small, wide], cpu)
    map_bytes = 4 * pipeline.MAPS_IN_MEMORY * profile_network(large, 127).largest_activation
    assert 1 <= count < 32 and count * map_bytes <= pipeline.MAX_CPU_BYTES < 2 * count * map_bytes
