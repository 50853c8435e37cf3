"""Item-kNN: items that the same users have, by cosine.

Deshpande & Karypis, "Item-based top-N recommendation algorithms" (TOIS 2004), with the shrinkage of Bell & Koren (2007)
that takes weight from similarities seen with few users:

    similarity(i, j) = users of both / (sqrt(users of i · users of j) + shrink),   i ≠ j

Each item keeps its k most similar ones, and score(u, j) is the sum of what u's items keep of j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.baselines.model import num_interactions

SIMILARITIES_AT_ONCE = 2**25


class ItemKnn:
    """`model.ScoringModel`.

    Args:
        neighbours: similar items kept for each item.
        shrink: added to the denominator of every similarity, in users.
    """

    def __init__(self, neighbours: int, shrink: float) -> None:
        self.neighbours, self.shrink = neighbours, shrink
        self.similarities = sparse.csr_matrix((0, 0), dtype=np.float32)

    def fit(self, user_items: sparse.csr_matrix) -> None:
        """Similarities, a block of items at a time: items × items are never dense at once."""
        num_items = user_items.shape[1]
        roots = np.sqrt(num_interactions(user_items)).astype(np.float32)
        items = user_items.T.tocsr()
        rows = max(1, SIMILARITIES_AT_ONCE // num_items)
        blocks: list[sparse.csr_matrix] = []
        for start in range(0, num_items, rows):
            common = (items[start : start + rows] @ user_items).tocsr()
            of_row = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
            common.data /= roots[start + of_row] * roots[common.indices] + np.float32(self.shrink)
            common.data[common.indices == start + of_row] = 0.0
            blocks.append(_largest_of_rows(common, self.neighbours))
        self.similarities = sparse.vstack(blocks, format="csr")

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """Sums of similarities to the history."""
        found: NDArray[np.float32] = (history @ self.similarities).toarray()
        return found


def _largest_of_rows(matrix: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """The k largest positive entries of each row; ties go to the lower column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - matrix.indptr[row]  # rows stay where they are, each in order of value
    kept = order[(place < k) & (matrix.data[order] > 0)]
    return sparse.csr_matrix((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)
