"""A rank's users, step by step, from Ray Data's streaming split.

The split hands every rank the same rows in the same order each epoch (`preserve_order`). Rows are
shuffled here, window by window, by a generator seeded with (seed, epoch, rank, window), so that an
epoch's order is told by those numbers alone: a resumed run skips to where it was and goes on.

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
from beeray.runtime.steps import steps_per_epoch

WINDOW_USERS = 65536
KEPT_USERS = 32768
"""A rank that has no more users of a domain keeps them: Ray Data takes seconds to begin a pass anew."""


class RowStream(Protocol):
    """What is used of Ray Data's `DataIterator`."""

    def iter_batches(self, *, batch_size: int, batch_format: str, **kwargs: Any) -> Any:
        """Batches of rows as Arrow tables."""
        ...


@dataclass(frozen=True)
class UserStream:
    """A rank's users of one domain.

    Attributes:
        rows: stream of (user_index, item_indices) rows.
        num_users: rows of this rank in a pass, the same on all ranks.
        num_drawn: users of an epoch, the same on all ranks: fewer are drawn anew each epoch, more take further passes.
        key: tells this stream's draws from another's; nothing where there is one.
    """

    rows: RowStream
    num_users: int
    num_drawn: int
    key: tuple[int, ...] = ()


class UserFeed:
    """Batches of users of one rank; all ranks yield equally many batches of (almost) equal size.

    Every batch has each stream's share of users, to within one.

    Args:
        streams: one a domain, in the same order on all ranks.
        batch_size: users of a step on this rank.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, streams: Sequence[UserStream], *, batch_size: int, seed: int, rank: int) -> None:
        self.streams = streams
        self.seed = seed
        self.rank = rank
        self._kept: dict[tuple[int, ...], list[UserItems]] = {}
        self.num_steps = steps_per_epoch(sum(stream.num_drawn for stream in streams), batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[UserItems]:
        """The batches of an epoch, from `first_step` on."""
        supplies = [_Supply(stream, self._windows(stream, epoch), self.rank) for stream in self.streams]
        for step in range(self.num_steps):
            users = [
                supply.take((step + 1) * drawn // self.num_steps - step * drawn // self.num_steps)
                for supply, drawn in zip(supplies, [stream.num_drawn for stream in self.streams], strict=True)
            ]
            if step >= first_step:
                yield concatenate_users(users)
        for supply in supplies:
            supply.drain()

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
                raise RuntimeError(
                    f"rank {self.rank} was given fewer than the {stream.num_users} users it was promised"
                )

    def _read(self, stream: UserStream) -> Iterator[UserItems]:
        """One pass over a stream, which all ranks begin together; of a short one the first alone is."""
        if stream.key in self._kept:
            yield from self._kept[stream.key]
            return
        windows: list[UserItems] = []
        for table in stream.rows.iter_batches(batch_size=WINDOW_USERS, batch_format="pyarrow", prefetch_batches=1):
            window = _user_items(table)
            yield window
            if stream.num_users <= KEPT_USERS:  # as was promised, so that no rank begins a pass without the others
                windows.append(window)
        if windows:
            self._kept[stream.key] = windows

    def _generator(self, stream: UserStream, epoch: int, window: int, turn: int) -> np.random.Generator:
        further = [*stream.key, turn] if stream.key else []
        return np.random.default_rng([self.seed, epoch, self.rank, window, *further])


def _passes(stream: UserStream) -> list[int]:
    """How many users each pass over a stream gives in an epoch."""
    whole, rest = divmod(stream.num_drawn, max(1, stream.num_users))
    return [stream.num_users] * whole + ([rest] if rest else [])


class _Supply:
    """Hands out a stream's users of an epoch, some at a time."""

    def __init__(self, stream: UserStream, windows: Iterator[UserItems], rank: int) -> None:
        self.windows = windows
        self.waiting = UserItems(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32))
        self.promised = f"rank {rank} was given fewer than the {stream.num_users} users it was promised"

    def take(self, number: int) -> UserItems:
        """The next users."""
        parts = [self.waiting]
        while sum(part.num_users for part in parts) < number:
            window = next(self.windows, None)
            if window is None:
                raise RuntimeError(self.promised)
            parts.append(window)
        ready = concatenate_users(parts)
        self.waiting = _slice(ready, number, ready.num_users)
        return _slice(ready, 0, number)

    def drain(self) -> None:
        """Read what is left of the stream, which nobody was promised: the next pass begins for all ranks at once."""
        for _ in self.windows:
            pass


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
