"""A generated catalog of millions of items with night after night of changes, for tests and benchmarks.

It stands in for a warehouse's catalog where size matters and meaning does not: the nightly job, readers,
writers, memory. (`data/sources/shop.py` is the small one whose texts mean something.) What a row holds follows
from its place alone, so neither the batch size nor the number of files changes a byte of it. How texts are made,
and what their lengths were fitted on, is told in `data/generated_texts.py`. One core writes a million items of
full length in ten seconds, with half a gigabyte of memory.

*Nights.* Night 0 is the catalog. Of the `N` items of a night, by the next one `changed * N` have another
description, `deleted * N` others are gone, and `added * N` new ones stand at the end; each rounded to the
nearest whole number, halves up. The rest keeps its bytes and its order. No night needs those before it on disk.

*Bad rows.* `bad` rows more, scattered by seed, break the data contract in the ways of `BAD_KINDS`, in turn.
Without them the same night with `bad=0` is left. Their own ids count down from `item-9999999999`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beeray.config.paths import in_working_folder
from beeray.console import EXIT_USER_ERROR, Console
from beeray.data.generated_texts import I64, MIN_MEAN_TOKENS, make_texts
from beeray.data.storage import join, list_files, make_dir, resolve, write_json
from beeray.errors import BeerayError, DataError

SCHEMA = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("description", pa.string())])
BAD_KINDS = ("null_text", "blank_text", "huge_text", "invalid_utf8", "null_id", "repeated_id")
"""null title and description; both empty or white space; a description of `HUGE_BYTES`; one with bytes that are no
UTF-8; no item_id; the id of an item further up, with another description."""
HUGE_BYTES = 1 << 20
BATCH_ROWS, ROW_GROUP_ROWS, BATCH_BYTES = 65_536, 4096, 64 << 20
COUNTS = "_counts.json"
MAX_ITEM, ID_PREFIX, ID_DIGITS = 10**10 - 1, b"item-", 10
NIGHTS_STREAM, BAD_STREAM = 2, 3


@dataclass(frozen=True)
class CatalogCounts:
    """What a catalog holds.

    Attributes:
        num_rows: rows in all: items and bad rows.
        num_items: items.
        num_changed: of these, items with another description than the night before (0 on night 0, as the next two).
        num_deleted: items of the night before that are gone.
        num_added: items that are new.
        num_bad: bad rows of each kind of `BAD_KINDS`.
    """

    num_rows: int
    num_items: int
    num_changed: int
    num_deleted: int
    num_added: int
    num_bad: dict[str, int]


@dataclass(frozen=True)
class CatalogDifference:
    """Item ids, string arrays in ascending order, by which a night differs from the night before."""

    changed: pa.StringArray
    deleted: pa.StringArray
    added: pa.StringArray


@dataclass(frozen=True)
class GeneratedCatalog:
    """A catalog on one night: columns `item_id`, `title`, `description`, all string.

    Nothing is made before it is asked for. What is held is 12 bytes an item and 25 MB of clauses; texts are streamed.

    Args:
        num_items: items on night 0, 1 to 10**9.
        seed: another seed gives other words, texts and choices.
        night: how many nights later.
        changed: share of the items that a night gives another description, 0 to 1.
        deleted: share that a night takes away; at most `1 - changed`.
        added: share that a night adds, 0 to 1.
        bad: bad rows, beside the items.
        mean_tokens: mean WordPieces of "{title}. {description}", special tokens included; 16 or more.

    Raises:
        DataError: a value out of its range.
    """

    num_items: int
    seed: int = 0
    night: int = 0
    changed: float = 0.01
    deleted: float = 0.0
    added: float = 0.0
    bad: int = 0
    mean_tokens: float = 134.0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {"num_items": (1, 10**9), "mean_tokens": (MIN_MEAN_TOKENS, 10_000)}
        limits |= dict.fromkeys(("seed", "night", "bad"), (0, 10**9))
        limits |= dict.fromkeys(("changed", "deleted", "added"), (0, 1))
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise DataError(f"generated catalog: {field} is {value}; it must be from {low} to {high:,}")
        if Fraction(str(self.changed)) + Fraction(str(self.deleted)) > 1:
            raise DataError(
                f"generated catalog: changed is {self.changed} and deleted {self.deleted}; no item is both, so their "
                "sum must be at most 1"
            )

    @property
    def counts(self) -> CatalogCounts:
        """How many rows there are of what; known without making any text."""
        night, kinds = self._night, np.bincount(self._bad.kinds, minlength=len(BAD_KINDS)).tolist()
        return CatalogCounts(
            num_rows=len(night.numbers) + self.bad,
            num_items=len(night.numbers),
            num_changed=len(night.changed),
            num_deleted=len(night.deleted),
            num_added=len(night.added),
            num_bad=dict(zip(BAD_KINDS, kinds, strict=True)),
        )

    def difference(self) -> CatalogDifference:
        """Which items the last night changed, deleted and added; nothing on night 0."""
        night = self._night
        return CatalogDifference(*(item_ids(np.sort(ids)) for ids in (night.changed, night.deleted, night.added)))

    def batches(self, rows: int = BATCH_ROWS, *, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """The catalog, or its rows from `start` to before `stop`, as tables of `rows` rows (the last may have fewer).

        A table must stay below 2 GiB of text: 3,000,000 rows of the default length, 2,000 of `huge_text`.

        Raises:
            DataError: `rows` is below 1, or `night` leaves no item.
        """
        if rows < 1:
            raise DataError(f"generated catalog: rows of a batch is {rows}; it must be at least 1")
        stop = len(self._night.numbers) + self.bad if stop is None else stop
        for first in range(start, stop, rows):
            yield self._rows(first, min(first + rows, stop))

    def write(self, folder: str | Path, num_files: int = 16) -> CatalogCounts:
        """Write `part-*.parquet` (zstd, row groups of `ROW_GROUP_ROWS`) of equally many rows, and `_counts.json`.

        Args:
            folder: local or a URI; new or empty. Readers of tables pass over `_counts.json`, which is written last.
            num_files: parts; those for which no rows are left hold none.

        Raises:
            DataError: the folder holds files, or `num_files` is below 1.
        """
        folder = str(folder)
        if num_files < 1:
            raise DataError(f"generated catalog: num_files is {num_files}; it must be at least 1")
        if list_files(folder, may_be_empty=True):
            raise DataError(f"{folder}: a catalog is written to an empty folder only; remove it or give another")
        counts = self.counts
        make_dir(folder)
        bounds = [counts.num_rows * part // num_files for part in range(num_files + 1)]
        row_bytes = 4.7 * self.mean_tokens + counts.num_bad["huge_text"] * HUGE_BYTES / counts.num_rows
        rows = max(1, min(BATCH_ROWS, int(BATCH_BYTES / row_bytes)) // ROW_GROUP_ROWS) * ROW_GROUP_ROWS
        for part in range(num_files):
            filesystem, path = resolve(join(folder, f"part-{part:05d}.parquet"))
            # Statistics of texts would put whole texts, the huge one too, into every footer.
            options = {"compression": "zstd", "use_dictionary": False, "write_statistics": ["item_id"]}
            with pq.ParquetWriter(path, SCHEMA, filesystem=filesystem, **options) as writer:
                for table in self.batches(rows, start=bounds[part], stop=bounds[part + 1]):
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        write_json(join(folder, COUNTS), asdict(counts))
        return counts

    @cached_property
    def _night(self) -> _Night:
        """The nights replayed on item numbers alone."""
        none = np.empty(0, dtype=np.int64)
        numbers, versions, made = np.arange(self.num_items), np.zeros(self.num_items, dtype=np.uint32), self.num_items
        changed = deleted = added = none
        for night in range(1, self.night + 1):
            num = len(numbers)
            num_changed, num_deleted, num_added = (_part(s, num) for s in (self.changed, self.deleted, self.added))
            num_deleted = min(num_deleted, num - num_changed)  # both may have been rounded up
            rng = np.random.default_rng([self.seed, NIGHTS_STREAM, night])
            chosen = rng.choice(num, num_changed + num_deleted, replace=False)
            versions[chosen[:num_changed]] += 1
            changed, deleted = numbers[chosen[:num_changed]], numbers[chosen[num_changed:]]
            added = np.arange(made, made + num_added)
            made += num_added
            numbers = np.concatenate([np.delete(numbers, chosen[num_changed:]), added])
            versions = np.concatenate([np.delete(versions, chosen[num_changed:]), np.zeros(num_added, dtype=np.uint32)])
            if not len(numbers) or made + self.bad > MAX_ITEM:
                raise DataError(
                    f"generated catalog: night {night} has {len(numbers)} items after {made} in all; ids are enough "
                    f"for {MAX_ITEM}, and one item must be left: take fewer nights, or other shares"
                )
        return _Night(numbers, versions, changed, deleted, added)

    @cached_property
    def _bad(self) -> _BadRows:
        """Row 0 is never bad, so that every bad row has an item above it."""
        num_rows = len(self._night.numbers) + self.bad
        rng = np.random.default_rng([self.seed, BAD_STREAM])
        kinds, sources = rng.permutation(self.bad) % len(BAD_KINDS), rng.random(self.bad)
        places = 1 + np.sort(rng.choice(num_rows - 1, self.bad, replace=False))
        return _BadRows(places, kinds, ((places - np.arange(self.bad)) * sources).astype(np.int64))

    def _rows(self, start: int, stop: int) -> pa.Table:
        first, last = np.searchsorted(self._bad.places, [start, stop]).tolist()
        good = slice(start - first, stop - last)
        numbers = self._night.numbers[good]
        items = self._table(numbers, self._night.versions[good])
        if first == last:
            return items
        is_bad = np.zeros(stop - start, dtype=bool)
        is_bad[self._bad.places[first:last] - start] = True
        order = np.where(is_bad, len(numbers) + np.cumsum(is_bad), np.cumsum(~is_bad)) - 1
        return pa.concat_tables([items, self._bad_table(first, last)]).combine_chunks().take(pa.array(order))

    def _bad_table(self, first: int, last: int) -> pa.Table:
        kinds, sources = (column[first:last] for column in (self._bad.kinds, self._bad.sources))
        repeats = kinds == BAD_KINDS.index("repeated_id")
        numbers = np.where(repeats, self._night.numbers[sources], MAX_ITEM - np.arange(first, last))
        table = self._table(numbers, np.where(repeats, self._night.versions[sources] + 1, 0).astype(np.uint32))
        rows = (_spoil(BAD_KINDS[kind], row) for kind, row in zip(kinds, table.to_pylist(), strict=True))
        columns = [pa.array(column, pa.binary()).view(pa.string()) for column in zip(*rows, strict=True)]
        return pa.table(columns, schema=SCHEMA)

    def _table(self, numbers: I64, versions: NDArray[np.uint32]) -> pa.Table:
        """The given items with their texts."""
        if not len(numbers):
            return SCHEMA.empty_table()
        titles, descriptions = make_texts(self.seed, self.mean_tokens, numbers, versions)
        return pa.table([item_ids(numbers), titles, descriptions], schema=SCHEMA)


@dataclass(frozen=True)
class _Night:
    """Item numbers (int64) and how often each has changed; below, the numbers that the last night touched."""

    numbers: I64
    versions: NDArray[np.uint32]
    changed: I64
    deleted: I64
    added: I64


@dataclass(frozen=True)
class _BadRows:
    """Row number, kind, and place of the item whose id is repeated, of every bad row; int64 (bad,)."""

    places: I64
    kinds: I64
    sources: I64


def item_ids(numbers: I64) -> pa.StringArray:
    """`item-0000000042` of each item number."""
    width = len(ID_PREFIX) + ID_DIGITS
    letters = np.empty((len(numbers), width), dtype=np.uint8)
    letters[:, : len(ID_PREFIX)] = np.frombuffer(ID_PREFIX, dtype=np.uint8)
    rest = numbers
    for column in range(width - 1, len(ID_PREFIX) - 1, -1):
        rest, digits = np.divmod(rest, 10)
        letters[:, column] = digits + ord("0")
    offsets = np.arange(0, letters.size + 1, width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(letters))


def _part(share: float, whole: int) -> int:
    """Share of a whole, to the nearest number and halves up, of the decimal as it was written (0.29 is 29/100)."""
    return math.floor(Fraction(str(share)) * whole + Fraction(1, 2))


def _spoil(kind: str, row: dict[str, str]) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Id, title and description of a good row, made bad."""
    item_id, title, description = (value.encode() for value in row.values())
    if kind == "null_text":
        return item_id, None, None
    if kind == "blank_text":
        return item_id, b"", b"" if len(description) % 2 else b" \n\t "
    if kind == "huge_text":
        long = (description + b" ") * (HUGE_BYTES // (len(description) + 1))
        return item_id, title, long.ljust(HUGE_BYTES, b".")
    if kind == "invalid_utf8":
        return item_id, title, description + b" It is called caf\xe9 \xff\xfe and \xe2\x82."
    return (None if kind == "null_id" else item_id), title, description


def main(argv: Sequence[str] | None = None) -> int:
    """The command: write a catalog, print its counts as one line of JSON; returns the exit code (2: a user's error)."""
    parser = argparse.ArgumentParser(
        prog="python -m beeray.data.generated_catalog", description="Write a generated catalog as parquet files."
    )
    parser.add_argument("--items", type=int, required=True, help="items on night 0")
    parser.add_argument("--out", required=True, type=in_working_folder, help="new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--night", type=int, default=0, help="how many nights later (default: 0)")
    parser.add_argument("--changed", type=float, default=0.01, help="share of items a night changes (default: 0.01)")
    parser.add_argument("--deleted", type=float, default=0.0, help="share of items a night deletes (default: 0)")
    parser.add_argument("--added", type=float, default=0.0, help="share of items a night adds (default: 0)")
    parser.add_argument("--files", type=int, default=16, help="parts (default: 16)")
    parser.add_argument("--bad", type=int, default=0, help="bad rows beside the items (default: 0)")
    parser.add_argument("--mean-tokens", type=float, default=134.0, help="mean length of a text (default: 134)")
    arguments: dict[str, Any] = vars(parser.parse_args(argv))
    folder, num_files, num_items = (arguments.pop(name) for name in ("out", "files", "items"))
    console, started = Console(), time.monotonic()
    try:
        counts = GeneratedCatalog(num_items, **arguments).write(folder, num_files)
        console.result({"folder": folder, **asdict(counts), "seconds": round(time.monotonic() - started, 1)})
    except BeerayError as error:
        console.line(f"beeray.data.generated_catalog: {error}")
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
