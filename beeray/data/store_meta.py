"""What a store's `meta.json` says: counts of the whole and, where there are several, of each domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class DomainMeta:
    """What `meta.json` says of one domain; counts as in `StoreMeta`.

    Attributes:
        name: of the domain.
        first_item, first_user: where its ranges of indices begin.
        time_boundaries: first timestamps of validation and of test; only in a `time` split.
    """

    name: str
    num_items: int
    num_users: int
    num_interactions: int
    items: dict[str, int]
    users: dict[str, int]
    interactions: dict[str, int]
    training_users: dict[str, int]
    training_users_of_parts: dict[str, list[int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    time_boundaries: list[int] | None = None
    first_item: int = 0
    first_user: int = 0

    @property
    def item_range(self) -> slice:
        """Its item indices."""
        return slice(self.first_item, self.first_item + self.num_items)


@dataclass(frozen=True)
class StoreMeta:
    """What `meta.json` says.

    Attributes:
        fingerprint: digest of inputs, rules, split and seed.
        split_kind: `item`, `time` or `user`.
        domains: names, in the order of their indices.
        items, users, interactions: how many carry each label, e.g. `{"train": 6328, …}`.
        training_users: users with two or more trainable interactions, without and with validation's.
        training_users_of_parts: the same of every users part, in order.
        dropped: what the rules removed, rule → how many.
        by_domain: one record a domain, `DomainMeta` as a mapping; empty where there is one domain.
    """

    fingerprint: str
    split_kind: str
    domains: list[str]
    num_items: int
    num_users: int
    num_interactions: int
    items: dict[str, int]
    users: dict[str, int]
    interactions: dict[str, int]
    training_users: dict[str, int]
    training_users_of_parts: dict[str, list[int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    time_boundaries: list[int] | None = None
    schema_version: int = SCHEMA_VERSION
    by_domain: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of_domains(cls, fingerprint: str, split_kind: str, domains: Sequence[DomainMeta]) -> StoreMeta:
        """The whole store's counts, and each domain's where there are several."""
        several = len(domains) > 1
        return cls(
            fingerprint=fingerprint,
            split_kind=split_kind,
            domains=[one.name for one in domains],
            num_items=sum(one.num_items for one in domains),
            num_users=sum(one.num_users for one in domains),
            num_interactions=sum(one.num_interactions for one in domains),
            items=_sum_counts([one.items for one in domains]),
            users=_sum_counts([one.users for one in domains]),
            interactions=_sum_counts([one.interactions for one in domains]),
            training_users=_sum_counts([one.training_users for one in domains]),
            training_users_of_parts={} if several else domains[0].training_users_of_parts,
            dropped=_sum_counts([one.dropped for one in domains]),
            time_boundaries=None if several else domains[0].time_boundaries,
            by_domain=[dataclasses.asdict(one) for one in domains] if several else [],
        )


def _sum_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total
