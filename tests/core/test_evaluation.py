"""Ranking and scoring held-out interactions: known answers, blocks, candidates, seen items."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.elsa import normalize_rows
from beeray.core.evaluation import Ranker, RankingMetrics, mean_metrics, score_users
from beeray.core.metrics import calibrated_recall, ndcg
from beeray.core.topk import top_items

NUM_ITEMS = 60
METRICS = RankingMetrics(recall_at=(2, 5), ndcg_at=(3, 10))


def user_items(rows: Sequence[Sequence[int]], num_items: int) -> sparse.csr_matrix:
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([item for row in rows for item in row], dtype=np.int32)
    return sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(rows), num_items))


def indices(*items: int) -> NDArray[np.int32]:
    return np.array(items, dtype=np.int32)


@pytest.fixture
def embeddings() -> torch.Tensor:
    return normalize_rows(torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def interactions() -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Histories and targets of 12 users: disjoint, of 1 to 6 and 1 to 8 items."""
    generator = np.random.default_rng(2)
    profiles = [generator.permutation(NUM_ITEMS) for _ in range(12)]
    history = [sorted(profile[: 1 + user % 6]) for user, profile in enumerate(profiles)]
    targets = [sorted(profile[10 : 11 + user % 8]) for user, profile in enumerate(profiles)]
    return user_items(history, NUM_ITEMS), user_items(targets, NUM_ITEMS)


# items 0–2 point east, 3–5 north, 6 north-east
COMPASS = normalize_rows(
    torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [0.0, 1.0], [0.01, 1.0], [0.02, 1.0], [1.0, 1.0]])
)


