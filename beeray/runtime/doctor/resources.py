"""What the cluster offers against what the config asks, as it is now."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from beeray.config import ClusterConfig
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding
from beeray.runtime.session import lacking_workers


def judge_resources(cluster: ClusterConfig, free: Mapping[str, float], *, joined: bool) -> Finding:
    """Whether all workers find a place, and find it now.

    Args:
        free: resources that nobody used before this command began.
        joined: the cluster was there before, so it may have other work, and may grow.
    """
    placeable, lacking = lacking_workers(cluster)
    measured = {"asked": cluster.num_workers, "placeable": placeable}
    if lacking:
        grows = " (a cluster that starts nodes on demand: train asks it to, and so does --grow)" if joined else ""
        return Finding(FAILED, f"{lacking}{grows}", measured)
    total = ray.cluster_resources()
    asked = {"CPU": cluster.num_workers * cluster.cpus_per_worker}
    if cluster.use_gpu:
        asked["GPU"] = cluster.num_workers * cluster.gpus_per_worker
    offered = " and ".join(f"{total.get(name, 0.0):g} {name}" for name in asked)
    for name, number in asked.items():
        if joined and free.get(name, 0.0) < number:
            return Finding(
                WARNING,
                f"cluster.num_workers is {cluster.num_workers}, which takes {number:g} {name}: there are {offered}, "
                f"but {free.get(name, 0.0):g} {name} free now; training would wait for other work to end (ray status)",
                measured,
            )
    unused = total.get("GPU", 0.0)
    if unused and not cluster.use_gpu:
        return Finding(
            WARNING,
            f"cluster.use_gpu is false, and the cluster has {unused:g} GPU; set cluster.use_gpu=true to train on them",
            measured,
        )
    each = ", ".join(f"{number:g} {name}" for name, number in asked.items())
    workers = f"{cluster.num_workers} worker{'s' if cluster.num_workers > 1 else ''}"
    return Finding(OK, f"{workers} on {each}; the cluster has {offered}", measured)
