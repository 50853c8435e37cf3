"""The join of a night's catalog with what was embedded before, one range of id hashes at a time.

What was embedded before lies in files by ranges of the same hash, so a range of the new catalog needs only
the few old files that overlap it: ids and content hashes to decide, vectors later, and only those reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beeray.data.id_ranges import comparable, hash_ids, overlapping_ranges, ranges_of
from beeray.data.storage import read_bytes
from beeray.errors import RunError

NOT_REUSED = -1


@dataclass(frozen=True)
class EarlierRows:
    """Rows embedded earlier by the same model in the same way: a publication, or what a stopped job left.

    Attributes:
        paths: file of each range, in order; None where a stopped job had not come to it. They are listed once, so
            that a row number means the same row whenever it is looked up.
        published: whether readers have seen these rows (a stopped job's they have not).
        sha256: of each file, where a manifest tells it; a file that is another now is as good as none.
        reusable: False where the vectors are another encoder's: items are only counted.
    """

    paths: tuple[str | None, ...]
    published: bool = True
    sha256: tuple[str, ...] | None = None
    reusable: bool = True

    def read(self, number: int, num_ranges: int, columns: Sequence[str]) -> pa.Table | None:
        """The rows whose ids fall into one range of the new catalog, always in the same order; None: no file."""
        return self.read_whole_ones(number, num_ranges, columns)[0]

    def read_whole_ones(self, number: int, num_ranges: int, columns: Sequence[str]) -> tuple[pa.Table | None, int]:
        """As `read`, and how many files were passed over: what is damaged is not copied from night to night.

        Raises:
            DataError: a file cannot be read.
        """
        tables: list[pa.Table] = []
        damaged = 0
        wanted = list(dict.fromkeys(["item_id", *columns]))
        for other in overlapping_ranges(number, num_ranges, len(self.paths)):
            path = self.paths[other]
            if path is None:
                continue
            table = _whole_table(read_bytes(path), self.sha256[other] if self.sha256 else None, wanted)
            if table is None:
                damaged += 1
                continue
            inside_range = ranges_of(hash_ids(table["item_id"].combine_chunks()), num_ranges) == number
            tables.append(table if inside_range.all() else table.filter(pa.array(inside_range)))
        return (pa.concat_tables(tables).combine_chunks() if tables else None), damaged


@dataclass(frozen=True)
class Join:
    """Where the vector of each item of a range comes from.

    Attributes:
        source: int32 (items,), place in the list of earlier rows; −1: it must be encoded.
        source_row: int32 (items,), row within `EarlierRows.read` of that source.
        counts: `reused`, `recovered` (reused from a stopped job), `new`, `changed`, `deleted`, and
            `damaged_files`, files of earlier rows that are not what was written.
    """

    source: NDArray[np.int32]
    source_row: NDArray[np.int32]
    counts: dict[str, int]


def join_range(items: pa.Table, earlier: Sequence[EarlierRows], number: int, num_ranges: int) -> Join:
    """Decide for every item of a range whether its vector is there already.

    Args:
        items: item_id, content_hash, distinct ids.
        earlier: in the order of preference.
    """
    ids, hashes = comparable(items["item_id"].combine_chunks()), items["content_hash"].combine_chunks()
    source = np.full(len(ids), NOT_REUSED, dtype=np.int32)
    source_row = np.full(len(ids), NOT_REUSED, dtype=np.int32)
    known, differs = np.zeros((2, len(ids)), dtype=bool)
    counts = dict.fromkeys(("reused", "recovered", "new", "changed", "deleted", "damaged_files"), 0)
    for place, rows in enumerate(earlier):
        old, damaged = rows.read_whole_ones(number, num_ranges, ["content_hash"])
        counts["damaged_files"] += damaged
        if old is None or not old.num_rows:
            continue
        old_ids = comparable(old["item_id"].combine_chunks())
        where = pc.index_in(ids, old_ids)
        found = where.is_valid().to_numpy(zero_copy_only=False)
        same = pc.fill_null(pc.equal(hashes, old["content_hash"].combine_chunks().take(where)), False)
        taken = found & same.to_numpy(zero_copy_only=False) & (source == NOT_REUSED) & rows.reusable
        source[taken] = place
        source_row[taken] = where.fill_null(NOT_REUSED).to_numpy()[taken]
        counts["reused" if rows.published else "recovered"] += int(taken.sum())
        if rows.published:
            known |= found
            differs |= found & ~same.to_numpy(zero_copy_only=False)
            counts["deleted"] += len(old_ids) - int(found.sum())
    encoded = source == NOT_REUSED
    counts["changed"] = int((encoded & differs).sum())
    counts["new"] = int((encoded & ~known).sum())
    return Join(source, source_row, counts)


def _whole_table(data: bytes, sha256: str | None, columns: list[str]) -> pa.Table | None:
    """Columns of a parquet file; None where its bytes are not what was written."""
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return None
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None


def same_kind(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether ids of two types can be compared: both text, or both whole numbers."""
    return bool(pa.types.is_integer(one) == pa.types.is_integer(other))


def reused_numbers(
    ids: pa.Array,
    hashes: pa.Array,
    joined: Join,
    earlier: Sequence[EarlierRows],
    number: int,
    num_ranges: int,
    numbers: NDArray[np.generic],
) -> None:
    """Fill in the vectors that are reused, as they stand in their files.

    Args:
        ids, hashes: of the unit's items.
        numbers: (items, width); rows that are not reused are left as they are.

    Raises:
        RunError: the earlier rows are not those that were joined.
    """
    for place, rows in enumerate(earlier):
        taken = np.flatnonzero(joined.source == place)
        if not len(taken):
            continue
        old = rows.read(number, num_ranges, ["embedding", "content_hash"])
        if old is None or not _are(ids, hashes, joined, taken, old):
            raise RunError(
                f"{next(path for path in rows.paths if path)}: earlier vectors changed while they were read; is "
                "another job at work there? run the same command again"
            )
        column = old["embedding"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        numbers[taken] = flat[joined.source_row[taken]]


def _are(ids: pa.Array, hashes: pa.Array, joined: Join, taken: NDArray[np.int64], old: pa.Table) -> bool:
    """Whether the rows that a join found are still the items that it found."""
    rows, places = pa.array(joined.source_row[taken]), pa.array(taken)
    if len(taken) and int(joined.source_row[taken].max()) >= old.num_rows:
        return False
    same_ids = comparable(old["item_id"].combine_chunks().take(rows)).equals(comparable(ids.take(places)))
    return bool(same_ids and old["content_hash"].combine_chunks().take(rows).equals(hashes.take(places)))
