"""Semantic neighbours: which items are nearest to an item, and how many of them it keeps when the encoder changes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.topk import ITEMS_PER_BLOCK, top_items

ROWS_AT_ONCE = 256


def sample_items(num_items: int, most: int, seed: int) -> NDArray[np.int64]:
    """`most` of the items, drawn by a seed, or all where they are fewer; sorted."""
    if num_items <= most:
        return np.arange(num_items, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(num_items, size=most, replace=False, shuffle=False))


def nearest_items(
    embeddings: Tensor, items: NDArray[np.int64], number: int, *, items_per_block: int = ITEMS_PER_BLOCK
) -> NDArray[np.int32]:
    """The items of highest cosine to each of some items, without itself.

    Args:
        embeddings: (catalog, d), row-normalised.
        items: (n,), the items asked for.
        number: of neighbours; fewer where the catalog has fewer.
        items_per_block: of the catalog compared at a time, with `ROWS_AT_ONCE` items.

    Returns:
        int32 (n, number), nearest first.
    """
    number = min(number, len(embeddings) - 1)
    blocks: list[NDArray[np.int32]] = [np.empty((0, number), dtype=np.int32)]
    for start in range(0, len(items), ROWS_AT_ONCE):
        rows = torch.from_numpy(items[start : start + ROWS_AT_ONCE]).to(embeddings.device)
        itself = torch.stack([torch.arange(len(rows), device=rows.device), rows])
        _, places = top_items(embeddings[rows], embeddings, itself, number, items_per_block=items_per_block)
        blocks.append(places.cpu().numpy().astype(np.int32))
    return np.concatenate(blocks)


def share_kept(before: NDArray[np.int32], after: NDArray[np.int32]) -> NDArray[np.float64]:
    """Of each item's neighbours before, the share that is among its neighbours after, in any order.

    Args:
        before, after: (items, number), distinct in each row.

    Returns:
        float64 (items,), between 0 and 1.
    """
    return np.asarray((before[:, :, None] == after[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)
