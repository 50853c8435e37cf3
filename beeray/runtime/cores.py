"""What a process on a machine's CPUs sets before it computes: its share of the cores, and no GPU for DeepSpeed."""

from __future__ import annotations

import os


def share_cores(threads: int | None, num_processes: int) -> None:
    """Give torch this process's compute threads.

    Args:
        threads: so many; unless given, the cores of the machine are shared evenly.
        num_processes: processes of a kind on this machine.
    """
    import torch

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // num_processes))


def keep_deepspeed_on_cpu() -> None:
    """Call it before DeepSpeed is imported: it looks for CUDA's compiler otherwise."""
    os.environ["DS_ACCELERATOR"] = "cpu"
