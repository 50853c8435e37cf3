"""What each Ray Data task of a preparation does with its batch, bucket or part; see `preparation.py` for the order.

A task may run twice, when a worker dies: names of what it writes follow from its input alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from beeray.data.catalog import catalog_texts, one_array
from beeray.data.fragments import ROW
from beeray.data.interactions import BUCKET, Rules, bucket_interactions, group_users
from beeray.data.parts import read_part, write_part
from beeray.data.record_batches import batches_by, read_batch
from beeray.data.splits import id_hashes, interaction_labels
from beeray.data.storage import join, write_bytes
from beeray.data.store import label_counts, list_column, training_rows, user_part_name
from beeray.data.time_windows import count_times

DEALT = "dealt"


def stage_catalog(table: pa.Table, template: str, empty_text: str, folder: str, ids_as_text: bool = False) -> pa.Table:
    """Render a batch of the catalog and put its texts on disk; returns ids, hashes and rows, and how many were read."""
    texts = catalog_texts(table, template, empty_text, ids_as_text=ids_as_text)
    if texts.num_rows:
        write_part(texts, join(folder, f"catalog-{texts[ROW][0].as_py():016x}.parquet"))
    listing = texts.select(["item_id", "content_hash", ROW])
    read = np.zeros(max(1, listing.num_rows), dtype=np.int64)
    read[0] = table.num_rows
    if not listing.num_rows:
        listing = pa.table({field.name: pa.nulls(1, field.type) for field in listing.schema})
    return listing.append_column("read", pa.array(read))


def deal_to_buckets(table: pa.Table, item_ids: Any, rules: Rules, folder: str) -> pa.Table:
    """Deal a batch of interactions to a file, one record batch a user bucket; returns what was read and dropped."""
    rows, counts = bucket_interactions(table, ray.get(item_ids), rules)
    if rows.num_rows:
        data = batches_by(rows.drop_columns([BUCKET]), rows[BUCKET].to_numpy(), rules.num_buckets)
        # named by row: a task run twice writes it twice
        write_bytes(join(folder, DEALT, f"{table[ROW][0].as_py():016x}.arrow"), data)
    return _counts({**counts, "interactions": table.num_rows})


def group_bucket(batch: dict[str, Any], rules: Rules, folder: str, names: Any) -> Iterator[pa.Table]:
    """One row per user of each bucket, and how often each item occurs in it; returns users and what was dropped."""
    names = ray.get(names)
    for bucket in batch[BUCKET]:
        pieces = [piece for name in names if (piece := read_batch(name, int(bucket))).num_rows]
        counts: dict[str, int] = {"users": 0}
        if pieces:
            users, dropped = group_users(pa.concat_tables(pieces), rules)
            write_part(users.drop_columns(["rows"]), join(folder, f"users-{bucket:05d}.parquet"))
            write_part(_item_counts(users), join(folder, f"items-{bucket:05d}.parquet"))
            counts = {**dropped, "users": users.num_rows}
        yield _counts(counts).append_column(BUCKET, pa.array([bucket] * len(counts), pa.int32()))


def _item_counts(users: pa.Table) -> pa.Table:
    """Of each item that occurs: how often, its first row and (if there are any) its first and last timestamp."""
    items = list_column(users["items"])[1]
    order = np.argsort(items.astype(np.min_scalar_type(int(items.max(initial=0)))), kind="stable")
    ordered = items[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    columns = {"item": ordered[starts].astype(np.int64), "count": np.diff(np.append(starts, len(ordered)))}
    rows = list_column(users["rows"])[1][order]
    columns["first_row"] = np.minimum.reduceat(rows, starts) if len(starts) else rows
    if "timestamps" in users.column_names:
        times = list_column(users["timestamps"])[1][order]
        columns["first_time"] = np.minimum.reduceat(times, starts) if len(starts) else times
        columns["last_time"] = np.maximum.reduceat(times, starts) if len(starts) else times
    return pa.table(columns)


def bucket_times(path: str, low: int, width: int) -> NDArray[np.int64]:
    """How many interactions of a grouped bucket lie in each bin of time; see `time_windows.Histogram`."""
    return count_times(list_column(read_part(path, ["timestamps"])["timestamps"])[1], low, width)


def bucket_users(path: str) -> NDArray[np.uint64]:
    """Hashes of a grouped bucket's users, in order; see `splits.draw_users`."""
    return id_hashes(read_part(path, ["user_id"])["user_id"].combine_chunks())


