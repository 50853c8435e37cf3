"""Ranking metrics against arithmetic spelled out, and the properties of their intervals."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch

from beeray.core.intervals import bootstrap_interval
from beeray.core.metrics import calibrated_recall, ndcg

# three users, rankings of five items: hits at ranks 1 and 4; at rank 3; none
HITS = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
NUM_TARGETS = torch.tensor([3, 1, 2])


def close(found: torch.Tensor, expected: list[float]) -> None:
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_calibrated_recall_divides_by_the_targets_that_fit_into_k() -> None:
    close(calibrated_recall(HITS, NUM_TARGETS, 2), [1 / 2, 0 / 1, 0 / 2])
    close(calibrated_recall(HITS, NUM_TARGETS, 4), [2 / 3, 1 / 1, 0 / 2])  # fewer targets than k
    plain_recall_of_the_first_user_at_2 = 1 / 3
    assert calibrated_recall(HITS, NUM_TARGETS, 2)[0] != plain_recall_of_the_first_user_at_2


def test_ndcg_discounts_hits_by_rank_and_divides_by_the_best_ranking() -> None:
    first = (1 / log2(2) + 1 / log2(5)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))
    second = (1 / log2(4)) / (1 / log2(2))
    close(ndcg(HITS, NUM_TARGETS, 5), [first, second, 0.0])


def test_ndcg_with_more_targets_than_k_counts_only_k_of_them() -> None:
    close(ndcg(HITS, NUM_TARGETS, 2), [(1 / log2(2)) / (1 / log2(2) + 1 / log2(3)), 0.0, 0.0])


def test_k_beyond_the_ranking_counts_what_there_is() -> None:
    close(calibrated_recall(HITS, NUM_TARGETS, 100), [2 / 3, 1.0, 0.0])
    first = (1 / log2(2) + 1 / log2(5)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))
    close(ndcg(HITS, NUM_TARGETS, 100), [first, 1 / 2, 0.0])


@pytest.mark.parametrize("k", [10**11, 10**30])
def test_a_k_that_no_memory_holds_is_the_longest_that_counts(k: int) -> None:
    for targets in (NUM_TARGETS, torch.tensor([9, 1, 2])):  # also more targets than ranks
        close(calibrated_recall(HITS, targets, k), calibrated_recall(HITS, targets, 20).tolist())
        close(ndcg(HITS, targets, k), ndcg(HITS, targets, 20).tolist())


def test_a_perfect_ranking_scores_one() -> None:
    hits = torch.tensor([[True, True, False, False]])
    for k in (1, 2, 3, 50):
        close(calibrated_recall(hits, torch.tensor([2]), k), [1.0])
        close(ndcg(hits, torch.tensor([2]), k), [1.0])
    assert ndcg(hits.flip(1), torch.tensor([2]), 4).item() < 1.0


def test_an_interval_of_equal_scores_has_no_width() -> None:
    interval = bootstrap_interval(np.full(50, 0.25))
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_an_interval_holds_the_mean_and_narrows_with_the_square_root_of_the_users() -> None:
    widths = []
    for num_users in (100, 10_000):
        scores = (np.arange(num_users) % 2).astype(np.float64)  # half zeros, half ones: deviation 0.5
        interval = bootstrap_interval(scores)
        assert interval.low < interval.mean == 0.5 < interval.high
        widths.append(interval.high - interval.low)
        assert widths[-1] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(num_users), rel=0.15)
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.2)


def test_an_interval_is_the_same_for_the_same_seed_and_any_order_of_users() -> None:
    scores = np.random.default_rng(0).random(40)
    interval = bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) == interval
    reordered = bootstrap_interval(scores[::-1], seed=1)
    assert (reordered.low, reordered.high) == (interval.low, interval.high)
    assert bootstrap_interval(scores, seed=2).low != interval.low


def test_an_interval_equals_resampling_users_one_by_one() -> None:
    generator = np.random.default_rng(5)
    scores = generator.choice([0.0, 0.1, 0.7, 1.0], size=60, p=[0.5, 0.2, 0.2, 0.1])
    means = scores[generator.integers(60, size=(20_000, 60))].mean(axis=1)
    interval = bootstrap_interval(scores, num_bootstrap=20_000)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.006)


def test_no_users_are_refused() -> None:
    with pytest.raises(ValueError, match="no user has a target"):
        bootstrap_interval(np.empty(0))
