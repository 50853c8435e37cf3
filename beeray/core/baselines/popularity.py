"""The same for everyone: items by how many users have them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.baselines.model import num_interactions


class Popularity:
    """score(u, i) = users of i; `model.ScoringModel`."""

    def __init__(self) -> None:
        self.counts = np.empty(0, dtype=np.float32)

    def fit(self, user_items: sparse.csr_matrix) -> None:
        """Count."""
        self.counts = num_interactions(user_items).astype(np.float32)

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """The counts, a row a user."""
        return np.tile(self.counts, (history.shape[0], 1))
