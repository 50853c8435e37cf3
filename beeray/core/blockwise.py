"""A function of rows, a block of rows at a time: what a block computed is computed again in backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NUMBERS_AT_ONCE = 2**24
"""Of a block's matrix: 64 MiB in float32, of which a loss keeps a handful."""


def in_blocks(function: Callable[[Tensor], Tensor], num_rows: int, num_columns: int, device: torch.device) -> Tensor:
    """`function` of all rows, so that no rows × columns matrix is kept for backward unless it is small.

    Args:
        function: row numbers int64 (n,) → (n,); draws no random numbers.
        num_columns: of the matrix that it makes, a row of it for each of its rows.

    Returns:
        (num_rows,), differentiable.
    """
    rows = torch.arange(num_rows, device=device)
    blocks = rows.split(max(1, NUMBERS_AT_ONCE // max(1, num_columns)))
    if len(blocks) == 1:
        return function(rows)
    return torch.cat([checkpoint(function, block, use_reentrant=False, preserve_rng_state=False) for block in blocks])