def _counts(counts: Mapping[str, int]) -> pa.Table:
    return pa.table({"what": list(counts), "number": pa.array(counts.values(), pa.int64())})


def sum_counts(table: pa.Table) -> Counter[str]:
    """The counts that a task returned."""
    totals: Counter[str] = Counter()
    for what, number in zip(table["what"].to_pylist(), table["number"].to_pylist(), strict=True):
        totals[what] += number
    return totals


@dataclass(frozen=True)
class Place:
    """Where a domain's parts and indices are in a store.

    Attributes:
        folder: of the store.
        domain: its name.
        number: its place among several domains; None where it is the only one.
        first_item, first_user: indices of its first item and user.
    """

    folder: str
    domain: str
    number: int | None = None
    first_item: int = 0
    first_user: int = 0


def finish_catalog(batch: dict[str, Any], rows: Any, item_index: Any, labels: Any, place: Place) -> Iterator[pa.Table]:
    """A staged part of the catalog as a part of the store: kept items with their index and label; returns how many.

    Args:
        item_index: int32 (staged items,), from 0 in the domain; -1 for items that are not kept.
    """
    rows, item_index, labels = ray.get([rows, item_index, labels])
    for name in batch["name"]:
        part = read_part(str(name))
        places = np.minimum(np.searchsorted(rows, part[ROW].to_numpy()), len(rows) - 1)
        keep = (rows[places] == part[ROW].to_numpy()) & (item_index[places] >= 0)
        places, part = places[keep], part.filter(pa.array(keep))
        if part.num_rows:
            indices = item_index[places] + np.int32(place.first_item)
            finished = pa.table(
                {
                    "item_index": indices,
                    "item_id": part["item_id"],
                    "domain": pa.array([place.domain] * part.num_rows),
                    "text": part["text"],
                    "content_hash": part["content_hash"],
                    "split": labels[places],
                }
            )
            write_part(finished, join(place.folder, "catalog", f"part-{int(indices[0]):010d}.parquet"))
        yield pa.table({"items": [part.num_rows]})


def finish_users(batch: dict[str, Any], item_index: Any, plan: Any, place: Place) -> Iterator[pa.Table]:
    """A bucket's users as a part of the store, every interaction labelled; returns its counts per label."""
    item_index, plan = ray.get([item_index, plan])
    for bucket, name, first_user in zip(batch["bucket"], batch["name"], batch["first_user"], strict=True):
        part = read_part(str(name))
        indptr, items = list_column(part["items"])
        users = np.arange(first_user, first_user + part.num_rows, dtype=np.int64)  # of the domain
        times = list_column(part["timestamps"])[1] if "timestamps" in part.column_names else None
        indices = item_index[items]
        hashes = np.repeat(id_hashes(one_array(part["user_id"])), np.diff(indptr)) if plan.kind == "user" else None
        labels = interaction_labels(plan, indices, np.repeat(users, np.diff(indptr)), times, hashes)
        offsets = pa.array(indptr.astype(np.int32))
        nothing = pa.nulls(part.num_rows, pa.list_(pa.int64()))
        finished = pa.table(
            {
                "user_index": (users + place.first_user).astype(np.int32),
                "user_id": part["user_id"],
                "domain": pa.array([place.domain] * part.num_rows),
                "split": plan.users[users],
                "item_indices": pa.ListArray.from_arrays(offsets, pa.array(indices + np.int32(place.first_item))),
                "splits": pa.ListArray.from_arrays(offsets, pa.array(labels)),
                "timestamps": nothing if times is None else pa.ListArray.from_arrays(offsets, pa.array(times)),
            }
        )
        write_part(finished, join(place.folder, "users", user_part_name(place.number, int(bucket))))
        counts = label_counts(labels) | {"users": part.num_rows, "bucket": int(bucket)}
        counts["trainable"] = training_rows(finished, False).num_rows
        counts["trainable_with_validation"] = training_rows(finished, True).num_rows
        yield pa.Table.from_pylist([counts])
