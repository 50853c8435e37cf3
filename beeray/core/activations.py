"""How many activations a rank may keep between forward and backward, and what a micro-batch costs.

All ranks must decide alike (a sharded encoder runs collectives in every call), so the cost is agreed on
by the ranks once and applied to the padded tokens of the rank where a micro-batch is largest.

Kept micro-batches are computed forward once and backward once (3 units of work); the others forward
twice (4 units). The cost is measured, not modelled: the first kept micro-batch is run under hooks that
add up the bytes autograd saves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from beeray.core.gather import largest_over_ranks


class ActivationBudget:
    """Admits micro-batches until the budget of one step is used up.

    Args:
        budget_bytes: activations that may be alive at once; 0 recomputes everything.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.bytes_per_token: float | None = None
        self._left = 0.0

    def start_step(self, reserved_bytes: int = 0) -> bool:
        """Forget what the last step used.

        Args:
            reserved_bytes: wanted for something else than activations.

        Returns:
            whether they are reserved: they may be as much as half of the budget, and are nothing otherwise.
        """
        reserved = 2 * reserved_bytes <= self.budget_bytes
        self._left = float(self.budget_bytes - reserved * reserved_bytes)
        return reserved

    def admits(self, num_padded_tokens: int) -> bool:
        """Whether a micro-batch's activations may be kept; if so they are counted as used."""
        if self.budget_bytes == 0:
            return False
        cost = (self.bytes_per_token or 0.0) * num_padded_tokens
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def measure(self, forward: Callable[[], Tensor], num_padded_tokens: int) -> Tensor:
        """Run a kept forward; the first time under hooks that learn the bytes of a padded token (collective)."""
        if self.bytes_per_token is not None:
            return forward()
        seen: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            base = saved if saved._base is None else saved._base
            if not (base.is_leaf and base.requires_grad):  # weights, and views of them, are there anyway
                storage = saved.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            embeddings = forward()
        self.bytes_per_token = largest_over_ranks(sum(seen.values()), embeddings.device) / num_padded_tokens
        self._left -= self.bytes_per_token * num_padded_tokens
        return embeddings
