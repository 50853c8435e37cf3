"""The contract of all baselines: fit once on users × items, then score any user's history against the catalog."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


class ScoringModel(Protocol):
    """A recommender that scores every item for a block of users."""

    def fit(self, user_items: sparse.csr_matrix) -> None:
        """Learn from interactions.

        Args:
            user_items: float32 (users, items) 0/1, what training may see.
        """
        ...

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """Scores of all items, higher is better; what the users know is not masked.

        Args:
            history: float32 (users, items) 0/1; the users need not be those of `fit`.

        Returns:
            float32 (users, items), the caller's to change.
        """
        ...


def num_interactions(user_items: sparse.csr_matrix) -> NDArray[np.int64]:
    """Users of every item, (items,)."""
    return np.bincount(user_items.indices, minlength=user_items.shape[1])
