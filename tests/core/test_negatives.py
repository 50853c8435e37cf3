"""Which items a step encodes: counts, what is kept, and that every draw is uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from beeray.core.negatives import _uniform_without, select_items

TRAINABLE = np.arange(0, 200, 2, dtype=np.int32)  # 100 items; odd ones are held out
POSITIVES = np.array([4, 10, 20, 48, 50, 92, 110, 144, 160, 198], dtype=np.int32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("mode", "max_output", "num_items"),
    [
        ("bounded", 4, 4),
        ("bounded", 10, 10),
        ("bounded", 20, 20),
        ("bounded", 90, 90),
        ("catalog", 4, 4),
        ("catalog", 20, 20),
        ("all_positives", 4, 10),  # every positive, more than max_output or not
        ("all_positives", 10, 10),
        ("all_positives", 20, 20),
        ("bounded", 100, 100),
        ("all_positives", 1000, 100),
        ("catalog", None, 100),
    ],
)
def test_each_mode_draws_its_number_of_items(mode: str, max_output: int | None, num_items: int) -> None:
    items = select_items(mode, POSITIVES, TRAINABLE, max_output, generator())
    assert len(items) == num_items
    if num_items < len(POSITIVES):
        assert set(items.tolist()) < set(POSITIVES.tolist())
    else:
        assert set(items.tolist()) >= set(POSITIVES.tolist())


@given(
    positives=st.sets(st.sampled_from(TRAINABLE.tolist()), max_size=60),
    max_output=st.integers(1, 120),
    mode=st.sampled_from(["bounded", "all_positives", "catalog"]),
    seed=st.integers(0, 1000),
)
def test_items_are_sorted_distinct_trainable_int32(positives: set[int], max_output: int, mode: str, seed: int) -> None:
    array = np.array(sorted(positives), dtype=np.int32)
    items = select_items(mode, array, TRAINABLE, max_output, generator(seed))
    assert items.dtype == np.int32
    assert bool((np.diff(items) > 0).all())
    assert set(items.tolist()) <= set(TRAINABLE.tolist())
    wanted = max(max_output, len(positives)) if mode == "all_positives" else max_output
    assert len(items) == min(wanted, len(TRAINABLE))


def test_the_same_seed_draws_the_same_items_and_another_seed_others() -> None:
    first, again, other = (select_items("bounded", POSITIVES, TRAINABLE, 20, generator(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def largest_deviation(counts: NDArray[np.int64], num_draws: int, probability: float) -> float:
    """Of the counts from `num_draws · probability`, in standard deviations of a binomial."""
    return float(np.abs(counts - num_draws * probability).max() / np.sqrt(num_draws * probability * (1 - probability)))


def test_positives_are_thinned_uniformly() -> None:
    rng, num_draws = generator(11), 4000
    drawn = [select_items("bounded", POSITIVES, TRAINABLE, 4, rng) for _ in range(num_draws)]
    counts = np.array([sum(item in items for items in map(set, drawn)) for item in POSITIVES])
    assert counts.sum() == 4 * num_draws
    assert largest_deviation(counts, num_draws, 4 / 10) < 4


@pytest.mark.parametrize("num_negatives", [10, 44, 45, 80])
def test_negatives_are_uniform_over_free_items_whether_few_or_most_are_drawn(num_negatives: int) -> None:
    # 90 items are free: up to 44 are drawn by rejection, from 45 on without replacement from the list of them
    rng, num_draws = generator(12), 2000
    drawn = [_uniform_without(POSITIVES, TRAINABLE, num_negatives, rng) for _ in range(num_draws)]
    assert all(len(set(negatives.tolist())) == num_negatives for negatives in drawn)
    free = np.setdiff1d(TRAINABLE, POSITIVES)
    values, counts = np.unique(np.concatenate(drawn), return_counts=True)
    assert values.tolist() == free.tolist()
    assert largest_deviation(counts, num_draws, num_negatives / 90) < 4.5


def test_the_measure_of_uniformity_notices_a_skewed_draw() -> None:
    rng, num_draws = generator(13), 2000
    squared = (100 * rng.random((num_draws, 10)) ** 2).astype(np.int64)
    assert largest_deviation(np.bincount(squared.ravel(), minlength=100), num_draws, 10 / 100) > 10


def test_without_positives_all_items_are_negatives() -> None:
    items = select_items("bounded", np.empty(0, dtype=np.int32), TRAINABLE, 7, generator())
    assert len(set(items.tolist()) & set(TRAINABLE.tolist())) == 7


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match="boundless"):
        select_items("boundless", POSITIVES, TRAINABLE, 7, generator())
