"""What a process on a machine's CPUs sets before it computes: its share of the cores, and no GPU for DeepSpeed."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def share_cores(threads: int | None, num_processes: int) -> None:
    """Give torch this process's compute threads.

    Args:
        threads: so many; unless given, the cores of the machine (or container) are shared evenly.
        num_processes: processes of a kind on this machine.
    """
    import torch

    torch.set_num_threads(threads or max(1, cores_here() // num_processes))


def cores_here(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: those it may run on, and no more than its container's quota gives.

    Args:
        cgroup: where the kernel shows the container's limits, of version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit():  # neither `max` nor -1
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def keep_deepspeed_on_cpu() -> None:
    """Call it before DeepSpeed is imported: it looks for CUDA's compiler otherwise."""
    os.environ["DS_ACCELERATOR"] = "cpu"
