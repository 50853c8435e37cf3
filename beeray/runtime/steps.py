"""How many steps an epoch and a run have; imports no torch."""

from __future__ import annotations

from beeray.config import Config


def steps_per_epoch(num_users: int, batch_size: int) -> int:
    """Steps that cover `num_users` of a rank in batches as near to `batch_size` as equal ones can be."""
    return max(1, round(num_users / batch_size))


def plan_steps(config: Config, num_users: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole run, for `num_users` training users a rank."""
    per_epoch = steps_per_epoch(num_users, config.train.batch_size // config.cluster.num_workers)
    total = per_epoch * config.train.epochs
    return per_epoch, min(total, config.train.max_steps or total)
