"""What a rank sends to the others, counted where the collectives are called and told by formula.

Bytes are those of ring algorithms, which gloo and NCCL use for all but the smallest messages. With `W` ranks, for
`n` bytes a rank:

    all-gather       (W − 1) n              each rank's block travels to all others
    reduce-scatter   (W − 1) n              n: the block that a rank keeps
    all-reduce       2 (W − 1) n / W        a reduce-scatter and an all-gather of blocks of n / W
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

INDEX_BYTES, COUNT_BYTES, NUMBER_BYTES, ROW_BYTES = 4, 8, 8, 4


def all_gather_bytes(num_bytes: int, world_size: int) -> float:
    """Bytes that a rank sends so that all have every rank's `num_bytes`."""
    return float((world_size - 1) * num_bytes)


def reduce_scatter_bytes(num_bytes: int, world_size: int) -> float:
    """Bytes that a rank sends so that each has the sum of its own block of `num_bytes`."""
    return float((world_size - 1) * num_bytes)


def all_reduce_bytes(num_bytes: int, world_size: int) -> float:
    """Bytes that a rank sends so that all have the sum of `num_bytes`."""
    return 2 * (world_size - 1) * num_bytes / world_size


class Traffic:
    """Bytes that this rank has sent, by what they were: `indices`, `embeddings`, `embeddings_gradient`, `numbers`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the next step is planned in a thread of its own
        self._sent: dict[str, float] = defaultdict(float)

    def add(self, kind: str, num_bytes: float) -> None:
        """Count bytes."""
        with self._lock:
            self._sent[kind] += num_bytes

    def take(self) -> dict[str, float]:
        """What was sent since the last call."""
        with self._lock:
            sent, self._sent = dict(self._sent), defaultdict(float)
        return sent


def indices_bytes(longest: int, world_size: int) -> float:
    """Bytes a rank sends so that all know the step's positives and how many users count.

    Args:
        longest: distinct items of the users of the rank that has most.
    """
    counts = all_reduce_bytes(COUNT_BYTES * world_size, world_size)
    return counts + all_gather_bytes(INDEX_BYTES * longest, world_size) + all_reduce_bytes(NUMBER_BYTES, world_size)


def embeddings_bytes(counts: Sequence[int], dim: int) -> float:
    """Bytes a rank sends so that all have every row of E; blocks are as long as the longest.

    Args:
        counts: rows of each rank.
    """
    return all_gather_bytes(ROW_BYTES * max(counts) * dim, len(counts))


def embeddings_gradient_bytes(counts: Sequence[int], dim: int, *, by_all_reduce: bool) -> float:
    """Bytes a rank sends so that each has dLoss/dE of its rows.

    Args:
        counts: rows of each rank.
        by_all_reduce: gloo's way; other backends reduce and scatter in one.
    """
    if by_all_reduce:
        return all_reduce_bytes(ROW_BYTES * sum(counts) * dim, len(counts))
    return reduce_scatter_bytes(ROW_BYTES * max(counts) * dim, len(counts))
