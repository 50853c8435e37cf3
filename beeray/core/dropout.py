"""Dropout on CPUs from 16 random bits a number, of which torch's generator draws four at once.

`torch.nn.functional.dropout` draws every mask by `bernoulli_`, which takes six times as long; with MiniLM's own
dropout that was a third of a step. Masks come from torch's generator all the same, so seeds and checkpoints that
replay the random state hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 2**16
"""A probability is rounded to one of so many, by at most 8e-6; what is kept is scaled by the rounded one."""


def drop(values: Tensor, probability: float) -> Tensor:
    """Values with each put to zero with a probability, the others scaled so that the expectation stays.

    Args:
        values: floating point, of any shape, on a CPU.
        probability: between 0 and 1, both excluded.
    """
    dropped = min(max(round(probability * LEVELS), 1), LEVELS - 1)
    number = values.numel()
    bits = torch.empty(-(-number // 4), dtype=torch.int64).random_(-(2**63), None)
    halves = bits.view(torch.int16)[:number].view(values.shape)
    kept = (halves >= dropped - LEVELS // 2).to(values.dtype)
    return values * kept.mul_(LEVELS / (LEVELS - dropped))
