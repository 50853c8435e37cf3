"""Joining or starting Ray, quietly, and stopping only what was started here."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from beeray.config import ClusterConfig
from beeray.errors import ClusterError

DATA_CPUS = 1.0
"""CPUs left to Ray Data beside the workers, so that it can always stream."""


def ray_init_arguments(num_cpus: int, object_store_mib: int) -> dict[str, Any]:
    """Arguments of `ray.init` for a small Ray of its own on this machine, without a dashboard."""
    return {
        "address": "local",
        "num_cpus": num_cpus,
        "object_store_memory": object_store_mib * 2**20,
        "include_dashboard": False,
        "logging_level": logging.WARNING,
        "_system_config": {"num_workers_soft_limit": 4 * num_cpus},  # idle workers are used again, not started again
    }


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """A connected Ray: the one already joined, the one named, or a small one started here.

    A Ray started here ends with the context; a cluster that was joined goes on.

    Raises:
        ClusterError: the address does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            ray.init(**ray_init_arguments(os.cpu_count() or 1, cluster.object_store_mib))
    except ConnectionError as error:
        raise ClusterError(
            f"cluster.address {address!r}: no Ray cluster answers there; start one (ray start --head) or leave it unset"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_placement(cluster: ClusterConfig) -> None:
    """Refuse to wait for ever for workers that the cluster cannot place.

    A cluster that was joined gets `cluster.placement_timeout_s` to grow; a local one does not grow.

    Raises:
        ClusterError: says what is missing.
    """
    joined = bool(cluster.address or os.environ.get("RAY_ADDRESS"))
    deadline = time.monotonic() + (cluster.placement_timeout_s if joined else 0.0)
    placeable, offered = _placeable_workers(cluster)
    if joined and placeable < cluster.num_workers:
        _ask_to_grow(cluster)
    while placeable < cluster.num_workers and time.monotonic() < deadline:
        time.sleep(1.0)
        placeable, offered = _placeable_workers(cluster)
    if placeable >= cluster.num_workers:
        return
    each = f"{cluster.cpus_per_worker:g} CPU" + (f" + {cluster.gpus_per_worker:g} GPU" if cluster.use_gpu else "")
    raise ClusterError(
        f"cluster.num_workers is {cluster.num_workers}: the cluster can place {placeable} of them ({each} each, "
        f"{DATA_CPUS:g} CPU left for streaming data) and lacks {cluster.num_workers - placeable}; it offers {offered}; "
        "lower cluster.num_workers or cluster.cpus_per_worker, or add nodes"
    )


def _ask_to_grow(cluster: ClusterConfig) -> None:
    """Tell the autoscaler what is wanted; without one this does nothing."""
    from ray.autoscaler.sdk import request_resources

    each: dict[str, float] = {"CPU": math.ceil(cluster.cpus_per_worker)}
    if cluster.use_gpu:
        each["GPU"] = math.ceil(cluster.gpus_per_worker)
    request_resources(bundles=[each] * cluster.num_workers)


def _placeable_workers(cluster: ClusterConfig) -> tuple[int, str]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    placeable = 0
    for node in nodes:
        fits = math.inf
        if cluster.cpus_per_worker:
            fits = node.get("CPU", 0.0) / cluster.cpus_per_worker
        if cluster.use_gpu:
            fits = min(fits, node.get("GPU", 0.0) / cluster.gpus_per_worker)
        placeable += int(min(fits, 2**31))
    if cluster.cpus_per_worker:
        placeable = min(placeable, int(max(0.0, cpus - DATA_CPUS) / cluster.cpus_per_worker))
    return placeable, f"{cpus:g} CPU and {gpus:g} GPU on {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
