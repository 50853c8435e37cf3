"""Keeping what an encoder knew: items that it held alike, and unalike, are to stay so.

    loss = mean over the step's items of 1 − corr(cosines to the step's other items now, the same originally)

Similarities are compared, not embeddings, so neither dimension nor rotation matters: a head may whiten, and the
interactions may turn the space (Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv
1907.09682). They are compared by Pearson's correlation, row by row (Huang et al., "DIST", NeurIPS 2022, arXiv
2205.10536), so it does not matter that sentence encoders hold all texts alike to some degree: what must stay is which
items are nearer than others. Of order one, 0 when all is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beeray.core.blockwise import in_blocks
from beeray.core.elsa import EPSILON


def forgetting_per_item(embeddings: Tensor, originals: Tensor, rows: Tensor) -> Tensor:
    """1 − the correlation of an item's similarities with what they were, for some of a step's items.

    Args:
        embeddings: (items, d), row-normalised.
        originals: (items, d₀), row-normalised, of the same items; no gradient.
        rows: int64 (n,), the items asked for.

    Returns:
        (n,), between 0 and 2; 1 where either has no variance.
    """

    def of_block(places: Tensor) -> Tensor:
        items = rows[places]
        now = _centred(embeddings[items] @ embeddings.T, items)
        then = _centred(originals[items] @ originals.T, items)
        lengths = now.norm(dim=1).clamp_min(EPSILON) * then.norm(dim=1).clamp_min(EPSILON)
        return 1.0 - (now * then).sum(dim=1) / lengths

    return in_blocks(of_block, len(rows), len(embeddings), embeddings.device)


def _centred(similarities: Tensor, items: Tensor) -> Tensor:
    """Rows less their mean, an item's similarity to itself left out; (n, items)."""
    others = torch.ones_like(similarities).scatter(1, items[:, None], 0.0)
    mean = (similarities * others).sum(dim=1, keepdim=True) / max(1, similarities.shape[1] - 1)
    return (similarities - mean) * others
