"""Interactions of any size, seeded: users × items with heavy tails, values and timestamps, streamed to files.

What is alike and what is not: activity of users and popularity of items are as uneven as in MovieLens 20M, values
are its own, pairs are distinct. Who takes what hangs on popularity alone: there is nothing to learn in it.

    python -m beeray.data.generated_interactions --users 138493 --items 26744 --interactions 20000263 --out FOLDER

Rows stand user by user, as in MovieLens' own files. Blocks of users are seeded by their number, so the rows do not
depend on how many files they are written to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beeray.config.paths import in_working_folder
from beeray.console import EXIT_USER_ERROR, Console
from beeray.data.generated_catalog import item_ids
from beeray.data.storage import join, list_files, make_dir, resolve
from beeray.errors import BeerayError, DataError

FORMATS = ("parquet", "csv")
BLOCK_ROWS = 1 << 18
ROW_GROUP_ROWS = 1 << 20
VALUES = np.arange(1, 11) / 2
VALUE_SHARES = np.array([239125, 680732, 279252, 1430997, 883398, 4291193, 2200156, 5561926, 1534824, 2898660])
"""How often each of `VALUES` was given in MovieLens 20M."""
LEAST_ACTIVITY = 20 / 144.4
"""Interactions of the least active user, in means: 20 of 144.4 in MovieLens 20M."""
ACTIVITY_SIGMA = 1.38
POPULARITY_EXPONENT, POPULARITY_OFFSET = 1.6, 0.004
FIRST_TIME, LAST_TIME = 789_652_009, 1_427_784_002
"""Seconds: January 1995 and March 2015."""
MEAN_STAY_S = 30 * 86_400
POPULAR_ROUNDS = 5
ACTIVITY_STREAM, POPULARITY_STREAM, BLOCK_STREAM = 1, 2, 3
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class GeneratedInteractions:
    """Interactions: columns `user_id`, `item_id`, `value` (0.5 to 5.0), `timestamp` (int64 seconds).

    Nothing is made before it is asked for; what is held is 8 bytes a user, 16 an item and a block of rows.

    Args:
        num_users, num_items: who and what there is; ids are 0 and up. Every user has an interaction, items may have
            none.
        num_interactions: rows, distinct pairs; at least one a user, at most a quarter of all pairs.
        seed: another seed gives other rows.
        item_names: item ids are those of `GeneratedCatalog`, not integers.

    Raises:
        DataError: a value out of its range.
    """

    num_users: int
    num_items: int
    num_interactions: int
    seed: int = 0
    item_names: bool = False

    def __post_init__(self) -> None:
        limits = {"num_users": (1, 10**9), "num_items": (8, 10**9), "seed": (0, 10**9)}
        limits["num_interactions"] = (self.num_users, self.num_users * self.num_items // 4)
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise DataError(f"generated interactions: {field} is {value}; it must be from {low} to {high:,}")

    @cached_property
    def activity(self) -> I64:
        """Interactions of every user, int64 (users,): log-normal above a least number, up to a third of the items."""
        mean, most = self.num_interactions / self.num_users, max(1, self.num_items // 3)
        least = max(1, int(mean * LEAST_ACTIVITY))
        tail = np.random.default_rng([self.seed, ACTIVITY_STREAM]).lognormal(sigma=ACTIVITY_SIGMA, size=self.num_users)
        low, high = 0.0, most / float(tail.min())
        for _ in range(60):  # by bisection: the cap takes from the tail what the scale has to make up for
            scale = (low + high) / 2
            enough = np.minimum(least + tail * scale, most).sum() >= self.num_interactions
            low, high = (low, scale) if enough else (scale, high)
        wanted = np.minimum(least + tail * high, most)
        counts = np.floor(wanted).astype(np.int64)
        missing = self.num_interactions - int(counts.sum())
        nearest = np.argsort(counts - wanted, kind="stable")
        counts[nearest[:missing]] += 1
        return counts

    def batches(self) -> Iterator[pa.Table]:
        """All rows, as tables of whole users of some `BLOCK_ROWS` rows each."""
        for block in range(len(self._blocks) - 1):
            yield self._block(block)

    def write(self, folder: str | Path, file_format: str = "parquet", num_files: int = 1) -> int:
        """Write `part-*.parquet` (zstd, row groups of `ROW_GROUP_ROWS`) or `part-*.csv`; returns the bytes written.

        Args:
            folder: local or a URI; new or empty.
            num_files: parts; those for which no block is left are not written.

        Raises:
            DataError: the folder holds files, an unknown format, or `num_files` below 1.
        """
        folder = str(folder)
        if file_format not in FORMATS or num_files < 1:
            raise DataError(
                f"generated interactions: {num_files} files of format {file_format!r}; at least 1 of {FORMATS}"
            )
        if list_files(folder, may_be_empty=True):
            raise DataError(f"{folder}: interactions are written to an empty folder only; remove it or give another")
        make_dir(folder)
        num_blocks = len(self._blocks) - 1
        for part in range(num_files):
            blocks = range(num_blocks * part // num_files, num_blocks * (part + 1) // num_files)
            if blocks:
                self._write_part(join(folder, f"part-{part:05d}.{file_format}"), file_format, blocks)
        return sum(file.size for file in list_files(folder))

    def _write_part(self, path: str, file_format: str, blocks: range) -> None:
        filesystem, inside = resolve(path)
        schema = self._block(blocks[0]).schema
        with filesystem.open_output_stream(inside) as stream:
            if file_format == "csv":
                with pyarrow.csv.CSVWriter(stream, schema) as writer:
                    for block in blocks:
                        writer.write_table(self._block(block))
                return
            with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
                waiting: list[pa.Table] = []
                for block in blocks:
                    waiting.append(self._block(block))
                    if sum(map(len, waiting)) >= ROW_GROUP_ROWS or block == blocks[-1]:
                        writer.write_table(pa.concat_tables(waiting), row_group_size=2 * ROW_GROUP_ROWS)
                        waiting.clear()

    @cached_property
    def _blocks(self) -> I64:
        """First user of each block, and the number of users at the end."""
        ends = np.cumsum(self.activity)
        cuts = np.searchsorted(ends, np.arange(BLOCK_ROWS, self.num_interactions, BLOCK_ROWS)) + 1
        return np.unique(np.concatenate([[0], cuts, [self.num_users]]))

    @cached_property
    def _popularity(self) -> tuple[NDArray[np.float64], I64]:
        """Cumulative probability by rank (Zipf-Mandelbrot), and the item of each rank."""
        ranks = np.arange(self.num_items) + self.num_items * POPULARITY_OFFSET + 1
        cumulative = np.cumsum(ranks**-POPULARITY_EXPONENT)
        items = np.random.default_rng([self.seed, POPULARITY_STREAM]).permutation(self.num_items)
        return cumulative / cumulative[-1], items

    def _block(self, number: int) -> pa.Table:
        first, stop = self._blocks[number : number + 2]
        counts = self.activity[first:stop]
        generator = np.random.default_rng([self.seed, BLOCK_STREAM, number])
        items = self._distinct_items(counts, generator)
        shares = VALUE_SHARES / VALUE_SHARES.sum()
        values = VALUES[np.minimum(np.searchsorted(np.cumsum(shares), generator.random(len(items))), len(VALUES) - 1)]
        arrivals = generator.integers(FIRST_TIME, LAST_TIME, len(counts))
        stays = generator.exponential(MEAN_STAY_S, len(items)).astype(np.int64)
        columns = {
            "user_id": np.repeat(np.arange(first, stop), counts),
            "item_id": item_ids(items) if self.item_names else items,
            "value": values,
            "timestamp": np.repeat(arrivals, counts) + stays,
        }
        return pa.table(columns)

    def _distinct_items(self, counts: I64, generator: np.random.Generator) -> I64:
        """So many distinct items for each user, by popularity, in ascending order; flat.

        What was drawn twice is drawn again; the few users who still lack items after some rounds, having most of the
        popular ones, are filled up uniformly.
        """
        cumulative, items = self._popularity
        open_keys, finished, rounds = np.empty(0, dtype=np.int64), [np.empty(0, dtype=np.int64)], 0
        missing = counts
        while missing.any():
            users = np.flatnonzero(missing)
            points = generator.random(int(missing.sum()))
            uniform = rounds >= POPULAR_ROUNDS
            ranks = (points * self.num_items).astype(np.int64) if uniform else np.searchsorted(cumulative, points)
            drawn = np.repeat(users, missing[users]) * self.num_items + items[ranks]
            open_keys = np.unique(np.concatenate([open_keys, drawn]))
            owners = open_keys // self.num_items
            missing = np.where(missing > 0, counts - np.bincount(owners, minlength=len(counts)), 0)
            whole = missing[owners] == 0
            finished.append(open_keys[whole])
            open_keys, rounds = open_keys[~whole], rounds + 1
        keys = np.sort(np.concatenate(finished))
        return keys % self.num_items


def main(argv: Sequence[str] | None = None) -> int:
    """The command: write interactions, print what was written as one line of JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m beeray.data.generated_interactions", description="Write generated interactions."
    )
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--interactions", type=int, required=True)
    parser.add_argument("--out", required=True, type=in_working_folder, help="new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, default="parquet")
    parser.add_argument("--files", type=int, default=1, help="parts (default: 1)")
    parser.add_argument("--item-names", action="store_true", help="item ids of a generated catalog, not integers")
    arguments = parser.parse_args(argv)
    console, started = Console(), time.monotonic()
    sizes: dict[str, Any] = {
        "num_users": arguments.users,
        "num_items": arguments.items,
        "num_interactions": arguments.interactions,
    }
    try:
        made = GeneratedInteractions(**sizes, seed=arguments.seed, item_names=arguments.item_names)
        size = made.write(arguments.out, arguments.format, arguments.files)
        console.result(
            {"folder": arguments.out, **sizes, "bytes": size, "seconds": round(time.monotonic() - started, 1)}
        )
    except BeerayError as error:
        console.line(f"beeray.data.generated_interactions: {error}")
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
