"""What a ranking shows to users: how much of the catalog, how evenly, and how popular.

A model may score well by showing everybody the same few popular items. Three figures tell, for the first k of every
user's ranking, over the candidates, or those of them that stay where others are dropped once ranked:

    coverage@k     share of the candidates that at least one user is shown
    gini@k         Gini coefficient of how often each candidate is shown: 0 all alike, 1 − 1/candidates one alone
    popularity@k   mean popularity of what is shown, to be held against that of the users' targets

The popularity of an item is the share of the candidates that fewer of the evaluated users have, in history or
targets, ties counted half: the mean over all candidates is exactly ½, so showing at random gives ½.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

if TYPE_CHECKING:
    from beeray.core.cut import Cut

Counts = NDArray[np.int32]


class Exposure:
    """Counts of one ranking, block by block of users; three integers a candidate.

    Args:
        num_candidates: items ranked.
        k: length of the list that a user is shown.
    """

    def __init__(self, num_candidates: int, k: int) -> None:
        self.k = k
        self.counts: Counts = np.zeros((3, num_candidates), dtype=np.int32)

    @property
    def shown(self) -> NDArray[Any]:
        """How often each candidate is among a user's first k, (candidates,)."""
        return self.counts[0]

    @property
    def coverage(self) -> float:
        """Share of the candidates that at least one user is shown."""
        return float((self.shown > 0).mean())

    @property
    def asked(self) -> Counts:
        """How many users have each candidate as a target, (candidates,)."""
        return self.counts[1]

    @property
    def known(self) -> Counts:
        """How many users have each candidate in their history, (candidates,)."""
        return self.counts[2]

    def add(
        self,
        places: NDArray[np.int64],
        valid: NDArray[np.bool_],
        targets: NDArray[np.int64],
        history: NDArray[np.int64],
    ) -> None:
        """Count a block of users; the work is in their entries, not in the candidates.

        Args:
            places: candidates ranked, (users, ranks), best first.
            valid: whether there is anything at a rank, (users, ranks).
            targets, history: flat places of all of the users' targets and known items.
        """
        np.add.at(self.shown, places[:, : self.k][valid[:, : self.k]], 1)
        np.add.at(self.asked, targets, 1)
        np.add.at(self.known, history, 1)

    def reduce(self, sum_over_ranks: Callable[[Counts], Counts]) -> None:
        """Replace the counts by their sum over ranks; collective if `sum_over_ranks` is."""
        self.counts = sum_over_ranks(self.counts)

    def summary(self) -> dict[str, float]:
        """`coverage@k, gini@k, popularity@k, target_popularity`; empty when nobody was shown anything."""
        if not self.shown.any():
            return {}
        popularity = mid_rank(self.asked + self.known)
        return {
            f"coverage@{self.k}": self.coverage,
            f"gini@{self.k}": gini(self.shown),
            f"popularity@{self.k}": float(popularity @ self.shown / self.shown.sum()),
            "target_popularity": float(popularity @ self.asked / max(1, self.asked.sum())),
        }


class TiedExposure(Exposure):
    """The same where candidates tie: what is expected over all orders of the tied, of each user by itself."""

    def __init__(self, num_candidates: int, k: int) -> None:
        super().__init__(num_candidates, k)
        self._shown = np.zeros(num_candidates, dtype=np.float64)
        self._log_unseen = np.zeros(num_candidates, dtype=np.float64)

    @property
    def shown(self) -> NDArray[Any]:
        """How often each candidate is expected among a user's first k, (candidates,)."""
        return self._shown

    @property
    def coverage(self) -> float:
        """Share of the candidates that are expected to be shown to at least one user."""
        return float((1 - np.exp(self._log_unseen)).mean())

    def add_scores(
        self,
        scores: NDArray[np.float32],
        targets: NDArray[np.int64],
        history: NDArray[np.int64],
        cut: Cut | None = None,
    ) -> None:
        """Count a block of users.

        Args:
            scores: (users, candidates); −inf is never shown.
            targets, history: as `add`.
            cut: as `tied_ranking.expected_metrics`; nothing behind it is shown, however few are before it.
        """
        k = min(self.k, scores.shape[1])
        last = np.partition(scores, -k, axis=1)[:, -k][:, None]
        if cut is not None:
            last = np.maximum(last, cut.value[:, None])
        surely = scores > last
        tied = (scores == last) & np.isfinite(scores)
        share = (k - surely.sum(axis=1)) / np.maximum(1, tied.sum(axis=1))
        if cut is not None:
            share = np.where(last[:, 0] == cut.value, cut.expected(np.arange(k + 1.0), k), share)
        chance = np.where(tied, share[:, None], surely).astype(np.float32)
        self._shown += chance.sum(axis=0, dtype=np.float64)
        with np.errstate(divide="ignore"):
            self._log_unseen += np.log1p(-chance).sum(axis=0, dtype=np.float64)
        np.add.at(self.asked, targets, 1)
        np.add.at(self.known, history, 1)


def shown_length(recall_at: Iterable[int], ndcg_at: Iterable[int]) -> int:
    """The k of the list that a user is taken to be shown: the shortest that recall asks for, or else nDCG."""
    return min(tuple(recall_at) or tuple(ndcg_at))


def gini(counts: NDArray[Any]) -> float:
    """Gini coefficient of non-negative counts that are not all zero: Σ (2i − n − 1) x_i / (n Σ x), x ascending."""
    ordered = np.sort(counts).astype(np.float64)
    number = len(ordered)
    weights = 2 * np.arange(1, number + 1) - number - 1
    return float(weights @ ordered / (number * ordered.sum()))


def mid_rank(counts: Counts) -> NDArray[np.float64]:
    """Share of all entries that are smaller than each, ties and the entry itself counted half; mean ½."""
    ranks: NDArray[np.float64] = (rankdata(counts, method="average") - 0.5) / len(counts)
    return ranks
