"""Random numbers depend on their key and index only."""

from __future__ import annotations

import torch
from scipy import stats

from galaxyhpc.runtime.rng import make_key, permutation, uniform


def test_the_same_key_and_index_give_the_same_numbers_in_any_batch() -> None:
    indices = torch.arange(100)
    whole = uniform(make_key("a", 0), indices, 7)
    parts = torch.cat([uniform(make_key("a", 0), part, 7) for part in indices.split(13)])
    assert torch.equal(whole, parts)
    assert torch.equal(uniform(make_key("a", 0), indices.flip(0), 7), whole.flip(0))


def test_more_numbers_begin_with_the_same_ones() -> None:
    indices = torch.arange(10)
    assert torch.equal(uniform(1, indices, 9)[:, :4], uniform(1, indices, 4))


def test_numbers_are_uniform_and_independent_of_their_neighbours() -> None:
    numbers = uniform(make_key("uniform"), torch.arange(2000), 200)
    assert numbers.min() > 0.0 and numbers.max() < 1.0
    assert stats.kstest(numbers.ravel().numpy(), "uniform").pvalue > 1e-3
    for first, second in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        correlation = torch.corrcoef(torch.stack([first.ravel(), second.ravel()]))[0, 1]
        assert abs(correlation) < 5 / first.numel() ** 0.5


def test_different_keys_give_different_numbers() -> None:
    indices = torch.arange(50)
    numbers = [uniform(make_key("order", seed, epoch), indices, 1) for seed in range(3) for epoch in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(numbers) for b in numbers[:i])


def test_numbers_are_pinned_so_that_old_runs_can_be_resumed() -> None:
    expected = torch.tensor([[0.9521080255, 0.1016829858], [0.5037507368, 0.3983090628]], dtype=torch.float64)
    torch.testing.assert_close(uniform(make_key("pinned", 1), torch.tensor([0, 17735]), 2), expected, rtol=0, atol=1e-9)


def test_a_permutation_holds_every_index_once_and_shuffles() -> None:
    indices = permutation(make_key("order", 0, 0), 1000)
    assert torch.equal(indices.sort().values, torch.arange(1000))
    assert (indices == torch.arange(1000)).sum() < 10
