"""A 2-D map of a report's items: near each other where their embeddings are alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 50
"""Principal components that t-SNE and the grouping work on: a tenth of the work, and the noise is left out."""
PERPLEXITY = 30.0
ITERATIONS = 500
MAX_GROUPS = 12
ITEMS_A_GROUP = 10
FEWEST_ITEMS = 12
"""Fewer are laid out by principal components."""

Table = NDArray[np.float32]


def lay_out(embeddings: Table, method: str, seed: int, start: Table | None = None) -> Table:
    """Places of the items on the plane, centred, the farthest at distance 1 along an axis.

    Args:
        embeddings: (items, d), at least two items.
        method: `tsne` or `pca`.
        start: an earlier layout, (items, 2), that t-SNE begins with, so that the two resemble each other.

    Returns:
        float32 (items, 2).
    """
    if method == "pca" or len(embeddings) < FEWEST_ITEMS:
        return _scaled(principal_components(embeddings, 2))
    from sklearn.manifold import TSNE

    reduced = principal_components(embeddings, DIMENSIONS)
    places = reduced[:, :2] if start is None else start
    layout = TSNE(
        perplexity=min(PERPLEXITY, (len(embeddings) - 1) / 3),
        init=(places / max(float(places.std()), 1e-12) * 1e-4).astype(np.float32),
        max_iter=ITERATIONS,
        random_state=seed,
    ).fit_transform(reduced)
    return _scaled(layout)


def principal_components(embeddings: Table, number: int) -> Table:
    """Coordinates along the directions of largest variance, (items, number); zeros where there are not so many."""
    centred = embeddings - embeddings.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    found = (centred @ directions[:, ::-1][:, :number]).astype(np.float32)
    result = np.zeros((len(embeddings), number), dtype=np.float32)
    result[:, : found.shape[1]] = found
    return result


def group(embeddings: Table, seed: int) -> NDArray[np.int32]:
    """Group of each item by k-means, the largest group first, int32 (items,)."""
    from sklearn.cluster import KMeans

    number = min(MAX_GROUPS, max(1, len(embeddings) // ITEMS_A_GROUP))
    reduced = principal_components(embeddings, DIMENSIONS)
    labels = KMeans(number, n_init=1, random_state=seed).fit(reduced).labels_
    order = np.argsort(-np.bincount(labels, minlength=number), kind="stable")
    rank = np.empty(number, dtype=np.int32)
    rank[order] = np.arange(number, dtype=np.int32)
    return rank[labels]


def _scaled(layout: Table) -> Table:
    centred = layout - layout.mean(axis=0)
    return (centred / max(float(np.abs(centred).max()), 1e-12)).astype(np.float32)
