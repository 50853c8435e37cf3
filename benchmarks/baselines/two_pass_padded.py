"""beeFormer's Algorithm 1 as it is published (arXiv 2409.10309): two passes over texts padded to the catalog's longest.

    E       = encode(all items of the step)          no gradient, in batches of rows
    dL/dE   = gradient of the ELSA loss at E         E is a leaf here
    for each batch of rows: encode(batch) again, with gradient, and backward(dL/dE[batch])

The gradient checkpoint dL/dE is what keeps activations to one batch. Batches have a fixed number of rows, 200 in
the paper. The two passes see the same weights; with dropout on they see different masks, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

ROWS = 200


class TwoPassPadded:
    """The gradient of one step by Algorithm 1.

    Args:
        encode: (input_ids, attention_mask) → embeddings.
        input_ids: the whole catalog, int64 (items, longest text), padded on the right.
        attention_mask: int64, as `input_ids`; 1 on tokens.
        rows: texts of a batch.
    """

    def __init__(
        self, encode: Callable[[Tensor, Tensor], Tensor], input_ids: Tensor, attention_mask: Tensor, rows: int = ROWS
    ) -> None:
        self.encode, self.input_ids, self.attention_mask, self.rows = encode, input_ids, attention_mask, rows

    def backward(self, items: NDArray[np.int32], user_items: Tensor) -> Tensor:
        """Add one step's gradient to the encoder's parameters.

        Args:
            items: of the step, (items,).
            user_items: 0/1, float32 (users, items).

        Returns:
            the mean loss over users, a scalar without gradient.
        """
        chosen = torch.from_numpy(items.astype(np.int64))
        with torch.no_grad():
            embeddings = torch.cat([self.encode(*batch) for batch in self._batches(chosen)])
        embeddings.requires_grad_()
        loss = elsa_loss(embeddings, user_items)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        for batch, checkpoint in zip(self._batches(chosen), gradient.split(self.rows), strict=True):
            self.encode(*batch).backward(checkpoint)
        return loss.detach()

    def _batches(self, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in chosen.split(self.rows):
            yield self.input_ids[rows], self.attention_mask[rows]


def elsa_loss(embeddings: Tensor, user_items: Tensor) -> Tensor:
    """Mean over users of ‖ normalize(relu(X A Aᵀ − X)) − normalize(X) ‖², A the row-normalised embeddings."""
    normalized = functional.normalize(embeddings, dim=1)
    scores = (user_items @ normalized @ normalized.T - user_items).relu()
    difference = functional.normalize(scores, dim=1) - functional.normalize(user_items, dim=1)
    return difference.square().sum(dim=1).mean()


def pad_catalog(texts: list[NDArray[np.int64]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Every text as long as the longest: ids and mask, int64 (items, longest)."""
    lengths = np.array([len(text) for text in texts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_token_id, dtype=np.int64)
    padded[mask] = np.concatenate(texts)
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
