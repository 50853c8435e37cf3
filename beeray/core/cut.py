"""Where rankings with ties are cut, and how many of the items that stay come before the cut.

A list of the first so many candidates is cut inside at most one group of tied ones. If some candidates are dropped from
the list afterwards, what is left of that group depends on the order of the tied. Of `size` ones, `kept` of which stay,
the cut takes `room`: over all orders, the number J of those that stay among them is hypergeometric. Each of the kept is
as often the h-th of them, so it is that, and before the cut, with chance P(J ≥ h) / kept; what it is expected to gain
is the mean over J of what the first J of them gain, divided by `kept`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """The group of every user's tied candidates that the cut falls into or behind.

    Attributes:
        value: the score that they share, (users,).
        above: how many of those that stay score more, int64 (users,).
        kept: how many of those that stay have the score, int64 (users,).
        chances: float64 (users, ranks + 1), that so many of these come before the cut.
    """

    value: NDArray[np.float32]
    above: NDArray[np.int64]
    kept: NDArray[np.int64]
    chances: NDArray[np.float64]

    def expected(self, summed: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        """What each kept one of the group is expected to gain in the first k ranks of what is left, (users,).

        Args:
            summed: gains of the first so many ranks, (at least k + 1,).
        """
        number = np.arange(self.chances.shape[1])
        gained = summed[np.minimum(self.above[:, None] + number, k)] - summed[np.minimum(self.above, k)][:, None]
        return (self.chances * gained).sum(axis=1) / np.maximum(1, self.kept)


def cut_of(scores: NDArray[np.float32], ranks: int, stays: NDArray[np.bool_]) -> Cut:
    """The group at the last of the first `ranks` candidates of every user.

    Args:
        scores: (users, candidates).
        stays: (candidates,), which ones are not dropped.
    """
    ranks = min(ranks, scores.shape[1])
    best, places = (found.numpy() for found in torch.from_numpy(scores).topk(ranks, dim=1))
    value = best[:, -1]
    higher = best > value[:, None]
    at_value = scores == value[:, None]
    size, kept = at_value.sum(axis=1), at_value[:, stays].sum(axis=1)
    chances = chances_of_kept(size, kept, ranks - higher.sum(axis=1), ranks)
    return Cut(value, (higher & stays[places]).sum(axis=1), kept, chances)


def chances_of_kept(
    size: NDArray[np.int64], kept: NDArray[np.int64], drawn: NDArray[np.int64], most: int
) -> NDArray[np.float64]:
    """Hypergeometric chances of 0 … `most` kept ones among those drawn, float64 (groups, most + 1).

    From ratios of neighbours and not from factorials, whose logarithms lose digits in large groups.

    Args:
        size: of each group, (groups,).
        kept: how many of the group are kept, (groups,).
        drawn: how many are drawn, at most `most`, (groups,).
    """
    size, kept, drawn = size[:, None], kept[:, None], drawn[:, None]
    number = np.arange(most + 1)[None]
    fewest, largest = np.maximum(0, drawn - (size - kept)), np.minimum(drawn, kept)
    step = number[:, :-1]
    possible = (step >= fewest) & (step < largest)
    more = (kept - step) * (drawn - step).astype(np.float64)
    less = (step + 1.0) * (size - kept - drawn + step + 1)
    logs = np.log(np.divide(more, less, out=np.ones_like(more), where=possible))
    logs = np.concatenate([np.zeros(drawn.shape), np.cumsum(logs, axis=1)], axis=1)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True)) * ((number >= fewest) & (number <= largest))
    chances: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return chances
