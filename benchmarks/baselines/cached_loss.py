"""One step of sentence-transformers' `CachedMultipleNegativesRankingLoss` over as many texts, half of them anchors.

Its gradient cache is the same idea (Gao et al. 2021, arXiv 2101.06983): embed without gradient, take the loss's
gradient at the embeddings, embed again with gradient in mini-batches. Texts come tokenised, each column padded to
its own longest text, as sentence-transformers' data collator leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from baselines.two_pass_padded import pad_catalog

MINI_BATCH_SIZE = 32


class CachedLoss:
    """The gradient of one step of the cached loss.

    Args:
        model: trained in place.
        precision: `fp32`, or `bf16` for autocast, as the library's trainer does it.
    """

    def __init__(self, model: SentenceTransformer, precision: str, mini_batch_size: int = MINI_BATCH_SIZE) -> None:
        self.loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size)
        self.precision = precision

    def backward(self, texts: Sequence[NDArray[np.int64]], pad_token_id: int) -> Tensor:
        """Add one step's gradient to the model's parameters.

        Args:
            texts: token ids of each text; the first half are the anchors of the second.

        Returns:
            the loss, without gradient.
        """
        half = len(texts) // 2
        features = []
        for column in (texts[:half], texts[half : 2 * half]):
            ids, mask = pad_catalog(column, pad_token_id)
            features.append({"input_ids": ids, "attention_mask": mask})
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(features, torch.empty(0))
        loss.backward()
        return loss.detach()
