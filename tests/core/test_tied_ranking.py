"""Rankings with ties: the mean over all orders, worked out by trying them; without ties, the usual figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import hypergeom

from beeray.core.cut import chances_of_kept
from beeray.core.elsa import normalize_rows
from beeray.core.evaluation import Ranker, RankingMetrics, score_users
from beeray.core.exposure import Exposure
from beeray.core.metrics import calibrated_recall, ndcg
from beeray.core.tied_ranking import TiedRanker, expected_metrics

METRICS = RankingMetrics(recall_at=(2, 3), ndcg_at=(2, 4))


def orders(scores: list[float]) -> Iterator[tuple[int, ...]]:
    """Every order of the candidates that a sort by score may give."""
    for order in permutations(range(len(scores))):
        if all(scores[first] >= scores[second] for first, second in pairwise(order)):
            yield order


def of_order(order: Sequence[int], targets: list[int]) -> NDArray[np.float64]:
    """Metrics of one ranking."""
    num_targets = torch.tensor([len(targets)])
    hits = torch.tensor([[item in targets for item in order]])
    columns = [calibrated_recall(hits, num_targets, k) for k in METRICS.recall_at]
    found: NDArray[np.float64] = torch.cat([*columns, *(ndcg(hits, num_targets, k) for k in METRICS.ndcg_at)]).numpy()
    return found


def over_all_orders(scores: list[float], targets: list[int]) -> NDArray[np.float64]:
    """Mean metrics over every order."""
    findable = [target if np.isfinite(scores[target]) else -1 for target in targets]
    mean: NDArray[np.float64] = np.mean([of_order(order, findable) for order in orders(scores)], axis=0)
    return mean


def found(scores: list[float], targets: list[int], metrics: RankingMetrics = METRICS) -> NDArray[np.float64]:
    wanted = sparse.coo_matrix(
        (np.ones(len(targets)), (np.zeros(len(targets), dtype=int), targets)), shape=(1, len(scores))
    )
    return expected_metrics(np.array([scores], dtype=np.float32), wanted, metrics)[0]


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ([3, 2, 1, 0, -1], [0, 3]),  # no tie
        ([1, 1, 1, 1, 1, 1], [0, 4]),  # nothing but ties, beyond the last rank that counts
        ([2, 1, 1, 1, 0, 0], [1, 5]),  # ties across the cut of 2 and of 3
        ([2, 2, 1, 1, 1, 1], [0, 2, 3]),
        ([0, 0, -np.inf, 1], [0, 2]),  # a target that is known is never found
        ([5, 1], [1]),  # fewer candidates than ranks
    ],
)
def test_metrics_are_their_mean_over_all_orders_of_the_tied(scores: list[float], targets: list[int]) -> None:
    np.testing.assert_allclose(found(scores, targets), over_all_orders(scores, targets), rtol=1e-12)


class _Table:
    """Scores by a table, a row a user: the users' histories are empty."""

    def __init__(self, *scores: list[float]) -> None:
        self.table = np.array(scores, dtype=np.float32)

    def fit(self, user_items: sparse.csr_matrix) -> None:
        raise AssertionError("nothing to fit")

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        return self.table.copy()


def dropped(
    scores: list[float], kept: list[int], targets: list[int], metrics: RankingMetrics
) -> tuple[NDArray[np.float64], Exposure]:
    """Metrics of one user, and what it is shown."""
    wanted = np.zeros((1, len(scores)), dtype=np.float32)
    wanted[0, targets] = 1
    places = np.arange(len(scores), dtype=np.int32)
    ranker = TiedRanker(_Table(scores), places, metrics, kept=np.array(kept, dtype=np.int32))
    scored = ranker.score(sparse.csr_matrix(wanted.shape, dtype=np.float32), sparse.csr_matrix(wanted))
    return scored[0], ranker.exposure


@pytest.mark.parametrize(
    ("scores", "kept", "targets"),
    [
        ([6, 5, 4, 3, 2, 1], [1, 3, 4], [3, 4]),  # no tie; 4 is behind the cut of four
        ([1, 1, 1, 1, 1, 1, 1], [0, 2, 5], [0, 5]),  # the cut is within the only group
        ([3, 2, 2, 2, 2, 1, 0], [0, 2, 4, 5], [2, 5]),  # within the second
        ([3, 2, 2, 2, 2, 1, 0], [1, 4], [1, 4]),
        ([3, 3, 3, 2, 2, 2, 2], [1, 2, 4, 5, 6], [1, 5, 6]),  # two groups, the first whole
        ([3, 3, 2, 2, 1, 1, 1], [0, 2, 4], [0, 2]),  # the cut is between two groups
        ([2, 2, 2, 2, 2, 2, 1], [6], [6]),  # all kept behind the cut
        ([2, 2, 1, 1, 0], [0, 1, 2, 3, 4], [2, 4]),  # nothing is dropped
        ([1, 1], [1], [1]),  # fewer candidates than ranks
        ([1, 1, -np.inf, -np.inf, -np.inf, 0], [0, 2, 5], [0, 2]),  # fewer unseen ones than ranks
    ],
)
def test_where_items_are_dropped_it_is_the_mean_over_all_orders_too(
    scores: list[float], kept: list[int], targets: list[int]
) -> None:
    findable = [target if np.isfinite(scores[target]) else -1 for target in targets]
    rows, shown = [], np.zeros(len(scores))
    for order in orders(scores):
        left = [item for item in order[: METRICS.longest] if item in kept]
        rows.append(of_order([*left, *[-2] * (METRICS.longest - len(left))], findable))
        shown[[item for item in left if np.isfinite(scores[item])][:2]] += 1
    scored, exposure = dropped(scores, kept, targets, METRICS)
    np.testing.assert_allclose(scored, np.mean(rows, axis=0), rtol=1e-12)
    np.testing.assert_allclose(exposure.shown, shown[kept] / len(rows), rtol=1e-6)  # of the first two left
    assert exposure.asked.tolist() == [item in targets for item in kept]


