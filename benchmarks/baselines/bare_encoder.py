"""Forward and backward of the same length-sorted token micro-batches, everything in memory: the encoder's own time.

No sampling, no gathering of tokens, no loss: the embeddings of the step meet a gradient that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from beeray.core.batching import MicroBatch


class BareEncoder:
    """One graph over all micro-batches of a step.

    Args:
        encode: (input_ids, attention_mask) → embeddings.
    """

    def __init__(self, encode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.encode = encode

    def backward(self, batches: Sequence[MicroBatch], gradient: Tensor) -> None:
        """Add a gradient to the encoder's parameters.

        Args:
            batches: of the step, padded already.
            gradient: of a loss with respect to the embeddings, float32 (items, d).
        """
        rows = [self.encode(batch.input_ids, batch.attention_mask) for batch in batches]
        torch.cat(rows).backward(gradient)
