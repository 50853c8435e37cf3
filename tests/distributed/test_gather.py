"""What crosses ranks, on real gloo groups of two and three processes, against one process that holds all rows."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from beeray.core import gather

DIM = 3
COUNTS = {2: [[2, 5], [0, 3], [4, 4]], 3: [[3, 1, 4], [0, 2, 0], [2, 2, 2]]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(world_size: int, body: Callable[[int, int], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `body(rank, world_size)` returns on each rank of a new gloo group."""
    mp.spawn(_rank_main, args=(world_size, free_port(), body, str(folder)), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank_main(rank: int, world_size: int, port: int, body: Callable[[int, int], dict[str, Any]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.save(body(rank, world_size), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def all_rows(counts: list[int]) -> list[Tensor]:
    """Rows of every rank; the same in every process."""
    generator = torch.Generator().manual_seed(sum(counts))
    return [torch.randn(count, DIM, generator=generator, dtype=torch.float64) for count in counts]


def loss_of_rank(rank: int, rows: Tensor) -> Tensor:
    """Another loss on each rank, with every row in a product with every other."""
    weights = torch.linspace(1.0, 2.0, rows.numel(), dtype=rows.dtype).view_as(rows)
    return (rank + 1) * ((rows * weights) @ rows.T).pow(2).sum() + rank * rows.sum()


def expected_gradients(counts: list[int]) -> list[Tensor]:
    """Gradients of the summed losses of all ranks, by one process without any gather."""
    rows = [part.requires_grad_() for part in all_rows(counts)]
    whole = torch.cat(rows)
    torch.stack([loss_of_rank(rank, whole) for rank in range(len(counts))]).sum().backward()
    return [part.grad if part.grad is not None else torch.zeros_like(part) for part in rows]


def gather_and_backward(rank: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """The gathered rows, and the gradient that reaches this rank's own."""
    mine = all_rows(counts)[rank].requires_grad_()
    whole = gather.gather_rows(mine, counts)
    loss_of_rank(rank, whole).backward()
    assert mine.grad is not None
    return whole.detach(), mine.grad


def gather_by_reduce_scatter(rank: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """The same by the way other backends than gloo take; gloo knows the collective and can stand in for them."""
    with mock.patch.object(dist, "get_backend", lambda: "nccl"):
        return gather_and_backward(rank, counts)


def gather_without_gradient(rank: int, counts: list[int]) -> Tensor:
    """The same forward, with only the rank's own rows still in the graph."""
    mine = all_rows(counts)[rank].requires_grad_()
    parts = list(gather.gather_rows(mine.detach(), counts).split(counts))
    parts[rank] = mine
    loss_of_rank(rank, torch.cat(parts)).backward()
    assert mine.grad is not None
    return mine.grad


def gather_into_places(rank: int, counts: list[int]) -> Tensor:
    """All rows in their places, sent two at a time."""
    result = torch.full((sum(counts), DIM), torch.nan, dtype=torch.float64)
    with mock.patch.object(gather, "ROWS_AT_ONCE", 2):
        gather.gather_into(result, all_rows(counts)[rank], counts, places_of(counts))
    return result


def places_of(counts: list[int]) -> np.ndarray:
    return np.random.default_rng(sum(counts)).permutation(sum(counts))


def reduce_and_unite(rank: int) -> dict[str, Any]:
    unsorted = np.array([[7, 3, 7, 0], [9, 3], []][rank], dtype=np.int32)
    nothing = np.empty(0, dtype=np.int32)
    return {
        "union": gather.gather_union(unsorted, "cpu"),
        "one_rank_only": gather.gather_union(unsorted if rank == 1 else nothing, "cpu"),
        "nothing": gather.gather_union(nothing, "cpu"),
        "sum": gather.sum_over_ranks([1.0, 10.0**rank, -0.5 * rank], "cpu"),
        "largest": gather.largest_over_ranks([-3.0, -1.5, -7.0][rank], "cpu"),
        "first_largest": gather.largest_over_ranks(-float(rank), "cpu"),
        "place": (gather.rank(), gather.world_size()),
    }


def everything(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "rows": [gather_and_backward(rank, counts) for counts in COUNTS[world_size]],
        "reduce_scatter": [gather_by_reduce_scatter(rank, counts) for counts in COUNTS[world_size]],
        "without_gradient": [gather_without_gradient(rank, counts) for counts in COUNTS[world_size]],
        "into": [gather_into_places(rank, counts) for counts in COUNTS[world_size]],
        "reduced": reduce_and_unite(rank),
    }


@pytest.fixture(scope="module", params=[2, 3], ids="{}-ranks".format)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a group found; one group for all tests, since processes are slow to start."""
    return on_ranks(request.param, everything, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("way", ["rows", "reduce_scatter"])
def test_every_rank_receives_all_rows_in_rank_order(ranks: list[dict[str, Any]], way: str) -> None:
    for case, counts in enumerate(COUNTS[len(ranks)]):
        for rank, found in enumerate(ranks):
            assert torch.equal(found[way][case][0], torch.cat(all_rows(counts))), (counts, rank)


def test_every_rank_puts_all_rows_into_their_places(ranks: list[dict[str, Any]]) -> None:
    for case, counts in enumerate(COUNTS[len(ranks)]):
        for found in ranks:
            assert torch.equal(found["into"][case][places_of(counts)], torch.cat(all_rows(counts)))


@pytest.mark.parametrize("way", ["rows", "reduce_scatter"])
def test_each_rank_receives_the_gradient_of_its_rows_summed_over_the_losses_of_all_ranks(
    ranks: list[dict[str, Any]], way: str
) -> None:
    for case, counts in enumerate(COUNTS[len(ranks)]):
        for found, expected in zip(ranks, expected_gradients(counts), strict=True):
            torch.testing.assert_close(found[way][case][1], expected, rtol=1e-12, atol=1e-12)


def test_a_gather_without_gradient_misses_what_other_ranks_losses_say(ranks: list[dict[str, Any]]) -> None:
    for case, counts in enumerate(COUNTS[len(ranks)]):
        for rank, expected in enumerate(expected_gradients(counts)):
            if counts[rank]:
                difference = (ranks[rank]["without_gradient"][case] - expected).abs().max()
                assert difference > 0.1 * expected.abs().max(), (counts, rank)


def test_indices_and_numbers_meet_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank, everything_found in enumerate(ranks):
        found = everything_found["reduced"]
        assert found["union"].tolist() == [0, 3, 7, 9] and found["union"].dtype == np.int32
        assert found["one_rank_only"].tolist() == [3, 9]
        assert found["nothing"].tolist() == []
        # two ranks: 1 + 1, 1 + 10, 0 − 0.5; three: 1 + 1 + 1, 1 + 10 + 100, 0 − 0.5 − 1
        assert found["sum"] == ([2.0, 11.0, -0.5] if len(ranks) == 2 else [3.0, 111.0, -1.5])
        assert found["largest"] == -1.5 and found["first_largest"] == 0.0
        assert found["place"] == (rank, len(ranks))


def test_without_a_process_group_all_are_the_identity() -> None:
    rows = torch.ones(2, DIM, requires_grad=True)
    assert gather.gather_rows(rows, [2]) is rows
    assert gather.gather_union(np.array([5, 1, 5], dtype=np.int32), "cpu").tolist() == [1, 5]
    assert gather.sum_over_ranks([1, 2.5], "cpu") == [1.0, 2.5]
    assert gather.largest_over_ranks(-2, "cpu") == -2.0
    assert (gather.rank(), gather.world_size()) == (0, 1)


def test_rows_that_are_not_as_many_as_announced_are_refused() -> None:
    with pytest.raises(AssertionError):
        gather.gather_rows(torch.ones(2, DIM), [3])
