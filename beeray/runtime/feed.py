"""A rank's users, step by step, from Ray Data's streams.

A run's users are cut into shards when it begins, one for each worker, and stay so. A shard is a stream that has the
same rows in the same order each epoch (`preserve_order`). Rows are shuffled here, window by window, by a generator
seeded with (seed, epoch, shard, window), so that an epoch's order is told by those numbers alone: a resumed run skips
to where it was and goes on. With other workers than it began with, a rank reads several shards, or a part of what one
gives to a step (`runtime.steps.parts_of_rank`), and all ranks together have the users that they would have had.

Several domains are several streams, each shuffled by itself. Every step takes its share of each, so the mix of a step
is that of the epoch, on every rank, wherever in an epoch the step is. A domain's weight says how many of its users an
epoch has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from beeray.core.user_items import UserItems, concatenate_users

WINDOW_USERS = 65536
KEPT_USERS = 32768
"""Of a shard that has no more users of a domain they are kept: Ray Data takes seconds to begin a pass anew."""


class RowStream(Protocol):
    """What is used of Ray Data's `DataIterator`."""

    def iter_batches(self, *, batch_size: int, batch_format: str, **kwargs: Any) -> Any:
        """Batches of rows as Arrow tables."""
        ...


@dataclass(frozen=True)
class UserStream:
    """A shard's users of one domain.

    Attributes:
        rows: stream of (user_index, item_indices) rows.
        num_users: rows in a pass, the same for all shards.
        num_drawn: users of an epoch, the same for all shards: fewer are drawn anew each epoch, more take further
            passes.
        key: tells this domain's draws from another's; nothing where there is one.
        shard: which.
        part: first and last, of how many, of what the shard gives to a step is this rank's: (0, 1, 1) is all.
    """

    rows: RowStream
    num_users: int
    num_drawn: int
    key: tuple[int, ...] = ()
    shard: int = 0
    part: tuple[int, int, int] = (0, 1, 1)

    def mine(self, users: UserItems) -> UserItems:
        """Of a step's users of the shard, this rank's."""
        first, last, of = self.part
        return users.slice(first * users.num_users // of, last * users.num_users // of)


class UserFeed:
    """Batches of users of one rank; all ranks yield equally many batches of (almost) equal size.

    Every batch has each stream's share of users, to within one.

    Args:
        streams: one a domain for each shard that this rank reads.
        num_steps: of an epoch.
        seed: of the run.
    """

    def __init__(self, streams: Sequence[UserStream], *, num_steps: int, seed: int) -> None:
        self.streams = streams
        self.seed = seed
        self.num_steps = num_steps
        self._kept: dict[tuple[int, ...], list[UserItems]] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[UserItems]:
        """The batches of an epoch, from `first_step` on."""
        supplies = [_Supply(stream, self._windows(stream, epoch)) for stream in self.streams]
        for step in range(self.num_steps):
            users = [supply.step(step, self.num_steps) for supply in supplies]
            if step + 1 == self.num_steps:  # before the last batch is given: who has that may not ask for more
                for supply in supplies:
                    supply.drain()
            if step >= first_step:
                yield concatenate_users(users)

    def _windows(self, stream: UserStream, epoch: int) -> Iterator[UserItems]:
        """A stream's users of an epoch, shuffled window by window, pass after pass."""
        for turn, wanted in enumerate(_passes(stream)):
            seen = 0
            for number, window in enumerate(self._read(stream)):
                order = self._generator(stream, epoch, number, turn).permutation(window.num_users)
                first, last = (
                    min(row, stream.num_users) * wanted // stream.num_users for row in (seen, seen + len(order))
                )
                seen += len(order)
                yield window.take(order[: last - first])
            if seen < stream.num_users:
                raise RuntimeError(_too_few(stream))

    def _read(self, stream: UserStream) -> Iterator[UserItems]:
        """One pass over a stream; of a short one the first alone is."""
        key = (stream.shard, *stream.key)
        if key in self._kept:
            yield from self._kept[key]
            return
        windows: list[UserItems] = []
        for table in stream.rows.iter_batches(batch_size=WINDOW_USERS, batch_format="pyarrow", prefetch_batches=1):
            window = _user_items(table)
            yield window
            if stream.num_users <= KEPT_USERS:
                windows.append(window)
        if windows:
            self._kept[key] = windows

    def _generator(self, stream: UserStream, epoch: int, window: int, turn: int) -> np.random.Generator:
        further = [*stream.key, turn] if stream.key else []
        return np.random.default_rng([self.seed, epoch, stream.shard, window, *further])


def _passes(stream: UserStream) -> list[int]:
    """How many users each pass over a stream gives in an epoch."""
    whole, rest = divmod(stream.num_drawn, max(1, stream.num_users))
    return [stream.num_users] * whole + ([rest] if rest else [])


class _Supply:
    """Hands out a stream's users of an epoch, some at a time."""

    def __init__(self, stream: UserStream, windows: Iterator[UserItems]) -> None:
        self.stream = stream
        self.windows = windows
        self.waiting = UserItems(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32))

    def step(self, step: int, num_steps: int) -> UserItems:
        """This rank's users of a step; steps come one after the other."""
        drawn = self.stream.num_drawn
        return self.stream.mine(self._take((step + 1) * drawn // num_steps - step * drawn // num_steps))

    def _take(self, number: int) -> UserItems:
        """The next users."""
        parts = [self.waiting]
        while sum(part.num_users for part in parts) < number:
            window = next(self.windows, None)
            if window is None:
                raise RuntimeError(_too_few(self.stream))
            parts.append(window)
        ready = concatenate_users(parts)
        self.waiting = ready.slice(number, ready.num_users)
        return ready.slice(0, number)

    def drain(self) -> None:
        """Read what is left of the stream: a pass that is read to its end is kept."""
        for _ in self.windows:
            pass


def _too_few(stream: UserStream) -> str:
    return f"shard {stream.shard} has fewer than the {stream.num_users} users that it was promised"


def _user_items(table: pa.Table) -> UserItems:
    column = table.column("item_indices").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy(zero_copy_only=False)
    indices = values[offsets[0] : offsets[-1]].astype(np.int32, copy=False)
    return UserItems(offsets - offsets[0], indices, table["user_index"].to_numpy().astype(np.int32, copy=False))
