"""Workers as training has them: scheduled together, with their devices and process group; few of them.

Two, or one a node up to eight, and never more than `cluster.num_workers`: what goes wrong between workers goes wrong
between two of them, and importing torch and DeepSpeed once more on a machine's last cores takes longer than all checks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from beeray.config import ClusterConfig, Config
from beeray.errors import ClusterError
from beeray.runtime.cores import keep_deepspeed_on_cpu, share_cores
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding, found, together

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 8
LEAST_CPU = 0.001
"""What a bundle asks for when the config's workers ask for nothing: a bundle of nothing is refused."""

REMEDIES = {
    "collectives": (
        "let the nodes reach each other on all TCP ports, and name the network card that joins them "
        "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME on every node)"
    ),
    "deepspeed": "install torch and deepspeed at the versions of constraints.txt on every node",
    "gradient": "install the versions of constraints.txt on every node, and try deepspeed.stage=0",
    "encoder": "check encoder.name, and that every node can read it (a shared folder, or a way to the model hub)",
    "workers": "install the versions of constraints.txt on every node",
}


def gang_size(cluster: ClusterConfig, num_nodes: int, placeable: int) -> int:
    """How many workers are checked.

    Args:
        placeable: workers that find a place; one is tried, with less, when none does.
    """
    return max(1, min(cluster.num_workers, placeable, max(2, min(num_nodes, MOST_WORKERS))))


@ray.remote(max_restarts=0)
class Worker:
    """One rank. Heavy libraries are imported by `start`, not before."""

    def __init__(self, config: Config, rank: int, size: int, *, use_gpu: bool) -> None:
        self.config, self.rank, self.size, self.use_gpu = config, rank, size, use_gpu
        self.device: torch.device | None = None

    def start(self) -> tuple[str, str, int, Finding]:
        """Import what training imports and find the device; returns node id, address, a free port, and the finding."""
        node_id, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        with socket.socket() as one:
            one.bind(("", 0))
            port = int(one.getsockname()[1])
        return node_id, address, port, found(self._start, REMEDIES["workers"])

    def _start(self) -> Finding:
        started = time.perf_counter()
        if not self.use_gpu:
            keep_deepspeed_on_cpu()
        import torch

        if self.use_gpu and not torch.cuda.is_available():
            return Finding(
                FAILED,
                f"Ray gave this worker a GPU, and torch {torch.__version__} finds none; install a build of torch for "
                "the node's driver (nvidia-smi shows it), or set cluster.use_gpu=false",
            )
        import beeray.runtime.doctor.encoder
        import beeray.runtime.doctor.gradient  # noqa: F401

        self.device = torch.device("cuda" if self.use_gpu else "cpu")
        what = torch.cuda.get_device_name(0) if self.use_gpu else "CPU"
        free = int(torch.cuda.mem_get_info(0)[0]) if self.use_gpu else 0
        measured = {"imports_s": round(time.perf_counter() - started, 2), "device": what, "gpu_free_bytes": free}
        return Finding(OK, f"{what}, torch {torch.__version__}", measured)

    def set_threads(self, per_node: int) -> None:
        """As many compute threads as a training worker has when `per_node` share this node."""
        if not self.use_gpu:
            share_cores(self.config.cluster.threads_per_worker, per_node)

    def collectives(self, address: str, port: int, limit_s: float) -> Finding:
        """Join the process group and try it."""
        return found(lambda: self._collectives(address, port, limit_s), REMEDIES["collectives"])

    def _collectives(self, address: str, port: int, limit_s: float) -> Finding:
        import torch.distributed as dist

        from beeray.runtime.doctor.collectives import check_collectives

        assert self.device is not None
        # a worker sees its own GPU alone, so it is the first; DeepSpeed takes LOCAL_RANK for the number of the device
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.size),
            LOCAL_RANK="0",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
            TORCH_NCCL_BLOCKING_WAIT="1",  # an error within the limit, where NCCL would wait for ever
        )
        dist.init_process_group(
            "nccl" if self.use_gpu else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=limit_s),
        )
        return check_collectives(self.device)

    def deepspeed(self) -> Finding:
        """Import DeepSpeed, and see that it works on the device that is asked for."""
        return found(self._deepspeed, REMEDIES["deepspeed"])

    def _deepspeed(self) -> Finding:
        from beeray.runtime.doctor.ops import check_deepspeed

        assert self.device is not None
        return check_deepspeed(self.config.deepspeed.stage, self.device)

    def gradient(self, stage: int, fault: str = "") -> Finding:
        """See `check_gradient`."""
        from beeray.runtime.doctor.gradient import check_gradient

        assert self.device is not None
        device = self.device
        return found(lambda: check_gradient(stage, device, fault), REMEDIES["gradient"])

    def encoder(self, name: str) -> Finding:
        """See `check_encoder`."""
        from beeray.runtime.doctor.encoder import check_encoder

        assert self.device is not None
        device = self.device
        return found(lambda: check_encoder(self.config, name, device), REMEDIES["encoder"])


