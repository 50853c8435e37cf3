"""The leakage check: nothing held out is trained on, in the store as it is written.

It reads the parts back, so it checks what training will read and not what preparation meant to write.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from beeray.data.catalog import normalize_ids
from beeray.data.id_ranges import hash_ids
from beeray.data.parts import read_part
from beeray.data.splits import SPLITS, TEST, TRAIN
from beeray.data.storage import resolve
from beeray.data.store import CATALOG_COLUMNS, USER_COLUMNS, Store, label_counts, list_column
from beeray.data.store_meta import DomainMeta
from beeray.data.streaming import in_tasks
from beeray.data.table_files import unreadable
from beeray.errors import DataError, StoreError

Flat = NDArray[np.int64]
IDS = (pa.int64(), pa.string())
USERS_AT_ONCE = 4096
CHECKED_HERE = 4_000_000
"""Interactions of a store that are checked without tasks, in half a second or so."""


def check_leakage(store: Store) -> None:
    """Stream a store and refuse it if a held-out thing is labelled for training, domain by domain.

    Parts of the users are checked one by one, those of a large store by Ray tasks, and that they fit together here.

    Raises:
        StoreError: names the first user and item that offend, and the rule.
    """
    with _damaged(store):
        for paths, columns in ((store.catalog_paths(), CATALOG_COLUMNS), (store.user_paths(), USER_COLUMNS)):
            for path in paths:
                _require_columns(store, path, columns)
        item_ids, labels = store.item_ids(), store.item_labels()
    if not {"train", "train+validation"} <= store.meta.training_users.keys():
        raise _refused(store, "meta.json does not say how many users are trained on")
    if len(labels) != store.meta.num_items or label_counts(labels) != store.meta.items:
        raise _refused(store, f"its catalog holds {len(labels)} items {label_counts(labels)}, meta.json says otherwise")
    if len(store.domains) > 1:
        _require_catalog_of_domains(store)
    num_parts = 0
    for domain in store.domains:
        inside = domain.item_range
        _require_distinct(store, item_ids[inside], "item_id")
        if label_counts(labels[inside]) != domain.items:
            raise _refused(store, f"domain {domain.name!r}: its items' labels are not those that meta.json says")
        paths = store.user_paths(domain.name)
        num_parts += len(paths)
        _check_users(store, domain, paths, labels)
    if num_parts != len(store.user_paths()):
        raise _refused(store, f"{len(store.user_paths()) - num_parts} parts of its users are of no domain")


def _check_users(store: Store, domain: DomainMeta, paths: Sequence[str], item_labels: NDArray[np.int8]) -> None:
    counted: Counter[str] = Counter()
    last: pa.Array | None = None
    for part in _checked_parts(store, domain, paths, item_labels):
        if part.failure is not None:
            raise StoreError(part.failure)
        counted.update(part.counted)
        if part.ends is not None:
            if last is not None:
                between = pa.concat_arrays([last, part.ends[:1]])
                _require_order(store, between)
                _require_distinct(store, between, "user_id")
            last = part.ends[1:]
    interactions = {name: counted[name] for name in SPLITS}
    users = {name: counted[f"{name} users"] for name in SPLITS}
    totals = (sum(users.values()), sum(interactions.values()))
    expected = (domain.interactions, domain.users, (domain.num_users, domain.num_interactions))
    if (interactions, users, totals) != expected:
        raise _refused(store, f"its users and interactions are {dict(counted)}, meta.json says otherwise")


@dataclass(frozen=True)
class CheckedPart:
    """What the check of a part of the users found.

    Attributes:
        counted: users and interactions of each label.
        ends: ids of the first and the last user; None in a part without users.
        failure: why the store is refused; returned, so that of several failures the first in order is told.
    """

    counted: Counter[str]
    ends: pa.Array | None = None
    failure: str | None = None


def _checked_parts(
    store: Store, domain: DomainMeta, paths: Sequence[str], item_labels: NDArray[np.int8]
) -> Iterator[CheckedPart]:
    if store.meta.num_interactions <= CHECKED_HERE:  # sooner done than tasks are started, and no worker stays behind
        return (check_part(path, store, domain, item_labels) for path in paths)
    return in_tasks(check_part, paths, store=store, domain=domain, item_labels=ray.put(item_labels))


def check_part(path: str, store: Store, domain: DomainMeta, item_labels: NDArray[np.int8]) -> CheckedPart:
    """Check one part of the users, some thousand at a time."""
    counted: Counter[str] = Counter()
    first: pa.Array | None = None
    last: pa.Array | None = None
    filesystem, inside = resolve(path)
    try:
        with _damaged(store), unreadable(path, ""), filesystem.open_input_file(inside) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=USERS_AT_ONCE):
                counted.update(_check_batch(store, domain, batch, item_labels))
                user_ids = batch["user_id"] if last is None else pa.concat_arrays([last, batch["user_id"]])
                _require_order(store, user_ids)
                _require_distinct(store, user_ids, "user_id")
                first, last = user_ids[:1] if first is None else first, user_ids[-1:]
    except StoreError as error:
        return CheckedPart(counted, failure=str(error))
    return CheckedPart(counted, None if first is None else pa.concat_arrays([first, last]))


def _require_catalog_of_domains(store: Store) -> None:
    """Items lie in their domain's range; part by part, since names of millions of items are not needed at once."""
    number = np.repeat(np.arange(len(store.domains)), [one.num_items for one in store.domains])
    first = 0
    for path in store.catalog_paths():
        names = read_part(path, ["domain"])["domain"]
        _require_domain(store, names[:1], store.domains[number[first]])
        _require_domain(store, names, store.domains[number[first + len(names) - 1]])
        first += len(names)


