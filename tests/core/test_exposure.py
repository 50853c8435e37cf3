"""Coverage, evenness and popularity of what is shown, with figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from beeray.core.evaluation import Ranker, RankingMetrics
from beeray.core.exposure import Exposure, TiedExposure, gini, mid_rank, shown_length


def counts(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3, 3, 3, 3), 0.0),
        ((0, 0, 0, 4), 0.75),  # 1 − 1/n: one alone
        ((1, 3), 0.25),  # mean difference of all ordered pairs 1, over twice the mean 2
        ((3, 1), 0.25),
    ],
)
def test_gini_is_zero_for_equal_counts_and_nearly_one_for_one_alone(values: tuple[int, ...], expected: float) -> None:
    assert gini(counts(*values)) == pytest.approx(expected)


def test_mid_rank_counts_ties_half_and_averages_to_a_half() -> None:
    assert mid_rank(counts(5, 1, 1, 9)).tolist() == [0.625, 0.25, 0.25, 0.875]
    assert mid_rank(counts(2, 2, 2)).tolist() == [0.5, 0.5, 0.5]


def an_exposure() -> Exposure:
    """Four candidates, first two places: user 0 is shown 0 and 1, user 1 only 0, since nothing else is left."""
    exposure = Exposure(4, k=2)
    exposure.add(
        np.array([[0, 1, 2], [0, 3, 1]]),
        np.array([[True, True, True], [True, False, False]]),
        targets=np.array([0, 3]),
        history=np.array([0, 0, 1]),
    )
    return exposure


def test_figures_of_two_users() -> None:
    exposure = an_exposure()
    assert exposure.shown.tolist() == [2, 1, 0, 0]
    # users who have each: 3, 1, 0, 1, so popularity 7/8, 1/2, 1/8, 1/2
    assert exposure.summary() == {
        "coverage@2": 0.5,
        "gini@2": pytest.approx((-3 * 0 - 1 * 0 + 1 * 1 + 3 * 2) / (4 * 3)),
        "popularity@2": pytest.approx((2 * 7 / 8 + 1 / 2) / 3),
        "target_popularity": pytest.approx((7 / 8 + 1 / 2) / 2),
    }


def test_counts_of_two_ranks_are_summed_before_figures_are_made() -> None:
    exposure = an_exposure()
    other = Exposure(4, k=2)
    other.add(np.array([[2, 3]]), np.array([[True, True]]), targets=np.array([2]), history=np.array([3]))
    alone = exposure.summary()
    exposure.reduce(lambda mine: mine + other.counts)
    assert exposure.summary()["coverage@2"] == 1.0
    assert exposure.summary() != alone


def test_nobody_shown_anything_has_no_figures_rather_than_zeros() -> None:
    assert Exposure(3, k=2).summary() == {}


def test_the_list_shown_is_the_shortest_that_recall_asks_for() -> None:
    assert shown_length((50, 20), (10,)) == 20
    assert shown_length((), (100, 10)) == 10


def user_items(rows: list[list[int]], num_items: int) -> sparse.csr_matrix:
    table = np.zeros((len(rows), num_items), dtype=np.float32)
    for row, items in enumerate(rows):
        table[row, items] = 1
    return sparse.csr_matrix(table)


def test_a_ranker_counts_unseen_candidates_block_by_block() -> None:
    east_north = torch.tensor([[1.0, 0.0], [0.98, 0.2], [0.0, 1.0], [0.2, 0.98], [0.7, 0.7]])
    east_north = torch.nn.functional.normalize(east_north, dim=1)
    candidates = np.array([1, 2, 3], dtype=np.int32)  # items 0 and 4 are not ranked
    ranker = Ranker(east_north, candidates, RankingMetrics((1, 2), (3,)))
    assert ranker.exposure.k == 1
    ranker.score(user_items([[0]], 5), user_items([[1]], 5))  # shown item 1
    ranker.score(user_items([[2], [2, 3]], 5), user_items([[3], [1]], 5))  # shown 3, and 1: the only one left
    assert ranker.exposure.shown.tolist() == [2, 0, 1]
    assert ranker.exposure.asked.tolist() == [2, 0, 1]
    assert ranker.exposure.known.tolist() == [0, 2, 1]
    assert ranker.exposure.summary()["coverage@1"] == pytest.approx(2 / 3)


def test_of_tied_candidates_each_order_is_as_likely() -> None:
    """Every order of the tied, drawn out: candidates 1 and 2 tie for user 0's second place, all four for user 1's."""
    minus = -np.inf
    scores = np.array([[9, 5, 5, 1], [3, 3, 3, 3], [minus, 7, minus, minus]], dtype=np.float32)
    exposure = TiedExposure(4, k=2)
    exposure.add_scores(scores[:2], targets=np.array([0, 3]), history=np.array([1]))
    exposure.add_scores(scores[2:], targets=np.array([1]), history=np.array([0, 2, 3]))
    assert exposure.shown.tolist() == pytest.approx([1 + 0.5, 0.5 + 0.5 + 1, 0.5 + 0.5, 0.5])
    unseen = [0, 0, 0.5 * 0.5, 0.5]
    assert exposure.coverage == pytest.approx(1 - sum(unseen) / 4)
    assert exposure.summary()["coverage@2"] == exposure.coverage
    assert exposure.asked.tolist() == [1, 1, 0, 1] and exposure.known.tolist() == [1, 1, 1, 1]


def test_without_ties_it_is_what_is_shown() -> None:
    scores = np.random.default_rng(3).normal(size=(30, 12)).astype(np.float32)
    tied, plain = TiedExposure(12, k=4), Exposure(12, k=4)
    nothing = np.empty(0, dtype=np.int64)
    tied.add_scores(scores, nothing, nothing)
    plain.add(np.argsort(-scores, axis=1), np.ones(scores.shape, dtype=bool), nothing, nothing)
    assert tied.shown.tolist() == plain.shown.tolist()
    assert tied.summary() == pytest.approx(plain.summary())
