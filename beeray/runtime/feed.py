"""A rank's users, step by step, from Ray Data's streaming split.

The split hands every rank the same rows in the same order each epoch (`preserve_order`). Rows are
shuffled here, window by window, by a generator seeded with (seed, epoch, rank, window), so that an
epoch's order is told by those numbers alone: a resumed run skips to where it was and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from beeray.core.user_items import UserItems
from beeray.runtime.steps import steps_per_epoch

WINDOW_USERS = 65536


class RowStream(Protocol):
    """What is used of Ray Data's `DataIterator`."""

    def iter_batches(self, *, batch_size: int, batch_format: str, **kwargs: Any) -> Any:
        """Batches of rows as Arrow tables."""
        ...


class UserFeed:
    """Batches of users of one rank; all ranks yield equally many batches of (almost) equal size.

    Args:
        rows: stream of (user_index, item_indices) rows of this rank.
        num_users: rows of this rank in an epoch, the same on all ranks.
        batch_size: users of a step on this rank.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, rows: RowStream, *, num_users: int, batch_size: int, seed: int, rank: int) -> None:
        self.rows = rows
        self.num_users = num_users
        self.seed = seed
        self.rank = rank
        self.num_steps = steps_per_epoch(num_users, batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[UserItems]:
        """The batches of an epoch, from `first_step` on."""
        boundaries = np.arange(self.num_steps + 1, dtype=np.int64) * self.num_users // self.num_steps
        step, start = 0, 0
        waiting: list[UserItems] = []
        for window in self._windows(epoch):
            waiting.append(window)
            ready = _concatenate(waiting)
            while step < self.num_steps and boundaries[step + 1] - start <= ready.num_users:
                if step >= first_step:
                    yield _slice(ready, int(boundaries[step]) - start, int(boundaries[step + 1]) - start)
                step += 1
            rest = int(boundaries[step]) - start
            waiting, start = [_slice(ready, rest, ready.num_users)], start + rest
        if step < self.num_steps:
            raise RuntimeError(f"rank {self.rank} was given fewer than the {self.num_users} users it was promised")

    def _windows(self, epoch: int) -> Iterator[UserItems]:
        batches = self.rows.iter_batches(batch_size=WINDOW_USERS, batch_format="pyarrow", prefetch_batches=1)
        for number, table in enumerate(batches):
            generator = np.random.default_rng([self.seed, epoch, self.rank, number])
            yield _user_items(table).take(generator.permutation(table.num_rows))


def _user_items(table: pa.Table) -> UserItems:
    column = table.column("item_indices").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy(zero_copy_only=False)
    return UserItems(offsets - offsets[0], values[offsets[0] : offsets[-1]].astype(np.int32, copy=False))


def _slice(users: UserItems, first: int, last: int) -> UserItems:
    indptr = users.indptr[first : last + 1]
    return UserItems(indptr - indptr[0], users.indices[indptr[0] : indptr[-1]])


def _concatenate(parts: list[UserItems]) -> UserItems:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [part.indptr[-1] for part in parts])
    indptr = np.concatenate([[0], *[part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]])
    return UserItems(indptr, np.concatenate([part.indices for part in parts]))
