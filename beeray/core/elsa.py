"""The ELSA loss: reconstruct each user from its items, without the item itself.

Vančura et al., "Scalable Linear Shallow Autoencoder for Collaborative Filtering" (RecSys 2022), and
"beeFormer" (RecSys 2024, arXiv 2409.10309), Algorithm 1. With `X` (users × items, 0/1) and `E` the
row-normalised item embeddings:

    scores = X_in E_in E_outᵀ − X
    loss   = mean over users of ‖ normalize(relu(scores)) − normalize(X) ‖²

The loss is a sum over items and a mean over users, so that it is of order one (2 − 2 cos for every
user with a positive score) whatever the catalog's size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-12
ROWS_AT_ONCE = 16_384


def normalize_rows(embeddings: Tensor) -> Tensor:
    """Rows scaled to unit length, in float32 or better; (n, d) → (n, d)."""
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    return functional.normalize(embeddings, dim=-1, eps=EPSILON)


def normalize_rows_in_place(embeddings: Tensor) -> Tensor:
    """The same on float32 rows without a second table; returns its argument."""
    for block in embeddings.split(ROWS_AT_ONCE):
        block.copy_(normalize_rows(block))
    return embeddings


def not_finite_rows(embeddings: Tensor) -> Tensor:
    """Rows without a finite length, int64 (rows,): with NaN or infinity in them, or numbers that overflow it."""
    lengths = [torch.linalg.vector_norm(block.float(), dim=1) for block in embeddings.split(ROWS_AT_ONCE)]
    return (~torch.isfinite(torch.cat(lengths))).nonzero().flatten()


def elsa_scores(user_vectors: Tensor, item_embeddings: Tensor, user_items: Tensor) -> Tensor:
    """Scores of the step's items for every user.

    Args:
        user_vectors: (users, d), sums of the normalised embeddings of each user's items.
        item_embeddings: (items, d), row-normalised.
        user_items: (users, items) 0/1; subtracted, since an item's similarity to itself is 1.

    Returns:
        (users, items).
    """
    return user_vectors @ item_embeddings.T - user_items


def nmse_per_user(scores: Tensor, user_items: Tensor, *, relu: bool = True, top_k: int | None = None) -> Tensor:
    """Normalised squared error between each user's scores and items.

    Args:
        scores: (users, items).
        user_items: (users, items) 0/1.
        relu: drop negative scores first.
        top_k: compare only each user's `top_k` highest-scored items; None compares all.

    Returns:
        (users,): ‖ normalize(relu(scores)) − normalize(user_items) ‖².
    """
    if top_k is not None and top_k < scores.shape[1]:
        scores, columns = scores.topk(top_k, dim=1)
        user_items = user_items.gather(1, columns)
    if relu:
        scores = scores.relu()
    predicted = functional.normalize(scores, dim=1, eps=EPSILON)
    observed = functional.normalize(user_items, dim=1, eps=EPSILON)
    return (predicted - observed).square().sum(dim=1)
