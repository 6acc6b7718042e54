"""Batches: their order, their parts for each process, and their pixels."""

from __future__ import annotations

import pytest
import torch

from galaxyhpc.config.schema import DataConfig, DemoConfig
from galaxyhpc.data.galaxies import Galaxies, prepare
from galaxyhpc.data.loader import epoch_batches, load_device_dataset, predict, shard_batch, steps_per_epoch

INDICES = torch.arange(1000, 1107)


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory: pytest.TempPathFactory) -> Galaxies:
    cache = str(tmp_path_factory.mktemp("cache"))
    return prepare(DataConfig(cache=cache, image_size=33, demo=DemoConfig(galaxies=100, size=32)))


def test_an_epoch_sees_each_galaxy_at_most_once_in_full_batches() -> None:
    batches = epoch_batches(INDICES, seed=0, epoch=0, batch_size=20)
    assert [len(batch) for batch in batches] == [20] * 5 and steps_per_epoch(107, 20) == 5
    seen = torch.cat(batches)
    assert len(seen.unique()) == 100 and set(seen.tolist()) <= set(INDICES.tolist())


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_batches(INDICES, 1, 2, 20)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch_batches(INDICES, 1, 2, 20), strict=True))
    assert not torch.equal(first[0], epoch_batches(INDICES, 1, 3, 20)[0])
    assert not torch.equal(first[0], epoch_batches(INDICES, 2, 2, 20)[0])


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    (only,) = epoch_batches(INDICES, 0, 0, 500)
    assert len(only) == 107


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_processes_together_have_the_global_batch_whatever_their_number(world_size: int) -> None:
    batch = epoch_batches(INDICES, 0, 0, 20)[0]
    parts = [shard_batch(batch, rank, world_size) for rank in range(world_size)]
    assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_images_are_the_bytes_of_the_file_scaled_to_zero_to_one(galaxies: Galaxies) -> None:
    dataset = load_device_dataset(galaxies, torch.device("cpu"))
    images, labels = dataset.get_batch(torch.tensor([5, 3]))
    assert images.shape == (2, 3, 33, 33) and images.dtype == torch.float32
    assert torch.equal((images * 255).round().byte(), torch.tensor(galaxies.images[[5, 3]]))
    assert labels.tolist() == galaxies.labels[[5, 3]].tolist()


def test_predictions_keep_the_order_of_the_indices_whatever_the_batch_size(galaxies: Galaxies) -> None:
    dataset = load_device_dataset(galaxies, torch.device("cpu"))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 33 * 33, 10))
    indices = torch.tensor([9, 50, 2, 77, 31])
    small, labels = predict(network, dataset, indices, 2)
    large, _ = predict(network, dataset, indices, 100)
    torch.testing.assert_close(small, large)
    assert labels.tolist() == galaxies.labels[indices.numpy()].tolist()
    empty, _ = predict(network, dataset, indices[:0], 2)
    assert empty.shape == (0, 10)
