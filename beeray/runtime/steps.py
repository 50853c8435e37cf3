"""What each shard is promised of the users, which rank reads it, how many steps that makes, and what is scored.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beeray.config import Config
from beeray.data.store import Store
from beeray.errors import DataError


def steps_per_epoch(num_users: int, batch_size: int) -> int:
    """Steps that cover `num_users` of a shard in batches as near to `batch_size` as equal ones can be."""
    return max(1, round(num_users / batch_size))


@dataclass(frozen=True)
class UserShare:
    """A shard's users of one domain.

    Attributes:
        dataset: what the datasets that stream them are called, before the shard's number.
        num_users: training users of a shard.
        num_drawn: of those that come in an epoch, a user counted as often as it comes.
        domain: its place in the store.
    """

    dataset: str
    num_users: int
    num_drawn: int
    domain: int = 0

    def dataset_of(self, shard: int) -> str:
        """Name of the dataset that streams a shard."""
        return f"{self.dataset}-{shard}"


def parts_of_rank(rank: int, num_ranks: int, num_shards: int) -> dict[int, tuple[int, int, int]]:
    """Which shards a rank reads, and which part of what each gives to a step is the rank's.

    Shards lie one after the other and ranks cut them into equal parts: as many ranks as shards read one each, half as
    many two, twice as many half of one.

    Returns:
        by shard: first and last, of how many.
    """
    parts: dict[int, tuple[int, int, int]] = {}
    for shard in range(num_shards):
        first = max(0, rank * num_shards - shard * num_ranks)
        last = min(num_ranks, (rank + 1) * num_shards - shard * num_ranks)
        if first < last:
            parts[shard] = (first, last, num_ranks)
    return parts


def user_shares(config: Config, store: Store, num_shards: int | None = None) -> list[UserShare]:
    """What each shard is promised of each domain's users, by the domains' weights.

    Args:
        num_shards: as many as `cluster.num_workers` unless given.

    Raises:
        DataError: a domain has fewer training users than there are shards.
    """
    num_shards = num_shards or config.cluster.num_workers
    shares: list[UserShare] = []
    several = len(store.domains) > 1
    for place, domain in enumerate(store.domains):
        of_all = domain.training_users["train+validation" if config.trains_on_validation else "train"]
        number = of_all // num_shards
        if number < 1:
            where = f"store {store.path}{f', domain {domain.name}' if several else ''}"
            raise DataError(
                f"{where}: {of_all} users with two or more trainable items do not suffice for cluster.num_workers "
                f"{num_shards}; lower it"
            )
        drawn = max(1, round(number * config.data.weight_of(domain.name)))
        shares.append(UserShare(f"users-{domain.name}" if several else "users", number, drawn, place))
    return shares


def plan_steps(config: Config, shares: Sequence[UserShare], num_shards: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole run, for a shard's users of each domain.

    There are no more than the largest domain has users, so that every step has one: each domain gives its own evenly.
    """
    num_users, largest = sum(share.num_drawn for share in shares), max(share.num_drawn for share in shares)
    per_epoch = min(largest, steps_per_epoch(num_users, max(1, config.train.batch_size // num_shards)))
    total = per_epoch * config.train.epochs
    return per_epoch, min(total, config.train.max_steps or total)


def scored_within(config: Config, store: Store) -> NDArray[np.int16] | None:
    """Each item's domain where a user's items stand against those of its own domain alone; None otherwise."""
    return store.item_domains if config.train.negatives == "within" and len(store.domains) > 1 else None
