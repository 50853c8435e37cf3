"""Confidence intervals of a mean over users: percentile bootstraps (Efron & Tibshirani, 1993, ch. 13).

Imports numpy alone, which a driver has anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over users with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(per_user: Scores, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
    """Mean and 95 % percentile interval of a per-user metric, users resampled with replacement.

    Args:
        per_user: float64 (users,).
        num_bootstrap: resamples.

    Raises:
        ValueError: no users.
    """
    if not len(per_user):
        raise ValueError("no user has a target: there is nothing to average")
    generator = np.random.default_rng(seed)
    number, values = len(per_user), np.sort(per_user)  # sorted, so that the order of users changes nothing
    means = [values[generator.integers(number, size=number)].mean() for _ in range(num_bootstrap)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(per_user.mean()), float(low), float(high))
