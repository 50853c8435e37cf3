"""EASE: the linear autoencoder without self-similarity, in closed form.

Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019). With X (users × items) and P = (XᵀX + λ I)⁻¹

    B_ij = −P_ij / P_jj,   B_jj = 0,   scores = X B

which is the ridge regression of every item on all others. One float32 matrix of items × items is held and inverted in
place (Cholesky); items without interactions are left out of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from beeray.core.baselines.model import num_interactions
from beeray.errors import RunError

ROWS_AT_ONCE = 1024


class Ease:
    """`model.ScoringModel`.

    Args:
        l2: λ; larger is smoother.
    """

    def __init__(self, l2: float) -> None:
        self.l2 = l2
        self.items = np.empty(0, dtype=np.int64)
        self.weights = np.empty((0, 0), dtype=np.float32)

    def fit(self, user_items: sparse.csr_matrix) -> None:
        """Invert the Gram matrix.

        Raises:
            RunError: λ is too small for it to be inverted in float32.
        """
        self.items = np.flatnonzero(num_interactions(user_items))
        matrix = user_items[:, self.items].astype(np.float32)
        gram = _gram(matrix)
        gram[np.diag_indices_from(gram)] += np.float32(self.l2)
        factor, failed = lapack.spotrf(gram, overwrite_a=True)
        if failed:
            raise RunError(f"baselines.ease.l2 is {self.l2:g}: XᵀX + l2 I cannot be inverted in float32; raise it")
        inverse, _ = lapack.spotri(factor, overwrite_c=True)  # the upper triangle alone
        _mirror_upper(inverse)
        inverse = inverse.T  # symmetric, and now in the order in which a sparse matrix multiplies it without a copy
        inverse /= -np.diag(inverse).copy()  # each column j by P_jj
        inverse[np.diag_indices_from(inverse)] = 0.0
        self.weights = inverse

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """X B; 0 for items that nobody had."""
        scores = np.zeros(history.shape, dtype=np.float32)
        scores[:, self.items] = history[:, self.items] @ self.weights
        return scores


def check_size(user_items: sparse.csr_matrix, max_items: int) -> None:
    """Refuse a matrix that would not fit, before anything is computed.

    Raises:
        RunError: more than `max_items` items have interactions.
    """
    number = len(np.flatnonzero(num_interactions(user_items)))
    if number > max_items:
        raise RunError(
            f"baselines.ease.max_items is {max_items:,}: {number:,} items have interactions, and EASE would hold a "
            f"dense matrix of {4 * number**2 / 2**30:,.1f} GiB; raise it, or leave ease out of baselines.which"
        )


def _gram(matrix: sparse.csr_matrix) -> NDArray[np.float32]:
    """XᵀX, dense, in Fortran's order as LAPACK wants it, made a block of rows at a time."""
    number = matrix.shape[1]
    gram = np.empty((number, number), dtype=np.float32, order="F")
    items = matrix.T.tocsr()
    for start in range(0, number, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        gram[:, rows] = (items[rows] @ matrix).toarray().T  # symmetric: rows as columns
    return gram


def _mirror_upper(matrix: NDArray[np.float32]) -> None:
    """Copy the upper triangle into the lower one, block by block."""
    number = len(matrix)
    for start in range(0, number, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, number)
        matrix[end:, start:end] = matrix[start:end, end:].T
        corner = np.triu(matrix[start:end, start:end])
        matrix[start:end, start:end] = corner + np.triu(corner, 1).T
