"""Joining or starting Ray, quietly, and stopping only what was started here."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psutil

from beeray.config import ClusterConfig, Config, StorageConfig
from beeray.data.storage import storage_environment, storage_options
from beeray.errors import ClusterError
from beeray.interruption import hang_up_blocked, signals_kept
from beeray.runtime.connecting import STARTS, TOO_SLOW, connection_error, no_cluster
from beeray.runtime.cores import cores_here
from beeray.runtime.entrypoint import held_by_this_job
from beeray.runtime.job_folder import JOB_CONFIG

MAX_ACTORS_PER_NODE = 8
DATA_CPUS = 1.0
"""CPUs left to Ray Data beside the workers, so that it can always stream."""
ASKED_AGAIN_S = 5.0
WORKER_KEYS = ("cluster.num_workers", "cluster.cpus_per_worker")


ANSWER_S = 10.0
"""What a cluster may take to accept a connection."""

_own: list[bool] = []
"""Of the session that is open, if there is one: whether its Ray was started here."""


def ray_init_arguments(num_cpus: int, object_store_mib: int) -> dict[str, Any]:
    """Arguments of `ray.init` for a small Ray of its own on this machine, without a dashboard."""
    return {
        "address": "local",
        "num_cpus": num_cpus,
        "object_store_memory": object_store_mib * 2**20,
        "include_dashboard": False,
        "logging_level": logging.WARNING,
        "_system_config": {
            "num_workers_soft_limit": 4 * num_cpus,  # idle workers are used again, not started again
            "health_check_failure_threshold": 40,  # an only node that is slow to answer is overloaded, not gone
        },
    }


@contextmanager
def ray_session(
    cluster: ClusterConfig, storage: StorageConfig | None = None, *, dashboard: bool = False
) -> Iterator[None]:
    """A connected Ray: the one already joined, the one named, or a small one started here.

    A Ray started here ends with the context; a cluster that was joined goes on. Paths are reached as
    `storage` says, here until the context ends and in the workers of this session; those of a Ray that was
    joined before keep their own settings. Credentials are never sent to a cluster: its nodes have a role,
    a profile or an environment of their own. A Ray started here has this command's environment.

    Args:
        dashboard: start a Ray of our own with its dashboard, which the state API needs.

    Raises:
        ClusterError: the cluster does not answer or does not let this command in, or the submitted job sets what
            `storage` sets.
    """
    import ray

    storage = storage or StorageConfig()
    with storage_options(storage):
        if ray.is_initialized():
            yield
            return
        _start_or_join(cluster, storage, dashboard)
        _own.append(cluster_address(cluster) is None)
        try:
            yield
        finally:
            _own.pop()
            ray.shutdown()


def is_own() -> bool:
    """Whether this process is in a Ray that `ray_session` has started here, which ends with it and is no cluster."""
    return bool(_own) and _own[-1]


def cluster_address(cluster: ClusterConfig) -> str | None:
    """The cluster that is to be joined, by the config or the environment; None: a Ray is started here."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or None


def _start_or_join(cluster: ClusterConfig, storage: StorageConfig, dashboard: bool) -> None:
    address = cluster_address(cluster)
    arguments: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if not address:
        arguments = ray_init_arguments(max(2, cores_here()), cluster.object_store_mib)
        arguments["include_dashboard"] = dashboard
    variables = _worker_variables(storage)
    if variables:
        arguments["runtime_env"] = {"env_vars": variables}
    setting = "cluster.address" if cluster.address else "RAY_ADDRESS"
    if address and not _answers(address):
        raise no_cluster(f"{setting} {address!r}")
    try:
        init_ray(arguments)
    except Exception as error:
        told = connection_error(error, address, setting)
        if told is None:
            raise
        raise told from error


