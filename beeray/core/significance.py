"""Whether one system ranks better than another: paired bootstrap over users, and Holm's correction for many questions.

All systems scored the same users, so what is resampled is users, with all that every system scored for them: what
makes a user hard or easy for both falls out of their difference. Resamples are shared by systems and metrics.

- Interval of a mean or of a difference: the 2.5 % and 97.5 % quantiles of its resampled means (Efron & Tibshirani, "An
  Introduction to the Bootstrap", 1993, ch. 13; for rankings: Sakai, SIGIR 2006).
- p: that interval turned around, i.e. one minus the widest confidence at which the interval of the difference leaves
  out zero: twice the smaller share of resampled differences on either side of zero (ch. 15.4), each count plus one so
  that no finite number of resamples gives 0 (Davison & Hinkley, 1997, section 4.2.5). p and interval never disagree.
- Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979): the chance of one or more false findings in
  the whole family stays below alpha, however the questions depend on each other.

Imports numpy alone, so that a comparison starts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COUNTS_AT_ONCE = 2**22
MEANS_AT_ONCE = 2**25
"""Resampled means that are held at once (a quarter of a GiB); of more columns the same resamples are drawn again."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedBootstrap:
    """What resampling users says of several systems, the first of which is the reference.

    Attributes:
        means: (systems, metrics).
        intervals: (systems, metrics, 2), low and high of each mean.
        differences: (systems − 1, metrics), each other system's mean less the reference's.
        difference_intervals: (systems − 1, metrics, 2).
        p_values: (systems − 1, metrics), two-sided.
    """

    means: Floats
    intervals: Floats
    differences: Floats
    difference_intervals: Floats
    p_values: Floats


def paired_bootstrap(scores: Floats, *, num_bootstrap: int = 10_000, seed: int = 0) -> PairedBootstrap:
    """Compare systems that scored the same users; the same seed and users in the same order give the same answer.

    Args:
        scores: (systems, users, metrics), the reference first.
        num_bootstrap: resamples; p is at least 2 / (num_bootstrap + 1).

    Raises:
        ValueError: no users.
    """
    num_systems, num_users, num_metrics = scores.shape
    if not num_users:
        raise ValueError("no user was scored by all systems: there is nothing to compare")
    differences = scores[1:] - scores[:1]  # before resampling: systems that are equal differ by exactly nothing
    columns = np.concatenate([scores, differences]).transpose(1, 0, 2).reshape(num_users, -1)
    at_once = max(1, MEANS_AT_ONCE // num_bootstrap)
    parts = [columns[:, first : first + at_once] for first in range(0, columns.shape[1], at_once)]
    found = np.concatenate([_of_columns(part, num_bootstrap, seed) for part in parts], axis=1)
    found = found.reshape(4, 2 * num_systems - 1, num_metrics)
    intervals = np.moveaxis(found[:2], 0, -1)
    below, above = found[2:, num_systems:]
    return PairedBootstrap(
        means=scores.mean(axis=1),
        intervals=intervals[:num_systems],
        differences=differences.mean(axis=1),
        difference_intervals=intervals[num_systems:],
        p_values=np.minimum(1.0, 2.0 * (1 + np.minimum(below, above)) / (num_bootstrap + 1)),
    )


def _of_columns(columns: Floats, num_bootstrap: int, seed: int) -> Floats:
    """Of each column's resampled means: low, high, and how many are at most and at least 0; (4, columns)."""
    resampled = np.empty((num_bootstrap, columns.shape[1]))
    done = 0
    for means in _resampled_means(columns, num_bootstrap, seed):
        resampled[done : done + len(means)] = means
        done += len(means)
    counts = [(resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0)]
    tail = (1 - CONFIDENCE) / 2
    return np.stack([*np.quantile(resampled, [tail, 1 - tail], axis=0, overwrite_input=True), *counts])


def _resampled_means(columns: Floats, num_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Means of the columns over resampled users, (resamples, columns), block by block of resamples."""
    generator = np.random.default_rng(seed)
    num_users = len(columns)
    block = max(1, COUNTS_AT_ONCE // num_users)
    for start in range(0, num_bootstrap, block):
        size = min(block, num_bootstrap - start)
        drawn = generator.integers(num_users, size=(size, num_users))
        drawn += np.arange(size)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users)
        yield counts.astype(np.float64) @ columns / num_users


def holm(p_values: Floats) -> Floats:
    """Holm's adjusted p-values of a family: a hypothesis is refused at alpha where its adjusted p is at most alpha.

    The i-th smallest of m, from 0, becomes the largest of (m − j) · p over j ≤ i, and at most 1.

    Args:
        p_values: (hypotheses,), in any order.

    Returns:
        (hypotheses,), in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted
