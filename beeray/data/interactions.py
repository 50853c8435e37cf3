"""Interactions: which rows count, and from rows to one list of items per user. All vectorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.data.catalog import normalize_ids
from beeray.data.fragments import ROW
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.errors import DataError

BUCKET = "bucket"
ROWS_PER_BUCKET = 1 << 20
LEAST_BUCKETS, MOST_BUCKETS = 8, 4096
NO_TIME = int(np.iinfo(np.int64).min)
"""The timestamp of interactions that have none: no other is earlier, though times before 1970 are negative."""
LEAST_SECONDS = 100_000_000
"""Timestamps as large, in either direction, may have a fraction: they count seconds since 1970 (this one is in 1973) or
something shorter. Smaller ones may count days or years."""
Numbers = NDArray[Any]


@dataclass(frozen=True)
class Rules:
    """Which interactions count.

    Attributes:
        min_value: smaller (or null, or NaN) values are dropped; None keeps all.
        min_user_interactions: users with fewer distinct items are dropped.
        num_buckets: users are dealt to so many buckets by ranges of a hash of their id.
        item_ids_as_text, user_ids_as_text: make strings of integer ids.
    """

    min_value: float | None
    min_user_interactions: int
    num_buckets: int
    item_ids_as_text: bool = False
    user_ids_as_text: bool = False


def derived_buckets(num_rows: int) -> int:
    """User buckets for so many raw interactions: each holds about a million, whatever their number."""
    return min(MOST_BUCKETS, max(LEAST_BUCKETS, -(-num_rows // ROWS_PER_BUCKET)))


def bucket_interactions(table: pa.Table, item_ids: pa.Array, rules: Rules) -> tuple[pa.Table, Mapping[str, int]]:
    """Rows of a batch that count, with catalog positions and user buckets.

    Args:
        table: user_id, item_id, perhaps value and timestamp, and row.
        item_ids: the catalog's ids.

    Returns:
        bucket int32, user_id, item int32 (catalog position), timestamp int64 (if any), row int64; and
        what was dropped, rule → rows.
    """
    users = normalize_ids(table["user_id"], "interactions user_id", as_text=rules.user_ids_as_text)
    items = normalize_ids(table["item_id"], "interactions item_id", as_text=rules.item_ids_as_text)
    known = pc.and_(pc.is_valid(users), pc.is_valid(items))
    dropped = {"interactions_without_id": table.num_rows - (pc.sum(known).as_py() or 0)}
    valued = known
    if rules.min_value is not None and "value" in table.column_names:
        values = _cast(table["value"], pa.float64(), "value")
        enough = pc.fill_null(pc.greater_equal(values, rules.min_value), False)
        valued = pc.and_(known, enough.combine_chunks() if isinstance(enough, pa.ChunkedArray) else enough)
    dropped["interactions_below_min_value"] = (pc.sum(known).as_py() or 0) - (pc.sum(valued).as_py() or 0)
    places = pc.index_in(items, item_ids) if items.type == item_ids.type else pa.nulls(len(items), pa.int32())
    kept = pc.and_(valued, pc.is_valid(places))
    dropped["interactions_of_unknown_items"] = (pc.sum(valued).as_py() or 0) - (pc.sum(kept).as_py() or 0)
    users = users.filter(kept)
    columns = {
        BUCKET: pa.array(ranges_of(hash_ids(users), rules.num_buckets)),
        "user_id": users,
        "item": places.filter(kept).cast(pa.int32()),
    }
    if "timestamp" in table.column_names:
        columns["timestamp"] = _seconds(table["timestamp"]).filter(kept)
    columns[ROW] = table[ROW].filter(kept)
    return pa.table(columns), dropped


def group_users(table: pa.Table, rules: Rules) -> tuple[pa.Table, Mapping[str, int]]:
    """One row per user of a bucket, in the order of their ids' hashes.

    Duplicates of (user, item) collapse to the earliest, by timestamp and then by row; users with fewer
    than `min_user_interactions` distinct items are dropped.

    Args:
        table: all rows of some buckets, as `bucket_interactions` returns them.

    Returns:
        user_id, items list<int32> (catalog positions, earliest first), rows list<int64>, and timestamps
        list<int64> (if any); and what was dropped, rule → rows.
    """
    users = pc.dictionary_encode(normalize_ids(table["user_id"], "interactions user_id"))
    rank_of = np.argsort(np.argsort(hash_ids(users.dictionary), kind="stable"), kind="stable")
    code = rank_of[users.indices.to_numpy()] if len(table) else np.empty(0, dtype=np.int64)
    code = code.astype(np.min_scalar_type(max(1, len(users.dictionary))))  # 16 bits are sorted by radix
    item, row = table["item"].to_numpy(), table[ROW].to_numpy()
    timed = "timestamp" in table.column_names
    when = table["timestamp"].to_numpy() if timed else row
    order = _earliest_first(code, when, row)
    repeated = _repeated(code[order], item[order])
    order = order[~repeated]
    counts = np.bincount(code[order], minlength=len(users.dictionary))
    enough = counts >= rules.min_user_interactions
    order = order[enough[code[order]]]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts[enough])]).astype(np.int32))
    by_rank = np.argsort(rank_of, kind="stable")
    columns = {
        "user_id": users.dictionary.take(pa.array(by_rank[enough])),
        "items": pa.ListArray.from_arrays(offsets, pa.array(item[order].astype(np.int32))),
        "rows": pa.ListArray.from_arrays(offsets, pa.array(row[order])),
    }
    if timed:
        columns["timestamps"] = pa.ListArray.from_arrays(offsets, pa.array(when[order]))
    dropped = {
        "interactions_repeated": int(repeated.sum()),
        "users_below_min_interactions": int((~enough).sum()),
        "interactions_of_such_users": int(counts[~enough].sum()),
    }
    return pa.table(columns), dropped


def _earliest_first(code: Numbers, when: Numbers, row: Numbers) -> NDArray[np.int64]:
    """Order of the rows by user, then time, then row."""
    if (row[1:] < row[:-1]).any():
        return np.lexsort((row, when, code))
    order = np.arange(len(row)) if when is row else np.argsort(when, kind="stable")
    return order[np.argsort(code[order], kind="stable")]


def _repeated(code: Numbers, item: Numbers) -> NDArray[np.bool_]:
    """Which rows repeat an earlier one's user and item."""
    item = item.astype(np.min_scalar_type(int(item.max(initial=0))))
    order = np.argsort(item, kind="stable")
    order = order[np.argsort(code[order], kind="stable")]
    same = (code[order][1:] == code[order][:-1]) & (item[order][1:] == item[order][:-1])
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:][same]] = True
    return repeated