def test_many_tied_ones_are_as_a_sample_of_their_orders_has_them() -> None:
    draw, metrics = np.random.default_rng(3), RankingMetrics((5, 20), (30,))
    scores = np.concatenate([np.full(10, 2.0), np.full(90, 1.0), np.zeros(20)])
    kept = np.sort(draw.choice(120, 50, replace=False))
    targets = draw.choice(kept, 12, replace=False)
    hits = np.zeros((4000, 30), dtype=bool)
    for row in hits:
        first = np.lexsort([draw.random(120), -scores])[:30]
        left = first[np.isin(first, kept)]
        row[: len(left)] = np.isin(left, targets)
    num_targets = torch.full((4000,), 12)
    columns = [calibrated_recall(torch.from_numpy(hits), num_targets, k) for k in (5, 20)]
    sample = torch.stack([*columns, ndcg(torch.from_numpy(hits), num_targets, 30)], dim=1).numpy()
    exact, _ = dropped(scores.tolist(), kept.tolist(), targets.tolist(), metrics)
    error = sample.std(axis=0) / np.sqrt(len(sample))
    assert (np.abs(exact - sample.mean(axis=0)) < 4 * error).all() and (error < 0.01).all()
    alone = found(scores[kept].tolist(), np.searchsorted(kept, targets).tolist(), metrics)
    assert (alone > exact + 10 * error)[1:].all(), "of the kept alone the figures are higher"


@pytest.mark.parametrize(
    ("size", "kept", "drawn"), [(9, 4, 5), (7, 0, 3), (7, 7, 3), (4, 2, 4), (10**6, 2 * 10**5, 40)]
)
def test_chances_are_hypergeometric(size: int, kept: int, drawn: int) -> None:
    chances = chances_of_kept(*(np.array([value]) for value in (size, kept, drawn)), 40)[0]
    np.testing.assert_allclose(chances, hypergeom.pmf(np.arange(41), size, kept, drawn), rtol=1e-7, atol=1e-300)
    assert chances.sum() == pytest.approx(1, abs=1e-14)


def test_a_k_that_no_memory_holds_is_the_number_of_candidates() -> None:
    scores, wanted = np.array([[5, 1, 1]], dtype=np.float32), sparse.coo_matrix(([1, 1], ([0, 0], [0, 2])))
    for k in (10**11, 10**30):
        large = expected_metrics(scores, wanted, RankingMetrics(recall_at=(k,), ndcg_at=(k,)))
        np.testing.assert_array_equal(
            large, expected_metrics(scores, wanted, RankingMetrics(recall_at=(3,), ndcg_at=(3,)))
        )


def test_a_model_that_knows_nothing_scores_as_a_random_order() -> None:
    # 10 candidates, 1 target: among the first 2 in a fifth of all orders
    assert found([0.0] * 10, [7])[0] == pytest.approx(2 / 10)
    assert found([0.0] * 10, [7])[0] != found([0.0] * 7 + [1.0] + [0.0] * 2, [7])[0]


class _Products:
    """Scores by embeddings, as a model."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        self.embeddings = embeddings.numpy()

    def fit(self, user_items: sparse.csr_matrix) -> None:
        raise AssertionError("nothing to fit")

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        product: NDArray[np.float32] = history @ self.embeddings @ self.embeddings.T
        return product


@pytest.mark.parametrize("kept", [None, np.arange(2, 40, 6)])
@pytest.mark.parametrize("candidates", [np.arange(40), np.arange(0, 40, 2)])
def test_without_ties_the_figures_are_those_of_the_encoders_ranker(
    candidates: NDArray[np.int64], kept: NDArray[np.int64] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(2)
    embeddings = normalize_rows(torch.from_numpy(draw.normal(size=(40, 5)).astype(np.float32)))
    dense = draw.random((9, 40)) < 0.3
    is_target = draw.random((9, 40)) < 0.4
    is_target[:, 2] = dense[:, 2] = True  # each has a target among the candidates
    history, targets = (sparse.csr_matrix(part.astype(np.float32)) for part in (dense & ~is_target, dense & is_target))
    items, stays = candidates.astype(np.int32), None if kept is None else kept.astype(np.int32)
    encoders = Ranker(embeddings, items, METRICS, kept=stays)
    ranked = encoders.score(history, targets)
    monkeypatch.setattr("beeray.core.tied_ranking.SCORES_AT_ONCE", 210)  # two users at a time, or more
    tied = TiedRanker(_Products(embeddings), items, METRICS, kept=stays)
    users, scores = score_users(tied, [(np.arange(9), history, targets)])
    np.testing.assert_allclose(scores, ranked, rtol=1e-9)
    assert users.tolist() == list(range(9)) and 0 < ranked.mean() < 1
    assert tied.exposure.summary() == pytest.approx(encoders.exposure.summary())