@dataclass(frozen=True)
class Rank:
    """One worker, as the driver knows it."""

    name: str
    node_id: str
    address: str
    port: int
    actor: Any
    started: Finding


class Gang:
    """The workers, once they are placed and started; ends them when the context ends.

    Args:
        config: of the run.
        size: how many.
        whole: give each the CPUs and GPUs of a training worker; False where none of those finds a place.
    """

    def __init__(self, config: Config, size: int, *, whole: bool) -> None:
        self.config, self.size, self.whole = config, size, whole
        self.use_gpu = config.cluster.use_gpu and whole
        self.ranks: list[Rank] = []
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []

    def start(self, limit_s: float) -> Finding:
        """Place the workers together and have them import what they need.

        Raises:
            ClusterError: they were not placed, or died.
        """
        self._place(limit_s)
        answers = [actor.start.remote() for actor in self._actors]
        self.ranks = [
            Rank(f"worker {rank} on node {address}", node_id, address, port, actor, finding)
            for rank, (actor, (node_id, address, port, finding)) in enumerate(
                zip(self._actors, ray.get(answers), strict=True)
            )
        ]
        at = [rank.node_id for rank in self.ranks]
        ray.get([rank.actor.set_threads.remote(at.count(rank.node_id)) for rank in self.ranks])
        finding = together({rank.name: rank.started for rank in self.ranks})
        if finding.status != OK:
            return finding
        of = f"{self.size} of {self.config.cluster.num_workers}" if self.size < self.config.cluster.num_workers else ""
        nodes = len(set(at))
        said = (
            f"{of or self.size} worker{'s' if of or self.size > 1 else ''} on {nodes} node{'s' if nodes > 1 else ''}: "
            f"{finding.said}"
        )
        if not self.whole:
            lacks = "with less CPU than cluster.cpus_per_worker"
            if self.config.cluster.use_gpu:
                lacks = "without the GPUs that cluster.use_gpu asks for"
            return Finding(
                WARNING,
                f"{said}; {lacks}, since none could be placed: what follows is checked on the CPU",
                finding.measured,
            )
        return Finding(OK, said, {**finding.measured, "workers": self.size, "nodes": nodes})

    def _place(self, limit_s: float) -> None:
        cluster = self.config.cluster
        each = {"CPU": max(LEAST_CPU, cluster.cpus_per_worker)}
        if self.use_gpu:
            each["GPU"] = cluster.gpus_per_worker
        elif not self.whole:
            each = {"CPU": LEAST_CPU}
        self._group = placement_group([each] * self.size, strategy="SPREAD")
        if not self._group.wait(limit_s):
            share = ", ".join(f"{number:g} {name}" for name, number in each.items())
            raise ClusterError(
                f"{self.size} workers ({share} each) were not placed together within {limit_s:g} s, "
                "though the cluster has as much: other work holds it; wait "
                "for that (ray status), or lower cluster.num_workers or cluster.cpus_per_worker"
            )
        self._actors = [
            Worker.options(  # type: ignore[attr-defined]
                num_cpus=each["CPU"],
                num_gpus=each.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            ).remote(self.config, rank, self.size, use_gpu=self.use_gpu)
            for rank in range(self.size)
        ]

    def everywhere(self, call: Callable[[Rank], Any], ranks: list[Rank] | None = None) -> Finding:
        """One finding of a call on all ranks, or on some."""
        chosen = self.ranks if ranks is None else ranks
        findings: list[Finding] = ray.get([call(rank) for rank in chosen])
        return together(dict(zip([rank.name for rank in chosen], findings, strict=True)))

    def collectives(self, limit_s: float) -> Finding:
        """Bring the process group up and try it."""
        first = self.ranks[0]
        return self.everywhere(lambda rank: rank.actor.collectives.remote(first.address, first.port, limit_s))

    def deepspeed(self) -> Finding:
        """See `Worker.deepspeed`."""
        return self.everywhere(lambda rank: rank.actor.deepspeed.remote())

    def gradient(self, fault: str = "") -> Finding:
        """See `check_gradient`; what rank 0 found, unless another rank failed."""
        stage = self.config.deepspeed.stage
        return self.everywhere(lambda rank: rank.actor.gradient.remote(stage, fault))

    def encoder(self, name: str) -> Finding:
        """Load the encoder once a node."""
        firsts: Mapping[str, Rank] = {rank.node_id: rank for rank in reversed(self.ranks)}
        return self.everywhere(lambda rank: rank.actor.encoder.remote(name), list(firsts.values()))

    def gpu_free_bytes(self) -> list[tuple[str, int]]:
        """Name of each worker that has a GPU, and what was free of it."""
        return [(rank.name, int(rank.started.measured.get("gpu_free_bytes", 0))) for rank in self.ranks if self.use_gpu]

    def stop(self) -> None:
        """End the workers, however stuck they are, and give their place back."""
        for actor in self._actors:
            with suppress(Exception):
                ray.kill(actor)
        if self._group is not None:
            with suppress(Exception):
                remove_placement_group(self._group)
