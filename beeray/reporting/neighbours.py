"""Nearest neighbours among a report's items, how many are kept, and the items that users have together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from beeray.data.report_items import ORIGINAL, TRAINED, item_indices, read_embeddings

ROWS_AT_ONCE = 1024
SHRINKAGE = 10.0
"""Users in common that a pair is taken to lack: so that two rare items with one user in common do not come first."""


def nearest(embeddings: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each item's k nearest others by cosine, best first.

    Args:
        embeddings: (items, d), row-normalised.
        k: cut to the number of other items.

    Returns:
        places int64 (items, k) and cosines float32 (items, k).
    """
    k = min(k, len(embeddings) - 1)
    places, cosines = [], []
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        block = embeddings[start : start + ROWS_AT_ONCE] @ embeddings.T
        rows = np.arange(len(block))[:, None]
        block[rows[:, 0], start + rows[:, 0]] = -np.inf
        best = np.argpartition(-block, k - 1, axis=1)[:, :k]
        order = np.argsort(-block[rows, best], axis=1, kind="stable")
        places.append(best[rows, order])
        cosines.append(block[rows, places[-1]])
    return np.concatenate(places), np.concatenate(cosines)


def neighbours_kept(folder: Path, k: int) -> NDArray[np.float64] | None:
    """Of each of a report's items, the share of its k nearest others that still are after training; float64 (items,).

    Args:
        folder: the run's `report/`.

    Returns:
        None where embeddings of either encoder were not kept.
    """
    items = item_indices(folder)
    if items is None or len(items) < 2:
        return None
    before, after = (read_embeddings(folder, name, len(items)) for name in (ORIGINAL, TRAINED))
    if before is None or after is None:
        return None
    (then, _), (now, _) = nearest(before, k), nearest(after, k)
    return np.asarray((then[:, :, None] == now[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)


def bought_together(
    together: sparse.csr_matrix, num_users: NDArray[np.int64], k: int, shrinkage: float = SHRINKAGE
) -> list[list[tuple[int, int, float]]]:
    """Each item's k strongest partners among users: `n_ij / (sqrt(n_i n_j) + shrinkage)`, a shrunken cosine.

    Args:
        together: (items, items), users who have both; empty diagonal.
        num_users: users who have each item, (items,).

    Returns:
        of each item (place, users in common, score), best first; fewer where fewer have a user in common.
    """
    partners = []
    for item in range(together.shape[0]):
        row = slice(together.indptr[item], together.indptr[item + 1])
        others, common = together.indices[row], together.data[row]
        scores = common / (np.sqrt(float(num_users[item]) * num_users[others]) + shrinkage)
        best = np.argsort(-scores, kind="stable")[:k]
        partners.append([(int(others[one]), int(common[one]), float(scores[one])) for one in best])
    return partners


def users_in_common(together: sparse.csr_matrix, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Users who have an item and its neighbour, of every (item, rank): int64, shaped as `places`."""
    rows = np.repeat(np.arange(len(places)), places.shape[1])
    common: NDArray[np.int64] = np.asarray(together[rows, places.ravel()]).reshape(places.shape).astype(np.int64)
    return common