def _require_domain(store: Store, names: pa.Array | pa.ChunkedArray, domain: DomainMeta) -> None:
    found = pc.unique(names).to_pylist()
    if found not in ([], [domain.name]):
        raise _refused(store, f"something of domain {domain.name!r} is labelled {found}")


def _require_distinct(store: Store, ids: pa.Array | pa.ChunkedArray, name: str) -> None:
    counted = pc.value_counts(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        first = twice.field("values")[0].as_py()
        raise _refused(store, f"{name} {first!r} stands in it {twice.field('counts')[0]} times ({len(twice)} such)")


def _require_order(store: Store, user_ids: pa.Array) -> None:
    """Users stand in the order of their ids' hashes, so none can stand in two places."""
    hashes = hash_ids(normalize_ids(user_ids, "user_id"))
    wrong = np.flatnonzero(hashes[1:] < hashes[:-1])
    if len(wrong):
        pair = " and ".join(repr(one) for one in user_ids[wrong[0] : wrong[0] + 2].to_pylist())
        raise _refused(store, f"user_id {pair} stand in the wrong order, so one may stand in it twice")


def _check_batch(
    store: Store, domain: DomainMeta, batch: pa.RecordBatch, item_labels: NDArray[np.int8]
) -> Counter[str]:
    for name in USER_COLUMNS.keys() - {"timestamps"}:
        if batch[name].null_count or (pa.types.is_list(batch[name].type) and batch[name].flatten().null_count):
            raise _refused(store, f"{name} is null in a part of its users")
    indptr, items = list_column(batch["item_indices"])
    label_ptr, labels = list_column(batch["splits"])
    users = np.repeat(batch["user_index"].to_numpy(), np.diff(indptr))
    user_labels = batch["split"].to_numpy()
    per_interaction = np.repeat(user_labels, np.diff(indptr))
    if not np.array_equal(indptr, label_ptr):
        raise _refused(store, f"user_index {batch['user_index'][0]}: items and splits differ in length")
    _require_domain(store, batch["domain"], domain)
    inside = domain.item_range
    _require(store, (items >= inside.start) & (items < inside.stop), users, items, "has an item_index out of range")
    _require(store, (labels >= TRAIN) & (labels <= TEST), users, items, "has an unknown split label")
    pairs = np.sort(users.astype(np.int64) << 32 | items)
    if (pairs[1:] == pairs[:-1]).any():
        order = np.lexsort((items, users))
        fresh = np.ones(len(items), dtype=bool)
        fresh[order[1:]] = (users[order][1:] != users[order][:-1]) | (items[order][1:] != items[order][:-1])
        _require(store, fresh, users, items, "holds an item twice")
    if store.meta.split_kind == "item":
        _require(
            store, labels == item_labels[items], users, items, "has an interaction labelled unlike its held-out item"
        )
    elif store.meta.split_kind == "user":
        held_in = (labels == TRAIN) | (labels == per_interaction)
        _require(store, held_in, users, items, "has a target labelled unlike its user")
    else:
        _check_times(store, domain, batch, users, items, labels)
    counted = Counter(label_counts(labels.astype(np.int8)))
    counted.update({f"{name} users": number for name, number in label_counts(user_labels).items()})
    return counted


def _check_times(
    store: Store, domain: DomainMeta, batch: pa.RecordBatch, users: Flat, items: Flat, labels: NDArray[np.int8]
) -> None:
    if domain.time_boundaries is None:
        raise _refused(store, "it is split by time, but meta.json has no time_boundaries")
    _, times = list_column(batch["timestamps"])
    validation_from, test_from = domain.time_boundaries
    expected = (times >= validation_from).astype(np.int8) + (times >= test_from)
    _require(store, labels == expected, users, items, "has an interaction labelled unlike its time")


def _require(store: Store, right: NDArray[np.bool_], users: Flat, items: Flat, rule: str) -> None:
    if not right.all():
        place = int(np.flatnonzero(~right)[0])
        raise _refused(
            store, f"user_index {users[place]} {rule} (item_index {items[place]}; {int((~right).sum())} such)"
        )


def _require_columns(store: Store, path: str, columns: Mapping[str, pa.DataType | None]) -> None:
    """A part has the columns of a store's, in the types that they were written in."""
    filesystem, inside = resolve(path)
    with unreadable(path, ""), filesystem.open_input_file(inside) as file:
        opened = pq.ParquetFile(file)
        schema, metadata = opened.schema_arrow, opened.metadata
        nulls = {
            column.path_in_schema
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for column in map(group.column, range(group.num_columns))
            if column.statistics is not None and column.statistics.null_count
        }
    for name, kind in columns.items():
        if name in nulls:
            raise _refused(store, f"{path.rpartition('/')[2]} has a null {name}")
        found = schema.field(name).type if schema.names.count(name) == 1 else None
        if found is None or (found not in IDS if kind is None else found != kind):
            raise _refused(store, f"{path.rpartition('/')[2]} is no part of one (its {name} is {found})")


@contextlib.contextmanager
def _damaged(store: Store) -> Iterator[None]:
    """Tell of a part that cannot be read as what is wrong with the store."""
    try:
        yield
    except DataError as error:
        raise StoreError(f"store {store.path!r}: {error}; delete the store and prepare again") from error


def _refused(store: Store, reason: str) -> StoreError:
    return StoreError(f"store {store.path!r}: leakage check failed: {reason}; delete the store and prepare again")
