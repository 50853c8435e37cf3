"""Scoring an encoder's embeddings on held-out interactions, block by block of users.

Recommendation as in the paper: user vector = sum of the normalised embeddings of the user's history,
score = dot product with each candidate, history items masked (so the `− X_U` term plays no part).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from beeray.core.exposure import Exposure, shown_length
from beeray.core.metrics import calibrated_recall, ndcg
from beeray.core.topk import ITEMS_PER_BLOCK, top_items


@dataclass(frozen=True)
class RankingMetrics:
    """Which metrics at which k."""

    recall_at: tuple[int, ...] = (20, 50)
    ndcg_at: tuple[int, ...] = (100,)

    @property
    def longest(self) -> int:
        """Length of ranking needed."""
        return max([*self.recall_at, *self.ndcg_at])

    @property
    def names(self) -> list[str]:
        """E.g. `["recall@20", "recall@50", "ndcg@100"]`."""
        return [f"recall@{k}" for k in self.recall_at] + [f"ndcg@{k}" for k in self.ndcg_at]


class UserRanker(Protocol):
    """What ranks candidates for blocks of users and scores the rankings, however it comes to its order.

    `kept`: those that stay in the lists once ranked, as `Ranker` takes it; None where all do.
    """

    metrics: RankingMetrics
    candidates: NDArray[np.int32]
    kept: NDArray[np.int32] | None

    @property
    def exposure(self) -> Exposure:
        """What the users scored so far were shown."""
        ...

    def score(self, history: sparse.csr_matrix, targets: sparse.csr_matrix) -> NDArray[np.float64]:
        """Metrics of a block of users, (users, metrics); see `Ranker.score`."""
        ...


class Ranker:
    """Ranks candidates by embeddings for blocks of users and scores the rankings.

    Args:
        embeddings: (items, d) of the whole catalog, row-normalised, on the device that ranks.
        candidates: item indices that may be recommended, sorted, (candidates,).
        metrics: what to measure.
        items_per_block: candidates scored at a time.
        kept: the candidates that stay in a user's list, sorted: the first `metrics.longest` candidates are taken, then
            all others are dropped and what is behind them moves up. Everything is measured on the list that is left,
            and only these count as targets. All stay unless given.

    `exposure` counts what the users scored so far were shown, over `kept`.
    """

    def __init__(
        self,
        embeddings: Tensor,
        candidates: NDArray[np.int32],
        metrics: RankingMetrics,
        *,
        items_per_block: int = ITEMS_PER_BLOCK,
        kept: NDArray[np.int32] | None = None,
    ) -> None:
        self.embeddings = embeddings
        self.candidates, self.kept = candidates, kept
        self.metrics = metrics
        self.items_per_block = items_per_block
        self.listed = candidates if kept is None else kept
        self.kept_places = None if kept is None else places_among(kept, candidates)
        self.exposure = Exposure(len(self.listed), shown_length(metrics.recall_at, metrics.ndcg_at))
        self.rows: Tensor | None = None  # the whole catalog is ranked as it lies
        if len(candidates) != len(embeddings):
            self.rows = torch.from_numpy(candidates.astype(np.int64)).to(embeddings.device)

    def score(self, history: sparse.csr_matrix, targets: sparse.csr_matrix) -> NDArray[np.float64]:
        """Metrics of a block of users.

        Args:
            history: (users, items) 0/1, what the users are known to like.
            targets: (users, items) 0/1, what is held out; at least one in `candidates` per user, and in `kept`.

        Returns:
            float64 (users, metrics), columns as in `metrics.names`.
        """
        device = self.embeddings.device
        wanted = at_candidates(targets, self.listed)
        num_targets = torch.from_numpy(np.bincount(wanted.row, minlength=targets.shape[0]))
        assert int(num_targets.min()) > 0, "a user without a target among the candidates"
        known = at_candidates(history, self.candidates)
        scores, places = top_items(
            self._user_vectors(history),
            self.embeddings,
            _positions(known, device),
            self.metrics.longest,
            candidates=self.rows,
            items_per_block=self.items_per_block,
        )
        assert not torch.isnan(scores).any(), "embeddings that are no numbers, which would come first for everybody"
        valid, ranked = torch.isfinite(scores).cpu().numpy(), places.cpu().numpy()
        if self.kept_places is not None:
            ranked, valid = _left(ranked, valid, self.kept_places)
            known = at_candidates(history, self.listed)
        self.exposure.add(ranked, valid, wanted.col, known.col)
        hits = torch.from_numpy(_hits(ranked, wanted) & valid)
        columns = [calibrated_recall(hits, num_targets, k) for k in self.metrics.recall_at]
        columns += [ndcg(hits, num_targets, k) for k in self.metrics.ndcg_at]
        return torch.stack(columns, dim=1).numpy()

    def _user_vectors(self, history: sparse.csr_matrix) -> Tensor:
        device = self.embeddings.device
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(history.indices.astype(np.int64)).to(device),
            self.embeddings,
            torch.from_numpy(history.indptr[:-1].astype(np.int64)).to(device),
            mode="sum",
        )


def at_candidates(matrix: sparse.csr_matrix, candidates: NDArray[np.int32]) -> sparse.coo_matrix:
    """Entries at candidates, columns as places among them; the work is in the entries, not in the catalog."""
    entries = matrix.tocoo()
    places = np.minimum(np.searchsorted(candidates, entries.col), len(candidates) - 1)
    kept = candidates[places] == entries.col
    inside = (entries.data[kept], (entries.row[kept], places[kept]))
    return sparse.coo_matrix(inside, shape=(matrix.shape[0], len(candidates)))


def places_among(kept: NDArray[np.int32], candidates: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each of some candidates stands among all of them; both sorted, int64 (kept,)."""
    places = np.searchsorted(candidates, kept)
    assert np.array_equal(candidates[np.minimum(places, len(candidates) - 1)], kept), "kept items are no candidates"
    return places


