"""Training curves from a run's step and validation records, short enough to draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 600
SMOOTHED_SHARE, FEWEST_SMOOTHED = 0.1, 5.0
"""Steps that a smoothed value looks back on: a share of all, and no fewer than these."""

Record = dict[str, Any]
Values = NDArray[np.float64]


def training_curves(steps: list[Record]) -> dict[str, list[float | None]]:
    """`step, loss, smooth, lr, tokens_per_s`, each at most `MAX_POINTS` long; empty lists without steps.

    What is no finite number, as the loss of training that diverged, is None: a gap in the curve.

    Args:
        steps: records of `steps.jsonl`, in order.
    """
    loss = np.array([step["loss"] for step in steps], dtype=np.float64)
    series = {
        "step": np.array([step["step"] + 1 for step in steps], dtype=np.float64),
        "loss": loss,
        "smooth": smooth(loss, max(FEWEST_SMOOTHED, SMOOTHED_SHARE * len(loss))),
        "lr": np.array([step["lr"] for step in steps], dtype=np.float64),
        "tokens_per_s": np.array([step["tokens"] / max(step["step_s"], 1e-9) for step in steps], dtype=np.float64),
    }
    return {name: [_drawn(value) for value in thin(values)] for name, values in series.items()}


def validation_curves(epochs: list[Record]) -> dict[str, Any]:
    """`{"step": […], "metrics": {"ndcg@100": […]}}` of `validation.jsonl`'s records."""
    names = sorted({name for epoch in epochs for name in epoch if name.startswith("validation/")})
    metrics = {name.removeprefix("validation/"): [_drawn(epoch.get(name)) for epoch in epochs] for name in names}
    return {"step": [epoch["step"] for epoch in epochs], "metrics": metrics}


def _drawn(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def smooth(values: Values, span: float) -> Values:
    """Exponential moving average without the bias of its start: weights (1 − 2/(span+1))^age, normalised."""
    decay = 1 - 2 / (span + 1)
    smoothed = np.empty_like(values)
    total = weight = 0.0
    for place, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        smoothed[place] = total / weight
    return smoothed


def thin(values: Values, max_points: int = MAX_POINTS) -> Values:
    """Means of at most `max_points` runs of neighbouring values, nearly equally long."""
    if len(values) <= max_points:
        return values
    return np.array([part.mean() for part in np.array_split(values, max_points)])