def init_ray(arguments: dict[str, Any]) -> None:
    """Ray's own, up to `STARTS` times where what it starts takes longer than it waits (30 s), as on a cold disk."""
    import ray

    for start in range(1, STARTS + 1):
        before = {one.pid for one in psutil.Process().children(recursive=True)}
        try:
            with signals_kept(), _started_here() if arguments["address"] == "local" else nullcontext():
                ray.init(**arguments)
            return
        except Exception as error:
            if TOO_SLOW not in str(error) or start == STARTS:
                raise
            for one in psutil.Process().children(recursive=True):  # what was started would stay until this process ends
                if one.pid not in before:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()


@contextmanager
def _started_here() -> Iterator[None]:
    """Have a Ray that is started meanwhile listen on loopback, and outlive a terminal for as long as it is needed."""
    with _on_loopback(), hang_up_blocked():
        yield


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have all processes of a Ray that is started meanwhile listen on loopback, as on macOS and Windows they do.

    On Linux Ray begins with a cluster's first node, which is reached from other machines at each of its ports.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _answers(address: str) -> bool:
    """Whether anybody listens at `host:port`; Ray itself would try for minutes. Of any other address: yes."""
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return True
    host = host.strip("[]")
    local = host in ("127.0.0.1", "localhost", "::1") and not address.startswith("ray://")
    if local:  # Ray itself looks for the machine's outer address then, as for every node's; its client does not
        host = ray.util.get_node_ip_address()
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=ANSWER_S):
        return True
    return False


def _worker_variables(storage: StorageConfig) -> dict[str, str]:
    """Environment of the workers, less what a submitted job's runtime_env sets alike: Ray refuses it twice."""
    job = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    of_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    ours = storage_environment(storage)
    for name in ours.keys() & of_job.keys():
        if of_job[name] not in (ours[name], ours[name].strip('"')):
            raise ClusterError(
                f"the submitted job's runtime_env sets {name}, and the config's storage section sets it otherwise; "
                "leave one of them out"
            )
    return {name: value for name, value in ours.items() if name not in of_job}


def check_placement(cluster: ClusterConfig, keys: tuple[str, str] = WORKER_KEYS) -> None:
    """Refuse to wait for ever for workers that the cluster cannot place.

    A cluster that was joined gets `cluster.placement_timeout_s` to grow; a local one does not grow.

    Args:
        keys: config keys of the number of workers and of the CPUs of each, for the error.

    Raises:
        ClusterError: says what is missing.
    """
    with grown(cluster, keys) as lacking:
        if lacking:
            raise ClusterError(lacking)


@contextmanager
def grown(cluster: ClusterConfig, keys: tuple[str, str] = WORKER_KEYS) -> Iterator[str]:
    """A cluster that has grown to its workers as far as it does within `cluster.placement_timeout_s`.

    What it has grown by is asked for until the context ends, if it was not there already.

    Args:
        keys: as `check_placement`.

    Yields:
        what the cluster lacks still; empty when all workers find a place.
    """
    joined = cluster_address(cluster) is not None
    deadline = time.monotonic() + (cluster.placement_timeout_s if joined else 0.0)
    _, lacking = lacking_workers(cluster, keys)
    if not (lacking and joined):
        yield lacking
        return
    with _asked_to_grow(cluster):
        asked = time.monotonic()
        while lacking and time.monotonic() < deadline:
            time.sleep(1.0)
            if time.monotonic() - asked > ASKED_AGAIN_S:  # Ray Data's own requests take the place of ours
                _ask_autoscaler(wanted_bundles(cluster))
                asked = time.monotonic()
            _, lacking = lacking_workers(cluster, keys)
        yield lacking


def lacking_workers(cluster: ClusterConfig, keys: tuple[str, str] = WORKER_KEYS) -> tuple[int, str]:
    """How many of the workers asked for a cluster can place as it is now, and what it lacks for the others.

    Args:
        keys: as `check_placement`.

    Returns:
        (workers, error); the error is empty when all of them find a place.
    """
    placeable, offered = _placeable_workers(cluster)
    if placeable >= cluster.num_workers:
        return cluster.num_workers, ""
    each = f"{cluster.cpus_per_worker:g} CPU" + (f" + {cluster.gpus_per_worker:g} GPU" if cluster.use_gpu else "")
    return placeable, (
        f"{keys[0]} is {cluster.num_workers}: the cluster can place {placeable} of them ({each} each, "
        f"{DATA_CPUS:g} CPU left for streaming data) and lacks {cluster.num_workers - placeable}; it offers {offered}; "
        f"lower {keys[0]} or {keys[1]}, or add nodes"
    )


