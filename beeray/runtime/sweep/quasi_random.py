"""Points that lie evenly in a space: a scrambled Sobol sequence (Owen, 1998), of which every trial takes its own place.

Points drawn at random lie close together here and leave gaps there. Optuna's `QMCSampler` draws from the same sequence
but keeps its place in the study, which a sweep makes anew at each start: gone on with, it would repeat its points. Here
a point depends on nothing but the space, the seed and the trial's number. A choice takes a coordinate as a range does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats.qmc import Sobol

from beeray.config import Dimension


def quasi_random_point(space: Mapping[str, Dimension], seed: int, number: int) -> dict[str, Any]:
    """The point of a trial.

    Args:
        space: its dimensions by key, in any order.
        seed: scrambles the sequence.
        number: place in the sequence.
    """
    sequence = Sobol(len(space), scramble=True, seed=np.random.default_rng(seed))
    if number:
        sequence.fast_forward(number)
    (coordinates,) = sequence.random(1).tolist()
    return {key: value_at(space[key], place) for key, place in zip(sorted(space), coordinates, strict=True)}


def value_at(dimension: Dimension, place: float) -> Any:
    """The value at a place in [0, 1): all values that a key may have are alike in width."""
    if dimension.kind == "choice":
        return dimension.probes[int(place * len(dimension.probes))]
    low, high = dimension.bounds
    whole = "integer" in dimension.kind
    first, last = (low - 0.5, high + 0.5) if whole else (low, high)
    if dimension.kind.startswith("log"):
        value = first * math.exp(place * math.log(last / first))
    else:
        value = first + place * (last - first)
    return min(max(round(value) if whole else value, low), high)
