"""Embedding items without gradient: length-sorted token batches, alone or shared by all ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.batching import Tokens, deal_by_tokens, micro_batches
from beeray.core.gather import gather_into, rank, world_size

Encode = Callable[[Tensor, Tensor], Tensor]
"""(input_ids, attention_mask) → embeddings; a DeepSpeed engine, a DDP module or an `Encoder`."""


@torch.no_grad()
def embed_items(
    encode: Encode,
    tokens: Tokens,
    items: NDArray[np.int32],
    *,
    max_seq_length: int,
    token_budget: int,
    device: torch.device | str = "cpu",
    shared: bool = False,
    progress: Callable[[int], None] = lambda num_items: None,
) -> Tensor:
    """Embed items without gradient, in length-sorted token batches.

    Args:
        encode: put in eval mode by the caller.
        items: item indices, (items,).
        max_seq_length: tokens of a text, special tokens included.
        token_budget: padded tokens of a micro-batch.
        shared: each rank embeds its share and all receive all; every rank must call, with the same items.
        progress: told the number of items after each micro-batch.

    Returns:
        float32 (items, d) on `device`, in the order given.
    """
    ranks = world_size() if shared else 1
    mine = rank() if shared else 0
    shares = deal_by_tokens(tokens.lengths(max_seq_length)[items], ranks, token_budget)
    positions = shares.of_rank(mine)
    batches = micro_batches(tokens, items[positions], shares.cuts, max_seq_length=max_seq_length, device=device)
    places = torch.from_numpy(positions if ranks == 1 else np.arange(len(positions))).to(device)
    rows: Tensor | None = None  # one table, filled in place: a second one would double what a large catalog takes
    done = 0
    for micro_batch in batches:
        embeddings = encode(micro_batch.input_ids, micro_batch.attention_mask)[: micro_batch.num_items]
        if rows is None:
            rows = embeddings.new_empty((len(positions), embeddings.shape[1]))
        rows[places[done : done + len(embeddings)]] = embeddings
        done += len(embeddings)
        progress(micro_batch.num_items)
    assert rows is not None, "no items"
    if ranks == 1:
        return rows
    result = rows.new_empty((len(items), rows.shape[1]))
    gather_into(result, rows, shares.counts, shares.order)
    return result
