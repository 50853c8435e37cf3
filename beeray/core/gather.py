"""What crosses ranks: item indices, the rows of E and their gradient, and a head's weights. Nothing else.

All functions are collective: every rank of the group must call them, in the same order. Without an
initialised process group they are the identity. `traffic` counts what they send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.traffic import Traffic, all_gather_bytes, all_reduce_bytes, reduce_scatter_bytes

ROWS_AT_ONCE = 16_384
traffic = Traffic()
"""What this process has sent to other ranks."""


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), rows.shape[1]))
        padded[: len(rows)] = rows
        gathered = rows.new_empty((len(counts) * max(counts), rows.shape[1]))
        dist.all_gather_into_tensor(gathered, padded)
        traffic.add("embeddings", all_gather_bytes(padded.nbytes, len(counts)))
        blocks = gathered.view(len(counts), max(counts), -1)
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        counts, mine = ctx.counts, rank()
        gradient = gradients[0].contiguous()
        if dist.get_backend() == "gloo":  # its reduce-scatter is an all-reduce inside, and needs equal shards
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            traffic.add("embeddings_gradient", all_reduce_bytes(gradient.nbytes, len(counts)))
            start = sum(counts[:mine])
            return gradient[start : start + counts[mine]], None
        padded = gradient.new_zeros((len(counts), max(counts), gradient.shape[1]))
        for block, piece in zip(padded, gradient.split(counts), strict=True):
            block[: len(piece)] = piece
        reduced = gradient.new_empty((max(counts), gradient.shape[1]))
        dist.reduce_scatter_tensor(reduced, padded.view(-1, gradient.shape[1]))
        traffic.add("embeddings_gradient", reduce_scatter_bytes(reduced.nbytes, len(counts)))
        return reduced[: counts[mine]], None


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Differentiable all-gather of every rank's rows, in rank order.

    Forward is an all-gather; backward a reduce-scatter, so that each rank receives the *sum* over
    ranks of the loss's gradient with respect to its own rows. Every rank must call.

    Args:
        rows: (counts[rank], d), this rank's rows.
        counts: rows of every rank.

    Returns:
        (sum(counts), d).
    """
    assert rows.shape[0] == counts[rank()], (rows.shape, counts, rank())
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows, tuple(counts))


def gather_into(result: Tensor, rows: Tensor, counts: Sequence[int], order: NDArray[np.int64]) -> None:
    """Put every rank's rows into their places of `result`, block by block; no gradient. Every rank must call.

    Args:
        result: (sum(counts), d), filled alike on every rank.
        rows: (counts[rank], d), this rank's rows.
        counts: rows of every rank.
        order: int64 (sum(counts),), place of every row, rank by rank.
    """
    places = torch.from_numpy(order).to(result.device).split(list(counts))
    for start in range(0, max(counts), ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, max(counts) - start)
        block = rows.new_zeros((size, rows.shape[1]))
        mine = rows[start : start + size]
        block[: len(mine)] = mine
        gathered = rows.new_empty((len(counts) * size, rows.shape[1]))
        if world_size() == 1:
            gathered = block
        else:
            dist.all_gather_into_tensor(gathered, block)
            traffic.add("catalog", all_gather_bytes(block.nbytes, world_size()))
        for one, theirs in zip(places, gathered.split(size), strict=True):
            here = one[start : start + size]
            result[here] = theirs[: len(here)]


def gather_union(
    indices: NDArray[np.int32], device: torch.device | str, group: dist.ProcessGroup | None = None
) -> NDArray[np.int32]:
    """Sorted distinct indices over all ranks. Every rank must call.

    Args:
        device: where the group's backend wants its tensors.
        group: the default one unless given.
    """
    local = np.unique(indices)
    ranks = world_size()
    if ranks == 1:
        return local
    counts = torch.zeros(ranks, dtype=torch.int64, device=device)
    counts[rank()] = len(local)
    dist.all_reduce(counts, group=group)
    longest = int(counts.max())
    padded = torch.full((longest,), -1, dtype=torch.int32, device=device)
    padded[: len(local)] = torch.from_numpy(local.astype(np.int32)).to(device)
    gathered = torch.empty(ranks * longest, dtype=torch.int32, device=device)
    dist.all_gather_into_tensor(gathered, padded, group=group)
    traffic.add("indices", all_reduce_bytes(counts.nbytes, ranks) + all_gather_bytes(padded.nbytes, ranks))
    union = np.unique(gathered.cpu().numpy())
    return union[union >= 0]


def sum_over_ranks(
    values: Sequence[float],
    device: torch.device | str,
    group: dist.ProcessGroup | None = None,
    *,
    kind: str = "numbers",
) -> list[float]:
    """Element-wise sum over ranks. Every rank must call.

    Args:
        device, group: as `gather_union`.
        kind: what `traffic` counts it as.
    """
    if world_size() == 1:
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=group)
    traffic.add(kind, all_reduce_bytes(total.nbytes, world_size()))
    return [float(value) for value in total.tolist()]


def sum_counts_over_ranks(counts: NDArray[np.int32], device: torch.device | str) -> NDArray[np.int32]:
    """Element-wise sum of an array of counts over ranks. Every rank must call."""
    if world_size() == 1:
        return counts
    total = torch.from_numpy(counts).to(device)
    dist.all_reduce(total)
    traffic.add("numbers", all_reduce_bytes(total.nbytes, world_size()))
    return total.cpu().numpy()


def largest_over_ranks(value: float, device: torch.device | str) -> float:
    """Largest value over ranks. Every rank must call."""
    if world_size() == 1:
        return float(value)
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    traffic.add("numbers", all_reduce_bytes(largest.nbytes, world_size()))
    return float(largest)


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace gradients by their mean over ranks, in one message. Every rank must call."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def copy_from_first_rank(tensor: Tensor) -> None:
    """Overwrite a tensor by rank 0's. Every rank must call."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
