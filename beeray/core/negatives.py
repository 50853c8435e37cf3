"""Which items a step encodes: the batch's positives, thinned or filled up with uniform negatives.

Every rank calls `select_items` with the same arguments and a generator of the same seed, so all hold
the same list without sending it. Cost is O(positives + max_output), whatever the catalog's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ItemIndices = NDArray[np.int32]

MODES = ("bounded", "all_positives", "catalog")


def select_items(
    mode: str,
    positives: ItemIndices,
    trainable: ItemIndices,
    max_output: int | None,
    generator: np.random.Generator,
) -> ItemIndices:
    """The distinct items of one step.

    Args:
        mode: `bounded` or `catalog`: exactly `max_output` items, positives uniformly thinned when they
            are more; `all_positives`: every positive (beeFormer's Algorithm 1). All fill up with uniform
            negatives, drawn without replacement, when positives are fewer.
        positives: distinct items of the step's users, sorted; all of them trainable.
        trainable: items that may be drawn (nothing held out), sorted.
        max_output: items of a step; None takes every trainable item.
        generator: seeded alike on every rank.

    Returns:
        int32 (items,), sorted and distinct.
    """
    assert mode in MODES, mode
    if max_output is None or max_output >= len(trainable):
        return trainable
    if len(positives) > max_output:
        if mode == "all_positives":
            return positives
        return np.sort(generator.choice(positives, size=max_output, replace=False, shuffle=False))
    negatives = _uniform_without(positives, trainable, max_output - len(positives), generator)
    return np.sort(np.concatenate([positives, negatives]))


def select_items_within(
    mode: str,
    positives: Sequence[ItemIndices],
    trainable: Sequence[ItemIndices],
    max_output: int,
    generator: np.random.Generator,
) -> ItemIndices:
    """The distinct items of a step whose users are scored within their domains, each drawn as `select_items` does.

    A domain's part of `max_output` is that of its positives in the step's, so negatives go where they are used,
    whatever the catalogs' sizes; a domain without users in the step has no item in it. A step of one domain's users has
    exactly the items that it would have without the others.

    Args:
        positives, trainable: as in `select_items`, domain by domain; domains one after the other in their indices.

    Returns:
        int32 (items,), sorted and distinct.
    """
    counts = np.array([len(items) for items in positives], dtype=np.int64)
    sizes = np.array([len(items) for items in trainable], dtype=np.int64)
    parts = [
        select_items(mode, of_users, of_catalog, int(part), generator)
        for of_users, of_catalog, part in zip(positives, trainable, apportion(max_output, counts, sizes), strict=True)
        if len(of_users)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def apportion(total: int, weights: NDArray[np.int64], limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers in proportion to `weights` that sum to `total`, none above its limit; rests go to the largest.

    They sum to less where the limits of those with a weight do.
    """
    parts, left = np.zeros_like(weights), total
    growing = weights > 0
    while growing.any():
        whole, rest = np.divmod(left * weights * growing, (weights * growing).sum())
        full = growing & (whole >= limits)
        if not full.any():
            most = np.argsort(-rest, kind="stable")[: left - int(whole.sum())]
            whole[most] += 1
            return parts + whole
        parts[full] = limits[full]
        left -= int(limits[full].sum())
        growing &= ~full
    return parts


def _uniform_without(
    taken: ItemIndices, trainable: ItemIndices, num_negatives: int, generator: np.random.Generator
) -> ItemIndices:
    """`num_negatives` items of `trainable` that are not in `taken` (sorted), uniformly, without replacement."""
    num_free = len(trainable) - len(taken)
    assert num_negatives <= num_free
    if num_negatives * 2 >= num_free:
        free = np.setdiff1d(trainable, taken, assume_unique=True)
        return generator.choice(free, size=num_negatives, replace=False, shuffle=False)
    drawn = np.empty(0, dtype=trainable.dtype)
    while len(drawn) < num_negatives:  # each round keeps at least half of what it draws, on average
        draw = trainable[generator.integers(len(trainable), size=2 * (num_negatives - len(drawn)) + 16)]
        draw = draw[~_contains(taken, draw)]
        first = np.sort(np.unique(np.concatenate([drawn, draw]), return_index=True)[1])
        drawn = np.concatenate([drawn, draw])[first]
    return drawn[:num_negatives]


def _contains(sorted_items: ItemIndices, items: ItemIndices) -> NDArray[np.bool_]:
    if not len(sorted_items):
        return np.zeros(len(items), dtype=bool)
    places = np.minimum(np.searchsorted(sorted_items, items), len(sorted_items) - 1)
    return sorted_items[places] == items
