"""What a step sends between workers, with known answers: sums, gathers, scatters, and the planning thread's gloo."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from beeray.runtime.doctor.finding import FAILED, OK, Finding

LARGE = 1 << 20
"""Numbers of the timed all-reduce: 4 MiB."""
REPEATS = 5


def check_collectives(device: torch.device) -> Finding:
    """Run every kind of collective that training runs. Every rank must call, after the group is up."""
    ranks, mine = dist.get_world_size(), dist.get_rank()
    backend = dist.get_backend()
    if ranks == 1:
        return Finding(OK, f"one worker on {device.type}: nothing crosses the network", {"workers": 1})
    wrong = _wrong_answers(device, ranks, mine)
    if wrong:
        return Finding(
            FAILED,
            f"{backend} between {ranks} workers: {wrong} gave a wrong answer; install the versions of constraints.txt "
            "on every node, and check GPUs and network cards (dmesg, NCCL_DEBUG=INFO)",
        )
    latency_s, large_s = _seconds(1, device), _seconds(LARGE, device)
    measured = {
        "backend": backend,
        "workers": ranks,
        "latency_ms": round(1e3 * latency_s, 3),
        "all_reduce_4_mib_ms": round(1e3 * large_s, 3),
        "bytes_per_s": round(2 * (ranks - 1) / ranks * 4 * LARGE / large_s),
    }
    return Finding(
        OK,
        f"{backend} between {ranks} workers: right answers; an all-reduce of one number {1e3 * latency_s:.2f} ms, "
        f"of 4 MiB {1e3 * large_s:.1f} ms",
        measured,
    )


def _wrong_answers(device: torch.device, ranks: int, mine: int) -> str:
    total = torch.full((3,), float(mine + 1), device=device)
    dist.all_reduce(total)
    if total.tolist() != [ranks * (ranks + 1) / 2] * 3:
        return "all-reduce"
    gathered = torch.empty(2 * ranks, device=device)
    dist.all_gather_into_tensor(gathered, torch.full((2,), float(mine), device=device))
    if gathered.tolist() != [float(number) for number in range(ranks) for _ in range(2)]:
        return "all-gather"
    if dist.get_backend() != "gloo":  # gloo's is an all-reduce inside, and beeray calls that
        reduced = torch.empty(1, device=device)
        dist.reduce_scatter_tensor(reduced, torch.arange(ranks, dtype=torch.float32, device=device))
        if reduced.item() != ranks * mine:
            return "reduce-scatter"
    planning = dist.new_group(backend="gloo")
    counts = torch.tensor([mine + 1])
    dist.all_reduce(counts, group=planning)
    return "" if counts.item() == ranks * (ranks + 1) // 2 else "all-reduce of the planning group (gloo)"


def _seconds(size: int, device: torch.device) -> float:
    """Median seconds of an all-reduce of so many fp32 numbers; the first, which opens connections, is left out."""
    numbers = torch.zeros(size, device=device)
    taken: list[float] = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        dist.all_reduce(numbers)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[REPEATS // 2]
