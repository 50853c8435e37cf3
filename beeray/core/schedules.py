"""Learning-rate schedules as plain functions of the step, so that any step's lr can be told."""

from __future__ import annotations

import math

SCHEDULERS = ("constant", "linear_warmup", "cosine")


def lr_factor(scheduler: str, step: int, num_steps: int, warmup_fraction: float) -> float:
    """Factor on the base lr at a step.

    Args:
        scheduler: `constant`; `linear_warmup` (rises, then stays); `cosine` (rises, then falls to 0).
        step: steps done before this one, from 0.
        num_steps: length of the schedule in steps.
        warmup_fraction: share of `num_steps` over which the factor rises linearly to 1.

    Raises:
        ValueError: unknown scheduler.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler {scheduler!r}: must be one of {', '.join(SCHEDULERS)}")
    if scheduler == "constant":
        return 1.0
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if scheduler == "linear_warmup":
        return 1.0
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