def _left(
    ranked: NDArray[np.int64], valid: NDArray[np.bool_], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """What is left of rankings, in their order and moved up, as places among `kept`; and whether anything is there.

    Args:
        ranked, valid: (users, ranks), places among the candidates and whether there is one.
        kept: places of those that stay among the candidates, sorted.
    """
    places = np.minimum(np.searchsorted(kept, ranked), len(kept) - 1)
    valid = valid & (kept[places] == ranked)
    order = np.argsort(~valid, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(valid, order, axis=1)


def _positions(matrix: sparse.coo_matrix, device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64)).to(device)


def _hits(places: NDArray[np.int64], wanted: sparse.coo_matrix) -> NDArray[np.bool_]:
    """Whether each ranked candidate is a target of its user, without a dense users × candidates matrix."""
    width = wanted.shape[1]
    keys = np.sort(wanted.row.astype(np.int64) * width + wanted.col)
    ranked = np.arange(len(places), dtype=np.int64)[:, None] * width + places
    found = np.minimum(np.searchsorted(keys, ranked), len(keys) - 1)
    hits: NDArray[np.bool_] = keys[found] == ranked
    return hits


def score_users(
    ranker: UserRanker, blocks: Iterable[tuple[NDArray[np.int64], sparse.csr_matrix, sparse.csr_matrix]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Score blocks of (user indices, history, targets); returns all user indices and their metrics."""
    users: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    for user_index, history, targets in blocks:
        users.append(user_index)
        scores.append(ranker.score(history, targets))
    width = len(ranker.metrics.names)
    if not users:
        return np.empty(0, dtype=np.int64), np.empty((0, width))
    return np.concatenate(users), np.concatenate(scores)


def mean_metrics(names: Sequence[str], scores: NDArray[np.float64]) -> dict[str, float]:
    """Mean of every metric over users."""
    return {name: float(value) for name, value in zip(names, scores.mean(axis=0), strict=True)}
