"""Ranking items for users blockwise, so that no users × catalog matrix ever exists."""

from __future__ import annotations

import torch
from torch import Tensor

ITEMS_PER_BLOCK = 32_768


def top_items(
    user_vectors: Tensor,
    item_embeddings: Tensor,
    seen: Tensor,
    k: int,
    *,
    candidates: Tensor | None = None,
    items_per_block: int = ITEMS_PER_BLOCK,
) -> tuple[Tensor, Tensor]:
    """Each user's k highest-scored items among the candidates, those seen left out.

    Args:
        user_vectors: (users, d).
        item_embeddings: (candidates, d), or (items, d) where `candidates` are given.
        seen: int64 (2, pairs), user rows and candidate positions that must not be recommended.
        candidates: int64 (candidates,), rows of `item_embeddings` to rank; copied block by block, never all at once.
        k: length of the ranking; cut to the number of candidates.
        items_per_block: candidates scored at a time; memory is users × items_per_block floats.

    Returns:
        scores float32 (users, k) and candidate positions int64 (users, k), best first; entries beyond a
        user's unseen candidates have score −inf.
    """
    num_users = user_vectors.shape[0]
    num_items = len(item_embeddings) if candidates is None else len(candidates)
    k = min(k, num_items)
    best = user_vectors.new_full((num_users, 0), -torch.inf)
    places = torch.zeros((num_users, 0), dtype=torch.int64, device=user_vectors.device)
    seen_rows, seen_columns = seen[0], seen[1]
    for start in range(0, num_items, items_per_block):
        rows = slice(start, start + items_per_block)
        block = item_embeddings[rows if candidates is None else candidates[rows]]
        scores = user_vectors @ block.T
        inside = (seen_columns >= start) & (seen_columns < start + len(block))
        scores[seen_rows[inside], seen_columns[inside] - start] = -torch.inf
        block_best, block_places = scores.topk(min(k, len(block)), dim=1)
        best = torch.cat([best, block_best], dim=1)
        places = torch.cat([places, block_places + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        places = places.gather(1, order)
        del scores, block  # or the next block's would be made while these are still held
    return best, places
