"""How many trials run at once, and how many threads each worker then has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from beeray.config import ClusterConfig, Config
from beeray.console import Console
from beeray.errors import ClusterError, ConfigError
from beeray.runtime.session import cluster_address, grown, lacking_workers, live_nodes, workers_that_fit


def check_sharing(cluster: ClusterConfig) -> None:
    """Refuse workers of one trial on one card, which NCCL does not take.

    Raises:
        ConfigError: one line.
    """
    if cluster.use_gpu and cluster.num_workers > 1 and cluster.gpus_per_worker <= 0.5:
        raise ConfigError(
            f"cluster.gpus_per_worker is {cluster.gpus_per_worker:g} and cluster.num_workers {cluster.num_workers}: "
            "two workers of one trial may not share a card (NCCL refuses it), only those of several trials, so "
            "set cluster.num_workers: 1, or cluster.gpus_per_worker: 1"
        )


@contextmanager
def room_for_trials(config: Config, num_left: int, console: Console) -> Iterator[list[dict[str, float]]]:
    """A cluster that has grown to `tune.max_concurrent` trials, as far as it does within `cluster.placement_timeout_s`.

    The autoscaler is asked for that until the context ends, so that it takes no node away before trials use it; a hint,
    since it heeds its last request and Ray Data makes some, too. Where `tune.max_concurrent` is unset nothing is asked.

    Args:
        config: of the trial that asks for most; one such trial is known to fit.
        num_left: trials that are to run still.

    Yields:
        resources of every node, for `trials_at_once`.
    """
    cluster = config.cluster
    wanted = max(1, min(config.tune.max_concurrent or 1, num_left))
    wide = cluster.model_copy(update={"num_workers": wanted * cluster.num_workers})
    if cluster_address(cluster) is not None and lacking_workers(wide)[1]:
        console.line(f"waiting up to {cluster.placement_timeout_s:g} s for the cluster to hold {wanted} trials at once")
    with grown(wide):
        yield live_nodes()


def trials_at_once(nodes: Sequence[Mapping[str, float]], config: Config) -> int:
    """Trials that run at once: as many as the workers of which fit the nodes, at most `tune.max_concurrent`.

    Args:
        nodes: resources (`CPU`, `GPU`) of each; a card of which each worker asks 0.25 takes four.
        config: of the trial that asks for most.

    Raises:
        ClusterError: not one fits.
    """
    workers = workers_that_fit(nodes, config.cluster)
    fitting = workers // config.cluster.num_workers
    if fitting < 1:
        raise ClusterError(
            f"cluster.num_workers is {config.cluster.num_workers}: the cluster can place {workers} workers, so not one "
            "trial fits; lower cluster.num_workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    return min(fitting, config.tune.max_concurrent or fitting, config.tune.num_trials)


def shortage(at_once: int, config: Config) -> str:
    """Why there are fewer trials at once than `tune.max_concurrent` asks for; empty where there are not."""
    wanted = min(config.tune.max_concurrent or at_once, config.tune.num_trials)
    return f" (tune.max_concurrent is {wanted}: the cluster holds no more now)" if at_once < wanted else ""


def threads_each(nodes: Sequence[Mapping[str, float]], config: Config, at_once: int) -> int | None:
    """Compute threads of a worker when so many trials share the cluster's cores; None: as the config has it."""
    cluster = config.cluster
    if cluster.use_gpu or cluster.threads_per_worker is not None:
        return cluster.threads_per_worker
    cores = sum(node.get("CPU", 0.0) for node in nodes)
    return max(1, int(cores / (at_once * cluster.num_workers)))
