"""Rankings with ties: the mean over all orders, worked out by trying them; without ties, the usual figures."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.elsa import normalize_rows
from beeray.core.evaluation import Ranker, RankingMetrics, score_users
from beeray.core.metrics import calibrated_recall, ndcg
from beeray.core.tied_ranking import TiedRanker, expected_metrics

METRICS = RankingMetrics(recall_at=(2, 3), ndcg_at=(2, 4))


def over_all_orders(scores: list[float], targets: list[int]) -> NDArray[np.float64]:
    """Mean metrics over every order of the candidates that a sort by score may give."""
    num_targets, rows = torch.tensor([len(targets)]), []
    for order in permutations(range(len(scores))):
        if all(scores[first] >= scores[second] for first, second in pairwise(order)):
            hits = torch.tensor([[item in targets and np.isfinite(scores[item]) for item in order]])
            columns = [calibrated_recall(hits, num_targets, k) for k in METRICS.recall_at]
            rows.append(torch.cat([*columns, *(ndcg(hits, num_targets, k) for k in METRICS.ndcg_at)]).numpy())
    return np.mean(rows, axis=0)


def found(scores: list[float], targets: list[int]) -> NDArray[np.float64]:
    wanted = sparse.coo_matrix(
        (np.ones(len(targets)), (np.zeros(len(targets), dtype=int), targets)), shape=(1, len(scores))
    )
    return expected_metrics(np.array([scores], dtype=np.float32), wanted, METRICS)[0]


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


@pytest.mark.parametrize("candidates", [np.arange(40), np.arange(0, 40, 2)])
def test_without_ties_the_figures_are_those_of_the_encoders_ranker(
    candidates: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(2)
    embeddings = normalize_rows(torch.from_numpy(draw.normal(size=(40, 5)).astype(np.float32)))
    dense = draw.random((9, 40)) < 0.3
    is_target = draw.random((9, 40)) < 0.4
    is_target[:, 2] = dense[:, 2] = True  # each has a target among the candidates
    history, targets = (sparse.csr_matrix(part.astype(np.float32)) for part in (dense & ~is_target, dense & is_target))
    ranked = Ranker(embeddings, candidates.astype(np.int32), METRICS).score(history, targets)
    monkeypatch.setattr("beeray.core.tied_ranking.SCORES_AT_ONCE", 90)  # two users at a time
    tied = TiedRanker(_Products(embeddings), candidates.astype(np.int32), METRICS)
    users, scores = score_users(tied, [(np.arange(9), history, targets)])
    np.testing.assert_allclose(scores, ranked, rtol=1e-9)
    assert users.tolist() == list(range(9)) and 0 < ranked.mean() < 1
