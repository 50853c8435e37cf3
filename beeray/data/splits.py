"""Which data is held out, and what is trained on, given and asked for in every kind of split.

Six interactions, in time order: Alice's a1 a2 a3 and Bob's b1 b2 b3.

| kind   | held out                              | trained on       | input at test            | asked for at test  |
|--------|---------------------------------------|------------------|--------------------------|--------------------|
| `item` | items a3, b3 (brand-new: cold start)  | a1 a2, b1 b2     | Alice a1 a2, Bob b1 b2   | Alice a3, Bob b3   |
| `time` | the last interactions of all, a3 b3   | a1 a2, b1 b2     | Alice a1 a2, Bob b1 b2   | Alice a3, Bob b3   |
| `user` | user Bob                              | a1 a2 a3         | Bob b1 b2 (folded in)    | Bob b3             |

Each kind holds out twice, once for validation and once for test. At validation the input is what is
trained on; at test it is what is trained on and validation's too, since that is known by then. In the
`item` split the candidates are the held-out items (ranking the whole catalog is reported beside it);
otherwise they are the whole catalog. Under `reproduce` validation's interactions are no input when the held-out
items are ranked, although they are trained on: so it is in the published protocol.

Items are drawn by their place, so in a store that has grown they are drawn anew; users by their id, and what a held-out
user is asked for by its id and the items'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.config import SplitConfig
from beeray.data.id_ranges import hash_ids
from beeray.data.time_windows import SortedTimes
from beeray.errors import ConfigError, DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
TARGET_FRACTION = 0.2
BEEFORMER_SEED = 42

HASHED_AT_ONCE = 1 << 20
"""Ids that are text in memory at a time."""

Labels = NDArray[np.int8]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class SplitPlan:
    """What decides the label of every interaction.

    Attributes:
        kind: of split.
        items: int8 (items,), label of each item; for kind `time` the window of its first interaction, since
            an item that appears later cannot be encoded before; zeros for kind `user`.
        users: int8 (users,), label of each user; zeros unless kind is `user`.
        boundaries: first timestamps of validation and of test; only when kind is `time`.
        seed: draws a held-out user's targets.
        item_hashes: `id_hashes` of the items, (items,), by which targets are drawn; only when kind is `user`.
    """

    kind: str
    items: Labels
    users: Labels
    boundaries: tuple[int, int] | None
    seed: int
    item_hashes: Hashes | None = None


def draw_items(config: SplitConfig, item_ids: pa.Array, first_rows: NDArray[np.int64], seed: int) -> Labels:
    """Labels of the items of an `item` split.

    Args:
        item_ids: ids of the items that are kept, (items,).
        first_rows: first row of each item among the kept interactions, (items,).

    Raises:
        DataError: too few items to hold out what is asked for.
    """
    if config.reproduce == "beeformer":
        return _beeformer_items(item_ids, first_rows, config.num_draws)
    return _draw(len(item_ids), config, np.random.default_rng([seed, 1]))


def held_out_twins(hashes: pa.Array, labels: Labels) -> dict[str, int]:
    """How many held-out items of each split have exactly the text of a training item: to an encoder they are not new.

    Args:
        hashes: of the items' texts, (items,).
        labels: of the items, (items,).
    """
    of_training = hashes.filter(pa.array(labels == TRAIN))
    twins = pc.is_in(hashes, of_training).to_numpy(zero_copy_only=False)
    return {name: int((twins & (labels == label)).sum()) for name, label in SPLITS.items() if label != TRAIN}


def draw_users(config: SplitConfig, hashes: Hashes, seed: int) -> Labels:
    """Labels of the users of a `user` split; errors as `draw_items`.

    A user's lot follows from its id and the seed alone; the lowest lots are test, the highest validation. So where
    users come and go, the others stay on their side, but for a few at the edges.

    Args:
        hashes: `id_hashes` of the users, (users,).
    """
    num_validation, num_test = _sizes(len(hashes), config, "users")
    order = np.argsort(_mix(hashes, seed), kind="stable")
    labels = np.zeros(len(hashes), dtype=np.int8)
    labels[order[:num_test]] = TEST
    labels[order[len(order) - num_validation :]] = VALIDATION
    return labels


def id_hashes(ids: pa.Array) -> Hashes:
    """What is drawn by ids goes by: the same on every machine, and for a number as for its digits."""
    starts = range(0, max(1, len(ids)), HASHED_AT_ONCE)
    return np.concatenate([hash_ids(ids.slice(at, HASHED_AT_ONCE).cast(pa.large_string())) for at in starts])


def time_boundaries(config: SplitConfig, times: SortedTimes) -> tuple[int, int]:
    """First timestamps of validation and of test: the last fractions of all interactions.

    Interactions of one instant stay together, on the later side.

    Raises:
        DataError: the timestamps are too coarse to cut three parts.
    """
    num_test = max(1, round(times.number * config.test))
    num_validation = max(1, round(times.number * config.validation))
    test_from, before = times.at(times.number - num_test)
    if before < 2:
        raise DataError(f"split.kind time: no interaction is earlier than the test window, which starts at {test_from}")
    validation_from, _ = times.at(max(1, before - num_validation))
    if validation_from == times.first:
        raise DataError(
            f"split.kind time: nothing is earlier than the validation window, which starts at {validation_from}; "
            "lower split.validation or split.test, or use finer timestamps"
        )
    return validation_from, test_from


def window_labels(boundaries: tuple[int, int], timestamps: NDArray[np.int64]) -> Labels:
    """Label of each timestamp's window: training, validation or test."""
    validation_from, test_from = boundaries
    return ((timestamps >= validation_from).astype(np.int8) + (timestamps >= test_from)).astype(np.int8)


