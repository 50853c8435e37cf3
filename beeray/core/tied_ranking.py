"""Ranking by tables of scores in which many candidates tie, as counts and neighbours make them.

What a ranking of ties is worth depends on how they are broken. Here every metric is its *expected* value over all
orders of the tied (McSherry & Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence
of Tied Scores", ECIR 2008): no luck, no seed, and a model that knows nothing of its candidates scores exactly what a
random order does on average. Without ties the figures are those of `evaluation.Ranker`; so it is where candidates are
dropped once ranked (`cut.py`), and for what users are shown.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.baselines.model import ScoringModel
from beeray.core.cut import Cut, cut_of
from beeray.core.evaluation import RankingMetrics, at_candidates, places_among
from beeray.core.exposure import TiedExposure, shown_length

SCORES_AT_ONCE = 2**25
NUMBERS_A_RANK = 16
"""Memory that a cut takes for each rank of a user, in float32 numbers."""


class TiedRanker:
    """Ranks candidates by a model's scores for blocks of users; `evaluation.UserRanker`.

    Args:
        model: fitted.
        candidates: item indices that may be recommended, sorted, (candidates,).
        metrics: what to measure.
        kept: the candidates that stay in the lists once ranked, as `evaluation.Ranker` takes it; all unless given.

    `exposure` counts what the users scored so far are expected to be shown.
    """

    def __init__(
        self,
        model: ScoringModel,
        candidates: NDArray[np.int32],
        metrics: RankingMetrics,
        kept: NDArray[np.int32] | None = None,
    ) -> None:
        self.model, self.candidates, self.metrics, self.kept = model, candidates, metrics, kept
        self.listed = candidates if kept is None else kept
        self.stays: NDArray[np.bool_] | None = None
        if kept is not None:
            self.stays = np.zeros(len(candidates), dtype=bool)
            self.stays[places_among(kept, candidates)] = True
        self.exposure = TiedExposure(len(self.listed), shown_length(metrics.recall_at, metrics.ndcg_at))

    def score(self, history: sparse.csr_matrix, targets: sparse.csr_matrix) -> NDArray[np.float64]:
        """Expected metrics of a block of users, float64 (users, metrics); arguments as `evaluation.Ranker.score`.

        Users are scored in pieces, so that no more than `SCORES_AT_ONCE` scores exist at a time, with what a cut takes.
        """
        ranks = 0 if self.kept is None else min(self.metrics.longest, len(self.candidates))
        rows = max(1, SCORES_AT_ONCE // (history.shape[1] + NUMBERS_A_RANK * ranks))
        pieces = [slice(start, start + rows) for start in range(0, history.shape[0], rows)]
        return np.concatenate([self._score(history[piece], targets[piece]) for piece in pieces])

    def _score(self, history: sparse.csr_matrix, targets: sparse.csr_matrix) -> NDArray[np.float64]:
        scores = self.model.scores(history)
        assert not np.isnan(scores).any(), "scores that are no numbers, which would come first for everybody"
        if len(self.candidates) != scores.shape[1]:
            scores = scores[:, self.candidates]
        seen = at_candidates(history, self.candidates)
        scores[seen.row, seen.col] = -np.inf
        wanted, cut = at_candidates(targets, self.listed), None
        if self.stays is not None:
            cut = cut_of(scores, self.metrics.longest, self.stays)
            scores, seen = scores[:, self.stays], at_candidates(history, self.listed)
        self.exposure.add_scores(scores, wanted.col, seen.col, cut)
        return expected_metrics(scores, wanted, self.metrics, cut)


def expected_metrics(
    scores: NDArray[np.float32], wanted: sparse.coo_matrix, metrics: RankingMetrics, cut: Cut | None = None
) -> NDArray[np.float64]:
    """Each metric's mean over all orders of tied candidates.

    Args:
        scores: (users, candidates); −inf is never recommended.
        wanted: (users, candidates), the targets; at least one a user.
        cut: where the list of all candidates was cut before some were dropped; `scores` are then of those that stay.

    Returns:
        float64 (users, metrics), columns as in `metrics.names`.
    """
    num_targets = np.bincount(wanted.row, minlength=len(scores))
    assert num_targets.min() > 0, "a user without a target among the candidates"
    above, tied = _places(scores, wanted, metrics.longest)
    own = scores[wanted.row, wanted.col]
    found = tied > 0 if cut is None else (tied > 0) & (own >= cut.value[wanted.row])
    rows, above, tied, own = wanted.row[found], above[found], tied[found], own[found]
    recall_at, ndcg_at = ([min(k, scores.shape[1]) for k in ks] for ks in (metrics.recall_at, metrics.ndcg_at))
    discounts = 1.0 / np.log2(np.arange(2, max([*recall_at, *ndcg_at]) + 2))  # no rank without a candidate
    columns: list[NDArray[np.float64]] = []
    for k, gains in [
        *((k, np.ones(k)) for k in recall_at),
        *((k, discounts[:k]) for k in ndcg_at),
    ]:
        summed = np.concatenate([[0.0], np.cumsum(gains)])  # of the first so many ranks
        shared = (summed[np.minimum(above + tied, k)] - summed[np.minimum(above, k)]) / tied
        if cut is not None:
            shared = np.where(own == cut.value[rows], cut.expected(summed, k)[rows], shared)
        gained = np.bincount(rows, weights=shared, minlength=len(scores))
        columns.append(gained / summed[np.minimum(num_targets, k)])
    return np.stack(columns, axis=1)


def _places(
    scores: NDArray[np.float32], wanted: sparse.coo_matrix, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many candidates score above each target, and how many the same as it, itself included.

    Both are exact for targets that may be among the k first; the others have `tied` 0. int64 (targets,) each.
    """
    best = torch.from_numpy(scores).topk(min(k, scores.shape[1]), dim=1).values.numpy()
    last = best[:, -1]
    num_at_last = (scores == last[:, None]).sum(axis=1)  # may go on beyond the k first
    own = scores[wanted.row, wanted.col]
    of_user = best[wanted.row]
    above = (of_user > own[:, None]).sum(axis=1)
    tied = np.where(own == last[wanted.row], num_at_last[wanted.row], (of_user == own[:, None]).sum(axis=1))
    tied[~np.isfinite(own)] = 0
    return above.astype(np.int64), tied.astype(np.int64)
