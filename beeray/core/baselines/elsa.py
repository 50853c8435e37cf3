"""ELSA with an embedding of its own for every item: the loss that encoders are fine-tuned with, and no text.

Vančura et al., "Scalable Linear Shallow Autoencoder for Collaborative Filtering" (RecSys 2022). With A (items × d) and
E its rows at unit length, scores = X E Eᵀ − X; A is trained by Adam on ‖ normalize(relu(scores)) − normalize(X) ‖² of
batches of users, over all items at once; `core.elsa` has the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from beeray.core.baselines.model import num_interactions
from beeray.core.elsa import elsa_scores, nmse_per_user, normalize_rows, not_finite_rows
from beeray.errors import RunError

SCORES_AT_ONCE = 2**25


class Elsa:
    """`model.ScoringModel`.

    Args:
        dim: numbers of an embedding.
        epochs: passes over all users.
        batch_size: users of a step.
        lr: Adam's, constant.
        relu: drop negative scores from the loss.
        seed: draws the first embeddings and the order of users.
        progress: told epochs done and the mean loss after each.
    """

    def __init__(
        self,
        dim: int,
        epochs: int,
        batch_size: int,
        lr: float = 0.01,
        *,
        relu: bool = True,
        seed: int = 42,
        progress: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> None:
        self.dim, self.epochs, self.batch_size, self.lr, self.relu, self.seed = dim, epochs, batch_size, lr, relu, seed
        self.progress = progress
        self.embeddings = torch.empty(0, dim)

    def fit(self, user_items: sparse.csr_matrix) -> None:
        """Train; embeddings of items without interactions are zero, since nothing trained them.

        Raises:
            RunError: training ended in embeddings that are no finite numbers.
        """
        known = np.flatnonzero(np.diff(user_items.indptr) >= 2)  # one item alone has nothing to be reconstructed from
        draw = np.random.default_rng(self.seed)
        table = first_embeddings(user_items.shape[1], self.dim, self.seed).requires_grad_(True)
        optimizer = torch.optim.Adam([table], lr=self.lr)
        for epoch in range(self.epochs):
            order, total = draw.permutation(known), 0.0
            for start in range(0, len(order), self.batch_size):
                users = order[start : start + self.batch_size]
                optimizer.zero_grad()
                total += self._backward(table, user_items[users])
                optimizer.step()
            self.progress(epoch + 1, total / max(1, len(order)))
        if len(not_finite_rows(table.detach())):
            raise RunError(f"baselines.elsa.lr is {self.lr:g}: training ended in no finite numbers; lower it")
        self.embeddings = normalize_rows(table.detach())
        self.embeddings[torch.from_numpy(num_interactions(user_items) == 0)] = 0.0

    def _backward(self, table: Tensor, user_items: sparse.csr_matrix) -> float:
        """Gradient of the mean loss of some users, in pieces that bound memory; returns the sum of their losses."""
        rows = max(1, SCORES_AT_ONCE // user_items.shape[1])
        total = 0.0
        for start in range(0, user_items.shape[0], rows):
            loss = elsa_losses(table, user_items[start : start + rows], relu=self.relu).sum()
            (loss / user_items.shape[0]).backward()
            total += loss.item()
        return total

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """X E Eᵀ; without − X, which matters for known items alone."""
        embeddings = self.embeddings.numpy()
        scores: NDArray[np.float32] = (history @ embeddings) @ embeddings.T
        return scores


def elsa_losses(table: Tensor, user_items: sparse.csr_matrix, *, relu: bool = True) -> Tensor:
    """Loss of each user, (users,), with the embeddings in `table`, (items, d), not normalised."""
    embeddings = normalize_rows(table)
    observed = torch.from_numpy(user_items.toarray())
    return nmse_per_user(elsa_scores(observed @ embeddings, embeddings, observed), observed, relu=relu)


def first_embeddings(num_items: int, dim: int, seed: int) -> Tensor:
    """Where training begins, (items, d)."""
    return torch.randn(num_items, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5