def _seconds(column: pa.ChunkedArray) -> pa.Array:
    """Timestamps as int64: whole numbers stay as they are, dates become microseconds; null and NaN are `NO_TIME`.

    Fractions of seconds are cut.

    Raises:
        DataError: no numbers or dates, beyond 64 bits, or with fractions of something longer than a second.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        array = _in_range(array, pa.timestamp("us"))
    elif pa.types.is_floating(array.type):
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
        _refuse_long_fractions(array)
        array = pc.trunc(array)
        _in_range(array, pa.int64())
    elif pa.types.is_decimal(array.type):
        _refuse_long_fractions(array)
        array = _in_range(array, pa.int64())
    elif pa.types.is_unsigned_integer(array.type):
        array = _in_range(array, pa.int64())
    return pc.fill_null(_cast(array, pa.int64(), "timestamp"), NO_TIME)


def _refuse_long_fractions(times: pa.Array) -> None:
    """Refuse years like 2024.37 and days like 45123.75: cut, all of a year or of a day would be one instant."""
    numbers = times.cast(pa.float64())
    small = pc.less(pc.abs(numbers), LEAST_SECONDS)
    place = pc.index(pc.and_(small, pc.not_equal(numbers, pc.trunc(numbers))), True).as_py()
    if place >= 0:
        raise DataError(
            f"interactions timestamp: {times[place].as_py()} has a fraction, which would be cut; only seconds since "
            f"1970 ({LEAST_SECONDS:,} and more) may have one: of days or years many would become one instant; "
            "give seconds or dates, or leave the column out where split.kind is not time"
        )


def _in_range(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Timestamps in another type; those of finer units or with fractions are cut, those beyond 64 bits refused."""
    cut = pa.types.is_timestamp(array.type) and array.type.unit == "ns"
    options = pc.CastOptions(kind, allow_time_truncate=cut, allow_decimal_truncate=True)
    try:
        return array.cast(options=options)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"interactions timestamp: a value does not fit 64 bits ({str(error).splitlines()[0][:80]}); "
            "mend or drop such rows"
        ) from error


def _cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType, field: str) -> pa.Array | pa.ChunkedArray:
    try:
        return pc.cast(column, kind, safe=False)
    except pa.ArrowException as error:
        raise DataError(
            f"interactions {field}: is of type {column.type} and cannot be read as numbers "
            f"({str(error).splitlines()[0]}); map a numeric column, or leave it out"
        ) from error