def test_a_user_of_the_east_gets_the_eastern_items_it_does_not_know() -> None:
    ranker = Ranker(COMPASS, np.arange(7, dtype=np.int32), RankingMetrics((1, 2), (2, 3)))
    # the ranking for a history of {0} is 1, 2, 6, 5, 4, 3; the target 6 is at rank 3
    scores = ranker.score(user_items([[0], [0]], 7), user_items([[6], [1, 6]], 7))
    # columns recall@1, recall@2, ndcg@2, ndcg@3
    best_of_two = 1 / log2(2) + 1 / log2(3)
    expected = [
        [0 / 1, 0 / 1, 0.0, (1 / log2(4)) / (1 / log2(2))],
        [1 / 1, 1 / 2, (1 / log2(2)) / best_of_two, (1 / log2(2) + 1 / log2(4)) / best_of_two],
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_scores_are_columns_named_by_metric() -> None:
    assert METRICS.names == ["recall@2", "recall@5", "ndcg@3", "ndcg@10"]
    assert METRICS.longest == 10


def test_only_candidates_are_ranked() -> None:
    history, targets = user_items([[0]], 7), user_items([[6]], 7)
    metrics = RankingMetrics((1,), (1,))
    among_all = Ranker(COMPASS, np.arange(7, dtype=np.int32), metrics).score(history, targets)
    among_north = Ranker(COMPASS, indices(3, 4, 6), metrics).score(history, targets)
    assert among_all.tolist() == [[0.0, 0.0]]  # items 1 and 2 come first
    assert among_north.tolist() == [[1.0, 1.0]]


def test_targets_outside_the_candidates_do_not_count() -> None:
    metrics = RankingMetrics((5,), (5,))
    ranker = Ranker(COMPASS, indices(3, 4, 6), metrics)
    inside = ranker.score(user_items([[0]], 7), user_items([[6]], 7))
    assert ranker.score(user_items([[0]], 7), user_items([[1, 6]], 7)).tolist() == inside.tolist()
    with pytest.raises(AssertionError, match="without a target"):
        ranker.score(user_items([[0]], 7), user_items([[1]], 7))


def test_items_that_do_not_stay_take_ranks_before_the_cut_and_none_after_it() -> None:
    # the ranking for a history of {0} is 1, 2, 6, 5, 4, 3; its first four without 1 and 5 are 2, 6
    history, kept = user_items([[0], [0]], 7), indices(2, 3, 6)
    ranker = Ranker(COMPASS, np.arange(7, dtype=np.int32), RankingMetrics((1, 2), (4,)), kept=kept)
    scores = ranker.score(history, user_items([[6], [2, 3]], 7))
    best_of_two = 1 / log2(2) + 1 / log2(3)
    expected = [
        [0 / 1, 1 / 1, 1 / log2(3)],  # 6 has moved from rank 3 to rank 2
        [1 / 1, 1 / 2, 1 / best_of_two],  # 3 is behind the cut, though nothing else is left at rank 3
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    alone = Ranker(COMPASS, kept, RankingMetrics((1, 2), (4,))).score(history, user_items([[6], [2, 3]], 7))
    assert alone[1, 2] == pytest.approx((1 + 1 / log2(4)) / best_of_two), "of the kept alone it is found"
    assert ranker.exposure.k == 1 and ranker.exposure.shown.tolist() == [2, 0, 0]
    assert ranker.exposure.asked.tolist() == [1, 1, 1] and ranker.exposure.known.tolist() == [0, 0, 0]


@pytest.mark.parametrize("candidates", [np.arange(NUM_ITEMS), np.arange(20, NUM_ITEMS)])
def test_dropping_is_cutting_then_leaving_out_then_moving_up(
    embeddings: torch.Tensor,
    interactions: tuple[sparse.csr_matrix, sparse.csr_matrix],
    candidates: NDArray[np.int64],
) -> None:
    kept = candidates[np.random.default_rng(6).random(len(candidates)) < 0.4].astype(np.int32)
    history, targets = (matrix.toarray() > 0 for matrix in interactions)
    users = np.flatnonzero(targets[:, kept].any(axis=1))
    expected, items = [], embeddings.double().numpy()
    for user in users:
        scores = items @ items[history[user]].sum(axis=0)
        ranking = sorted((item for item in candidates if not history[user, item]), key=lambda item: -scores[item])
        left = [item for item in ranking[: METRICS.longest] if item in kept]
        hits = [targets[user, item] for item in left] + [False] * (METRICS.longest - len(left))
        wanted = torch.tensor([targets[user, kept].sum()])
        columns = [calibrated_recall(torch.tensor([hits]), wanted, k) for k in METRICS.recall_at]
        columns += [ndcg(torch.tensor([hits]), wanted, k) for k in METRICS.ndcg_at]
        expected.append(torch.cat(columns).numpy())
    ranker = Ranker(embeddings, candidates.astype(np.int32), METRICS, items_per_block=8, kept=kept)
    found = ranker.score(*(matrix[users] for matrix in interactions))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-12)
    assert (
        len(users) > 5 and (found != Ranker(embeddings, kept, METRICS).score(*(m[users] for m in interactions))).any()
    )


def test_dropping_lowers_no_figure_and_finds_no_target_behind_the_cut(
    embeddings: torch.Tensor, interactions: tuple[sparse.csr_matrix, sparse.csr_matrix]
) -> None:
    catalog, metrics = np.arange(NUM_ITEMS, dtype=np.int32), RankingMetrics((3, 10), (10,))
    kept = np.flatnonzero(interactions[1].sum(axis=0)).astype(np.int32)  # what somebody has in the window
    whole = Ranker(embeddings, catalog, metrics).score(*interactions)
    dropped = Ranker(embeddings, catalog, metrics, kept=kept).score(*interactions)
    assert len(kept) < NUM_ITEMS and (dropped >= whole).all()
    assert (dropped[:, [0, 2]] > whole[:, [0, 2]]).any(axis=0).all()
    np.testing.assert_array_equal(dropped[:, 1], whole[:, 1])  # of recall@10, where 10 are taken


def test_nothing_stays_that_is_no_candidate(embeddings: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="no candidates"):
        Ranker(embeddings, indices(1, 3, 5), METRICS, kept=indices(3, 4))


def test_seen_items_are_never_recommended(embeddings: torch.Tensor) -> None:
    generator = np.random.default_rng(4)
    seen_rows = np.repeat(np.arange(5), 20)
    seen_items = np.concatenate([generator.choice(NUM_ITEMS, 20, replace=False) for _ in range(5)])
    seen = torch.from_numpy(np.stack([seen_rows, seen_items]))
    vectors = torch.zeros(5, 6).index_add(0, seen[0], embeddings[seen[1]])  # seen items score high
    scores, places = top_items(vectors, embeddings, seen, NUM_ITEMS, items_per_block=7)
    assert places.shape == (5, NUM_ITEMS)
    for user in range(5):
        known = set(seen_items[seen_rows == user].tolist())
        assert not known & set(places[user, :40].tolist())
        assert bool(torch.isfinite(scores[user, :40]).all())
        assert bool(torch.isneginf(scores[user, 40:]).all())
    _, unmasked = top_items(vectors, embeddings, seen[:, :0], 10)
    assert set(unmasked[0].tolist()) & set(seen_items[:20].tolist())


def test_a_target_that_is_also_in_the_history_is_never_a_hit() -> None:
    ranker = Ranker(COMPASS, np.arange(7, dtype=np.int32), RankingMetrics((7,), (7,)))
    # the ranking has seven places for six unseen items
    scores = ranker.score(user_items([[0]], 7), user_items([[0]], 7))
    assert scores.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("items_per_block", [3, 100])
def test_candidates_by_number_are_ranked_as_a_table_of_them(embeddings: torch.Tensor, items_per_block: int) -> None:
    rows = torch.arange(1, NUM_ITEMS, 3)
    seen = torch.tensor([[0, 0, 2], [4, 0, 19]])  # places among the candidates
    vectors = embeddings[:3]
    by_number = top_items(vectors, embeddings, seen, 8, candidates=rows, items_per_block=items_per_block)
    as_table = top_items(vectors, embeddings[rows], seen, 8, items_per_block=items_per_block)
    assert all(torch.equal(one, other) for one, other in zip(by_number, as_table, strict=True))
    assert not torch.equal(by_number[1], top_items(vectors, embeddings, seen, 8)[1])


@pytest.mark.parametrize("items_per_block", [1, 7, 10, 59, 60])
def test_ranking_in_blocks_equals_ranking_at_once(
    embeddings: torch.Tensor, interactions: tuple[sparse.csr_matrix, sparse.csr_matrix], items_per_block: int
) -> None:
    candidates = np.arange(NUM_ITEMS, dtype=np.int32)
    whole = Ranker(embeddings, candidates, METRICS).score(*interactions)
    blocks = Ranker(embeddings, candidates, METRICS, items_per_block=items_per_block).score(*interactions)
    np.testing.assert_array_equal(blocks, whole)
    assert 0 < whole.mean() < 1


@pytest.mark.parametrize("candidates", [np.arange(NUM_ITEMS), np.arange(0, NUM_ITEMS, 2), np.arange(10, 50)])
def test_scores_equal_those_of_a_dense_ranking(
    embeddings: torch.Tensor,
    interactions: tuple[sparse.csr_matrix, sparse.csr_matrix],
    candidates: NDArray[np.int64],
) -> None:
    history, targets = (matrix.toarray() for matrix in interactions)
    liked = targets[:, candidates] > 0
    users = liked.any(axis=1)
    assert users.sum() > 5
    items = embeddings.double().numpy()
    scores = history @ items @ items[candidates].T
    scores[history[:, candidates] > 0] = -np.inf
    ranking = np.argsort(-scores, axis=1)
    hits = torch.from_numpy(np.take_along_axis(liked, ranking, axis=1))[users]
    num_targets = torch.from_numpy(liked.sum(axis=1))[users]
    expected = [calibrated_recall(hits, num_targets, k) for k in METRICS.recall_at]
    expected += [ndcg(hits, num_targets, k) for k in METRICS.ndcg_at]
    ranker = Ranker(embeddings, candidates.astype(np.int32), METRICS, items_per_block=8)
    found = ranker.score(*(matrix[users] for matrix in interactions))
    np.testing.assert_allclose(found, torch.stack(expected, dim=1).numpy(), rtol=1e-12)


def test_users_scored_in_blocks_keep_their_order_and_their_scores(
    embeddings: torch.Tensor, interactions: tuple[sparse.csr_matrix, sparse.csr_matrix]
) -> None:
    history, targets = interactions
    ranker = Ranker(embeddings, np.arange(NUM_ITEMS, dtype=np.int32), METRICS)
    user_index = np.arange(100, 112)
    blocks = [(user_index[part], history[part], targets[part]) for part in (slice(0, 5), slice(5, 6), slice(6, 12))]
    users, scores = score_users(ranker, blocks)
    assert users.tolist() == user_index.tolist()
    np.testing.assert_array_equal(scores, ranker.score(history, targets))
    means = mean_metrics(METRICS.names, scores)
    assert means == pytest.approx({name: scores[:, place].mean() for place, name in enumerate(METRICS.names)})


def test_no_blocks_give_no_users_and_as_many_columns_as_metrics(embeddings: torch.Tensor) -> None:
    users, scores = score_users(Ranker(embeddings, np.arange(NUM_ITEMS, dtype=np.int32), METRICS), [])
    assert users.shape == (0,)
    assert scores.shape == (0, 4)


@pytest.mark.parametrize("item", [0, 5])
def test_nobody_is_ranked_by_embeddings_that_are_no_numbers(item: int) -> None:
    """Not one in a history (0) nor one among the candidates (5)."""
    embeddings = torch.eye(7)
    embeddings[item] = float("nan")
    history, targets = (
        sparse.csr_matrix(([1.0], ([0], [column])), shape=(1, 7), dtype=np.float32) for column in (0, 3)
    )
    sound = Ranker(torch.eye(7), np.arange(7, dtype=np.int32), RankingMetrics((1,), (2,)))
    assert np.isfinite(sound.score(history, targets)).all()
    with pytest.raises(AssertionError, match="no numbers"):
        Ranker(embeddings, np.arange(7, dtype=np.int32), RankingMetrics((1,), (2,))).score(history, targets)
