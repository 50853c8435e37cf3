"""Ranking metrics as recpack defines them.

    CalibratedRecall@k(u) = hits@k / min(k, |targets_u|)
    nDCG@k(u)             = Σ_hits 1/log2(rank + 1)  /  Σ_{j=1..min(k, |targets_u|)} 1/log2(j + 1)

Means are over users with at least one target; intervals are in `intervals.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def calibrated_recall(hits: Tensor, num_targets: Tensor, k: int) -> Tensor:
    """CalibratedRecall@k of every user.

    Args:
        hits: bool (users, ranks), whether the item at each rank (best first) is a target.
        num_targets: int64 (users,), at least 1.

    Returns:
        float64 (users,).
    """
    k = min(k, _longest(hits, num_targets))
    return hits[:, :k].sum(dim=1).double() / num_targets.clamp(max=k).double()


def ndcg(hits: Tensor, num_targets: Tensor, k: int) -> Tensor:
    """nDCG@k of every user; arguments as in `calibrated_recall`, returns float64 (users,)."""
    k = min(k, _longest(hits, num_targets))
    discounts = 1.0 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64, device=hits.device))
    gained = hits[:, :k].double() @ discounts[: hits.shape[1]]
    ideal = discounts.cumsum(0)[num_targets.clamp(max=k) - 1]
    return gained / ideal


def _longest(hits: Tensor, num_targets: Tensor) -> int:
    """The largest k that means anything: from there on there is neither a rank nor a target more."""
    return max(hits.shape[1], int(num_targets.max()), 1) if len(num_targets) else 1
