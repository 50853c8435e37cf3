"""How good an index is: recall@k against exact search, and the time of a query.

    recall@k = mean over queries of |found ∩ k nearest| / min(k, items − 1)

Queries are published vectors; a query does not count as its own neighbour. A found item counts when its exact
score reaches that of the k-th nearest: among items of equal score (repeated texts, bits) none is the right one.
Exact neighbours come from the publication's files block by block, so they cost time but no memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beeray.data.embedding_format import Vectors

Rows = NDArray[np.int64]
ROUNDING = 1e-6
"""Scores closer than this, relative to the longest vectors, are equal: FAISS adds up in another order."""
PAIRS_BYTES = 1 << 26
NUM_TIMED, NUM_WARM_UP = 100, 5


class RowSample:
    """A seeded sample of a table's rows, without repetition, filled while the table streams by.

    Args:
        num_rows: rows of the table.
        size: rows to draw, at most.
        dim: dimensions of a vector.
        seed: of the draw.

    Attributes:
        rows: the numbers drawn, ascending, int64 (sample,).
        vectors: float32 (sample, dim).
    """

    def __init__(self, num_rows: int, size: int, dim: int, seed: Sequence[int]) -> None:
        draw = np.random.default_rng(list(seed))
        self.rows: Rows = np.sort(draw.choice(num_rows, min(size, num_rows), replace=False, shuffle=False))
        self.vectors: Vectors = np.zeros((len(self.rows), dim), np.float32)

    def take(self, start: int, vectors: Vectors) -> None:
        """Keep those of the rows from `start` on that were drawn; vectors are float32 (rows, dim)."""
        first, last = np.searchsorted(self.rows, [start, start + len(vectors)])
        self.vectors[first:last] = vectors[self.rows[first:last] - start]


class ExactNeighbours:
    """The scores of each query's k nearest items, over blocks of items.

    Attributes:
        scores: inner products, float32 (queries, at most k), highest first.
        largest_norm: of any item.
    """

    def __init__(self, queries: RowSample, k: int) -> None:
        self.queries = queries
        self.k = k
        self.scores = np.empty((len(queries.rows), 0), np.float32)
        self.largest_norm = 0.0

    def add(self, start: int, vectors: Vectors) -> None:
        """Look at the items of rows `start` on; float32 (rows, dim)."""
        import faiss

        k = min(self.k + 1, len(vectors))
        scores, rows = faiss.knn(self.queries.vectors, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        scores[rows + start == self.queries.rows[:, None]] = -np.inf
        scores = np.concatenate([self.scores, scores], axis=1)
        self.scores = -np.sort(-scores, axis=1)[:, : self.k]
        self.largest_norm = max(self.largest_norm, float(np.linalg.norm(vectors, axis=1).max()))


def measure_recall(
    index: Any, queries: RowSample, recall_at: Sequence[int], blocks: Iterable[tuple[int, Vectors]]
) -> dict[int, float]:
    """Mean recall@k of an index, for each k.

    Args:
        index: a FAISS index of all items; its rows are numbered as the blocks are.
        queries: some of the items.
        recall_at: the ks; each is searched on its own, since asking for more makes a graph look further.
        blocks: all items: number of the first row, float32 (rows, dim).

    Returns:
        Recall by k, between 0 and 1; empty where there is only one item.
    """
    found = {k: neighbours(index, queries, k) for k in recall_at}
    scores = {k: np.full(rows.shape, -np.inf, np.float32) for k, rows in found.items()}
    exact = ExactNeighbours(queries, max(recall_at))
    for start, vectors in blocks:
        exact.add(start, vectors)
        for k, rows in found.items():
            _score(queries.vectors, start, vectors, rows, scores[k])
    num_others = index.ntotal - 1
    if not num_others:
        return {}
    rounding = ROUNDING * exact.largest_norm * np.linalg.norm(queries.vectors, axis=1)
    recall = {}
    for k in recall_at:
        wanted = min(k, num_others)
        right = scores[k] >= (exact.scores[:, wanted - 1] - rounding)[:, None]
        recall[k] = round(float((right.sum(axis=1) / wanted).mean()), 4)
    return recall


def neighbours(index: Any, queries: RowSample, k: int) -> Rows:
    """The k nearest items of each query by the index, itself left out: int64 (queries, k), −1 where none was found."""
    _, rows = index.search(queries.vectors, k + 1)
    itself = rows == queries.rows[:, None]
    others_first = np.argsort(itself, axis=1, kind="stable")
    return np.take_along_axis(rows, others_first, axis=1)[:, :k]


def median_query_ms(index: Any, queries: RowSample, k: int) -> float:
    """Median milliseconds of one query for k neighbours, on one thread."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        seconds = []
        for place in range(NUM_WARM_UP + NUM_TIMED):
            query = queries.vectors[place % len(queries.vectors)][None]
            started = time.perf_counter()
            index.search(query, k)
            seconds.append(time.perf_counter() - started)
    finally:
        faiss.omp_set_num_threads(threads)
    return round(1000 * float(np.median(seconds[NUM_WARM_UP:])), 4)


def _score(queries: Vectors, start: int, vectors: Vectors, rows: Rows, scores: NDArray[np.float32]) -> None:
    """Fill in the exact scores of those found items that are in a block."""
    query_of, place = np.nonzero((rows >= start) & (rows < start + len(vectors)))
    step = max(1, PAIRS_BYTES // (4 * vectors.shape[1]))
    for first in range(0, len(query_of), step):
        one, at = query_of[first : first + step], place[first : first + step]
        scores[one, at] = np.einsum("nd,nd->n", queries[one], vectors[rows[one, at] - start])
