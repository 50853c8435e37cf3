"""A 2-D map of a report's items: near each other where their embeddings are alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from beeray.data.staging import staged_file

DIMENSIONS = 50
"""Principal components that t-SNE and the grouping work on: a tenth of the work, and the noise is left out."""
PERPLEXITY = 30.0
ITERATIONS = 400
MAX_GROUPS = 12
ITEMS_A_GROUP = 10
FEWEST_ITEMS = 12
"""Fewer are laid out by principal components."""

Table = NDArray[np.float32]


def lay_out(embeddings: Table, method: str, seed: int, beside: Table | None = None) -> Table:
    """Places of the items on the plane, centred, the farthest at distance 1 along an axis.

    Args:
        embeddings: (items, d), at least two items.
        method: `tsne` or `pca`.
        beside: another layout, (items, 2), towards which this one is turned and mirrored, so that the two resemble
            each other.

    Returns:
        float32 (items, 2).
    """
    if method == "pca" or len(embeddings) < FEWEST_ITEMS:
        layout = principal_components(embeddings, 2)
    else:
        from sklearn.manifold import TSNE

        reduced = principal_components(embeddings, DIMENSIONS)
        start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
        perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
        layout = TSNE(perplexity=perplexity, init=start, max_iter=ITERATIONS, random_state=seed).fit_transform(reduced)
    layout = layout - layout.mean(axis=0)
    if beside is not None:
        layout = layout @ orthogonal_procrustes(layout, beside)[0]
    return np.asarray(layout / max(float(np.abs(layout).max()), 1e-12), dtype=np.float32)


def kept_layout(file: Path, embeddings: Table, method: str, seed: int, beside: Table | None) -> Table:
    """What `lay_out` gives, from a file if it was asked the same before: t-SNE takes seconds of every evaluation.

    Args:
        file: `.npz`; holds the layout, (items, 2), and a digest of what it was made from.
    """
    asked = hashlib.sha256(f"{method} {seed} {embeddings.shape}".encode())
    for table in (embeddings, beside):
        asked.update(b"" if table is None else np.ascontiguousarray(table).tobytes())
    digest = np.bytes_(asked.hexdigest())
    if file.is_file():
        with np.load(file) as kept:
            if kept["digest"] == digest:
                return np.asarray(kept["places"], dtype=np.float32)
    places = lay_out(embeddings, method, seed, beside)
    with staged_file(file) as partial, open(partial, "wb") as out:
        np.savez(out, digest=digest, places=places)
    return places


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