def interaction_labels(
    plan: SplitPlan,
    items: NDArray[np.int32],
    user_of: NDArray[np.int64],
    timestamps: NDArray[np.int64] | None,
    user_hashes: Hashes | None = None,
) -> Labels:
    """Label of each interaction of whole users.

    Args:
        items: item indices, flat, (interactions,).
        user_of: user index of each, ascending, (interactions,).
        timestamps: of each, for kind `time`.
        user_hashes: `id_hashes` of each one's user, for kind `user`.
    """
    if plan.kind == "item":
        return plan.items[items]
    if plan.kind == "time":
        if timestamps is None or plan.boundaries is None:
            raise ConfigError("split.kind time needs timestamps; name a timestamp column or choose another split")
        return window_labels(plan.boundaries, timestamps)
    assert user_hashes is not None and plan.item_hashes is not None, "a user split is drawn by ids"
    targets = _targets(user_of, user_hashes, plan.item_hashes[items], plan.seed)
    return np.where(targets, plan.users[user_of], TRAIN).astype(np.int8)


def training_mask(user_labels: Labels, labels: Labels, with_validation: bool) -> NDArray[np.bool_]:
    """Which interactions are trained on.

    Args:
        user_labels: label of each interaction's user, (interactions,).
        labels: label of each interaction, (interactions,).
        with_validation: train on validation's interactions (and users) too.
    """
    last = VALIDATION if with_validation else TRAIN
    mask: NDArray[np.bool_] = (user_labels <= last) & (labels <= last)
    return mask


def evaluation_masks(
    kind: str, split: str, user_labels: Labels, labels: Labels, *, published: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which interactions are input, and which are asked for, when `split` is evaluated; arguments as above.

    Args:
        published: validation's are no input at test, although they may be trained on: beeFormer's published protocol.
    """
    wanted = SPLITS[split]
    if kind == "user":
        inside = user_labels == wanted
        return inside & (labels == TRAIN), inside & (labels == wanted)
    return (labels == TRAIN if published else labels < wanted), labels == wanted


def _draw(number: int, config: SplitConfig, generator: np.random.Generator) -> Labels:
    num_validation, num_test = _sizes(number, config, "items")
    order = generator.permutation(number)
    labels = np.zeros(number, dtype=np.int8)
    labels[order[:num_validation]] = VALIDATION
    labels[order[num_validation : num_validation + num_test]] = TEST
    return labels


def _sizes(number: int, config: SplitConfig, what: str) -> tuple[int, int]:
    """How many are validation and test."""
    validation, test = (round(size * number) if size < 1 else int(size) for size in (config.validation, config.test))
    if min(validation, test) < 1 or validation + test > number - 2:
        raise DataError(
            f"split: {validation} validation and {test} test {what} of {number} leave too few; "
            "change split.validation and split.test"
        )
    return validation, test


def _beeformer_items(item_ids: pa.Array, first_rows: NDArray[np.int64], num_draws: int) -> Labels:
    """The held-out items of the published protocol: ids as strings, in order of first appearance.

    `numpy.random.seed(42)`, `num_draws` ids with replacement are validation; the ids left, sorted as
    strings, and the same seed again give test.
    """
    ids = np.asarray([str(one) for one in item_ids.to_pylist()])
    appearance = ids[np.argsort(first_rows, kind="stable")]
    validation = np.unique(np.random.RandomState(BEEFORMER_SEED).choice(appearance, num_draws))
    left = np.sort(appearance[~np.isin(appearance, validation)])
    if not len(left):
        raise DataError(f"split.num_draws {num_draws}: validation takes every item; lower it")
    test = np.unique(np.random.RandomState(BEEFORMER_SEED).choice(left, num_draws))
    labels = np.zeros(len(ids), dtype=np.int8)
    labels[np.isin(ids, validation)] = VALIDATION
    labels[np.isin(ids, test)] = TEST
    if not (labels == TRAIN).any():
        raise DataError(f"split.num_draws {num_draws}: nothing is left to train on; lower it")
    return labels


def _targets(user_of: NDArray[np.int64], user_hashes: Hashes, item_hashes: Hashes, seed: int) -> NDArray[np.bool_]:
    """A user's targets: a fifth of its interactions, at least one, drawn by (seed, id of the user, id of the item).

    So they stay what they are whatever other users there are, and in whatever order rows and items stand.

    Args:
        user_of: user index of each interaction, ascending, (interactions,).
        user_hashes, item_hashes: `id_hashes` of each one's user and item, (interactions,).
    """
    starts = np.flatnonzero(np.concatenate([[True], user_of[1:] != user_of[:-1]])) if len(user_of) else np.empty(0, int)
    lengths = np.diff(np.concatenate([starts, [len(user_of)]]))
    place = np.arange(len(user_of)) - np.repeat(starts, lengths)
    drawn = _mix(_mix(user_hashes, seed) ^ item_hashes, seed)  # mixed first: user 7 and item 7 have one hash
    order = np.lexsort((drawn, user_of))
    mask = np.zeros(len(user_of), dtype=bool)
    mask[order] = place < np.repeat(np.maximum(1, (lengths * TARGET_FRACTION).astype(np.int64)), lengths)
    return mask


def _mix(values: Hashes, seed: int) -> Hashes:
    """SplitMix64's finaliser: random-looking bits of (value, seed), the same however users are dealt to parts."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
