"""The workers' torch process group, set up without torch in the driver and in the process that watches over the
workers.

Ray Train's own `TorchConfig` imports torch where it is made and where it is read. Either of the two takes seconds for
that and a quarter of a gigabyte, before a worker is even asked for. This is the same set-up with the import left to
the workers. Which GPU is theirs they set themselves (`worker_ready`).
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

logger = logging.getLogger(__name__)

JOIN_LIMIT_S = 1800
LEAVE_LIMIT_S = 30


class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]
    """A process group over all workers, by torch's environment variables.

    Args:
        backend: `nccl` or `gloo`.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets it up."""
        return ProcessGroup

    def to_dict(self) -> dict[str, Any]:
        """For Ray's record of the run."""
        return {"backend": self.backend}


class ProcessGroup(Backend):  # type: ignore[misc]
    """Has every worker join, and leave at the end. Its methods run in the process that watches over the workers."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Wait until every worker has joined."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        num_workers = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, rank, num_workers, address, port)
                for rank in range(num_workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Wait a while until every worker has left; one worker alone has nobody to tell."""
        if len(worker_group) == 1:
            return
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_LIMIT_S)
        except ray.exceptions.GetTimeoutError:
            logger.warning("workers did not leave their process group within %s s", LEAVE_LIMIT_S)


def _join(backend: str, rank: int, num_workers: int, address: str, port: int) -> None:
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if backend == "nccl":  # a collective that times out raises, and does not hang with its process
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    import torch.distributed as dist

    dist.init_process_group(backend, "env://", timedelta(seconds=JOIN_LIMIT_S), num_workers, rank)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