def placeable_actors(config: Config) -> int:
    """Encoder actors that a cluster takes: one per GPU or share of it, or one per core, at most 8 a node.

    On CPUs several actors of one thread beat one of several: nobody waits for a thread that was interrupted.
    """
    nodes = live_nodes()
    if config.cluster.use_gpu:
        return max(1, int(sum(_shares(node.get("GPU", 0.0), config.embed.gpus_per_actor) for node in nodes)))
    free = sum(node.get("CPU", 0.0) for node in nodes) - DATA_CPUS
    wanted = sum(min(MAX_ACTORS_PER_NODE, int(node.get("CPU", 0.0))) for node in nodes)
    return max(1, min(wanted, int(free / config.embed.cpus_per_actor)))


@contextmanager
def _asked_to_grow(cluster: ClusterConfig) -> Iterator[None]:
    """Tell the autoscaler what is wanted until the context ends; without one this does nothing.

    A request holds until the next one, and would keep nodes that nobody uses; from here on what runs keeps them.
    """
    _ask_autoscaler(wanted_bundles(cluster))
    try:
        yield
    finally:
        _ask_autoscaler([])


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def wanted_bundles(cluster: ClusterConfig) -> list[dict[str, float]]:
    """What `check_placement` waits for, as an autoscaler takes it, which counts what is in use as free.

    Whole CPUs and cards, what streams the data, and what a submitted job's own command holds.
    """
    each: dict[str, float] = {"CPU": math.ceil(cluster.cpus_per_worker)}
    if cluster.use_gpu:
        each["GPU"] = math.ceil(cluster.gpus_per_worker)
    further = (DATA_CPUS, held_by_this_job()[1].get("CPU", 0.0))
    return [each] * cluster.num_workers + [{"CPU": math.ceil(cpus)} for cpus in further if cpus]


def live_nodes() -> list[dict[str, float]]:
    """The resources of every node of the cluster, less what a submitted job's own command holds."""
    import ray

    alive = {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}
    where, held = held_by_this_job()
    if held and alive:
        node = alive.get(where) or max(alive.values(), key=lambda one: one.get("CPU", 0.0))
        for name, number in held.items():
            node[name] = max(0.0, node.get(name, 0.0) - number)
    return list(alive.values())


def workers_that_fit(nodes: Sequence[Mapping[str, float]], cluster: ClusterConfig) -> int:
    """Workers that nodes with these resources (`CPU`, `GPU`) take at once, with CPUs left to Ray Data."""
    placeable = 0
    for node in nodes:
        fits = math.inf
        if cluster.cpus_per_worker:
            fits = node.get("CPU", 0.0) / cluster.cpus_per_worker
        if cluster.use_gpu:
            share = cluster.gpus_per_worker
            cards = node.get("GPU", 0.0)
            fits = min(fits, _shares(cards, share))
        placeable += int(min(fits, 2**31))
    if cluster.cpus_per_worker:
        cpus = sum(node.get("CPU", 0.0) for node in nodes)
        placeable = min(placeable, int(max(0.0, cpus - DATA_CPUS) / cluster.cpus_per_worker))
    return placeable


def _shares(cards: float, share: float) -> float:
    """How many of `share` cards each a node's cards give; a share is of one card."""
    return cards * int(1 / share + 1e-9) if share < 1 else cards // share


def _placeable_workers(cluster: ClusterConfig) -> tuple[int, str]:
    nodes = live_nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    placeable = workers_that_fit(nodes, cluster)
    held = held_by_this_job()[1].get("CPU", 0.0)
    beside = f" beside the {held:g} CPU of this job's own command" if held else ""
    return placeable, f"{cpus:g} CPU and {gpus:g} GPU on {len(nodes)} node{'s' if len(nodes) != 1 else ''}{beside}"
