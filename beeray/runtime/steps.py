"""What each rank is promised of the users, how many steps that makes, and what is scored; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beeray.config import Config
from beeray.data.store import Store
from beeray.errors import DataError


def steps_per_epoch(num_users: int, batch_size: int) -> int:
    """Steps that cover `num_users` of a rank in batches as near to `batch_size` as equal ones can be."""
    return max(1, round(num_users / batch_size))


@dataclass(frozen=True)
class UserShare:
    """A rank's users of one domain.

    Attributes:
        dataset: name of the dataset that streams them.
        num_users: training users of a rank.
        num_drawn: of those that come in an epoch, a user counted as often as it comes.
        domain: its place in the store.
    """

    dataset: str
    num_users: int
    num_drawn: int
    domain: int = 0


def user_shares(config: Config, store: Store) -> list[UserShare]:
    """What each rank is promised of each domain's users, by `cluster.num_workers` and the domains' weights.

    Raises:
        DataError: a domain has fewer training users than there are workers.
    """
    shares: list[UserShare] = []
    several = len(store.domains) > 1
    for place, domain in enumerate(store.domains):
        of_all = domain.training_users["train+validation" if config.trains_on_validation else "train"]
        number = of_all // config.cluster.num_workers
        if number < 1:
            where = f"store {store.path}{f', domain {domain.name}' if several else ''}"
            raise DataError(
                f"{where}: {of_all} users with two or more trainable items do not suffice for cluster.num_workers "
                f"{config.cluster.num_workers}; lower it"
            )
        drawn = max(1, round(number * config.data.weight_of(domain.name)))
        shares.append(UserShare(f"users-{domain.name}" if several else "users", number, drawn, place))
    return shares


def plan_steps(config: Config, num_users: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole run, for `num_users` users of a rank in an epoch."""
    per_epoch = steps_per_epoch(num_users, config.train.batch_size // config.cluster.num_workers)
    total = per_epoch * config.train.epochs
    return per_epoch, min(total, config.train.max_steps or total)


def scored_within(config: Config, store: Store) -> NDArray[np.int16] | None:
    """Each item's domain where a user's items stand against those of its own domain alone; None otherwise."""
    return store.item_domains if config.train.negatives == "within" and len(store.domains) > 1 else None
