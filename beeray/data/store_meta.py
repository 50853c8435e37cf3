"""What a store's `meta.json` says: counts of the whole and, where there are several, of each domain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

SCHEMA_VERSION = 3
SPLIT_KINDS = ("item", "time", "user")
T = TypeVar("T")


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
    held_out_twins: dict[str, int] = field(default_factory=dict)

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
        held_out_twins: held-out items whose text is exactly that of a training item, by split; only in an `item` split
            without `split.reproduce`, and not in stores of earlier versions.
        published_inputs: see `published` of `evaluation_masks`; so under `split.reproduce`.
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
    published_inputs: bool = False
    held_out_twins: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> StoreMeta:
        """What a `meta.json` of this schema version holds; keys that a later minor version added are passed over.

        Raises:
            ValueError: names the key that is missing, of another type, or does not fit the others.
        """
        meta = _validated(cls, record)
        domains = [_validated(DomainMeta, one) for one in meta.by_domain]
        if meta.split_kind not in SPLIT_KINDS:
            raise ValueError(f"split_kind is {meta.split_kind!r}")
        if len(meta.domains) != (len(domains) or 1) or (domains and [one.name for one in domains] != meta.domains):
            raise ValueError(f"domains are {meta.domains}, by_domain holds {len(domains)}")
        counts = [meta.num_items, meta.num_users, meta.num_interactions]
        counted: list[DomainMeta | StoreMeta] = [*domains] or [meta]
        for one in counted:
            if any(number < 0 for number in (one.num_items, one.num_users, one.num_interactions)):
                raise ValueError("a count is below zero")
            if one.training_users != {name: sum(parts) for name, parts in one.training_users_of_parts.items()}:
                raise ValueError("training_users_of_parts do not add up to training_users")
            if one.time_boundaries is not None and len(one.time_boundaries) != 2:
                raise ValueError(f"time_boundaries are {len(one.time_boundaries)} numbers")
        if domains:
            firsts = itertools.accumulate(
                ((one.num_items, one.num_users) for one in domains[:-1]), _add, initial=(0, 0)
            )
            if [(one.first_item, one.first_user) for one in domains] != list(firsts):
                raise ValueError("the ranges of its domains do not follow each other")
            own = [[one.num_items, one.num_users, one.num_interactions] for one in domains]
            if [sum(numbers) for numbers in zip(*own, strict=True)] != counts:
                raise ValueError("its domains do not add up to the whole")
        return meta

    @classmethod
    def of_domains(
        cls, fingerprint: str, split_kind: str, domains: Sequence[DomainMeta], *, published_inputs: bool = False
    ) -> StoreMeta:
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
            published_inputs=published_inputs,
            held_out_twins=_sum_counts([one.held_out_twins for one in domains]),
        )


def _add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _validated(kind: type[T], record: dict[str, Any]) -> T:
    known = {one.name for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return TypeAdapter(kind).validate_python({key: value for key, value in record.items() if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def _sum_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total
