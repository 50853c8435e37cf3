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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

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


def weights_bytes(num_parameters: int, world_size: int, stage: int, num_with_gradient: int | None = None) -> float:
    """Bytes a rank sends for gradients and weights in DeepSpeed's step (0.19.8), all of them fp32.

    Stages 0 to 2 all-reduce the gradient once. Stages 1 and 2 then all-reduce its norm, one number, and all-gather
    the weights that each rank has updated.

    Args:
        num_with_gradient: parameters that the loss depends on, all unless given; stage 0 sends zeros for the others.
    """
    assert stage in (0, 1, 2), stage
    if stage == 0:
        return all_reduce_bytes(ROW_BYTES * num_parameters, world_size)
    in_gradient = num_parameters if num_with_gradient is None else num_with_gradient
    reduced = all_reduce_bytes(ROW_BYTES * in_gradient, world_size) + all_reduce_bytes(NUMBER_BYTES, world_size)
    return reduced + all_gather_bytes(ROW_BYTES * num_parameters, world_size) / world_size


@contextmanager
def counted_collectives() -> Iterator[Traffic]:
    """Count every collective of `torch.distributed` by its name, whoever calls it, while the context is open.

    For measuring: DeepSpeed's collectives come this way, too, if the context is opened before DeepSpeed is set up.
    """
    counted = Traffic()
    originals = {name: getattr(dist, name) for name in _BYTES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            ranks = dist.get_world_size(keywords.get("group"))
            if ranks > 1:
                counted.add(name, _BYTES[name](arguments, keywords, ranks))
            return originals[name](*arguments, **keywords)

        return call

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield counted
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _sized(arguments: tuple[Any, ...], keywords: dict[str, Any], place: int, name: str) -> int:
    tensors = arguments[place] if len(arguments) > place else keywords[name]
    return sum(one.nbytes for one in ([tensors] if isinstance(tensors, Tensor) else tensors))


_BYTES: dict[str, Callable[[tuple[Any, ...], dict[str, Any], int], float]] = {
    "all_reduce": lambda args, kw, ranks: all_reduce_bytes(_sized(args, kw, 0, "tensor"), ranks),
    "all_gather_into_tensor": lambda args, kw, ranks: all_gather_bytes(_sized(args, kw, 1, "input_tensor"), ranks),
    "all_gather": lambda args, kw, ranks: all_gather_bytes(_sized(args, kw, 1, "tensor"), ranks),
    "reduce_scatter_tensor": lambda args, kw, ranks: reduce_scatter_bytes(_sized(args, kw, 0, "output"), ranks),
    "reduce_scatter": lambda args, kw, ranks: reduce_scatter_bytes(_sized(args, kw, 0, "output"), ranks),
    # to one rank and from one: each rank's mean, since the root of a ring sends nothing or receives nothing
    "reduce": lambda args, kw, ranks: (ranks - 1) / ranks * _sized(args, kw, 0, "tensor"),
    "broadcast": lambda args, kw, ranks: (ranks - 1) / ranks * _sized(args, kw, 0, "tensor"),
}
