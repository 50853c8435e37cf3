"""Starting Ray Train workers: resources, data split, storage, retries, and what their failure means."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
import ray.train
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from beeray.config import ClusterConfig, Config
from beeray.console import Console
from beeray.data.parts import read_part
from beeray.data.store import INTERACTION_COLUMNS, Store, training_rows
from beeray.data.streaming import find_cause, lost_on_the_way, set_up_ray_data, what_it_says
from beeray.errors import LostWorkersError, NotFiniteError, RunError
from beeray.runtime.events import EventHandler
from beeray.runtime.monitor import listening
from beeray.runtime.process_group import ProcessGroupConfig
from beeray.runtime.session import is_own
from beeray.runtime.steps import UserShare
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker_starts import WorkerStarts

READERS = 2
"""Tasks that read users of a shard at once: no CPUs bound them."""


def user_datasets(
    store: Store, shares: Sequence[UserShare], num_shards: int, with_validation: bool
) -> dict[str, ray.data.Dataset]:
    """Each shard's users of each domain with their trainable items, streamed.

    Ray Data deals the CPUs that are left to the datasets that are being read, in whole ones, and reads nothing of one
    whose part is 0; so nothing is asked for.
    """
    set_up_ray_data()
    return {
        share.dataset_of(shard): _users_of_shard(store, share, shard, with_validation)
        for share in shares
        for shard in range(num_shards)
    }


def _users_of_shard(store: Store, share: UserShare, shard: int, with_validation: bool) -> ray.data.Dataset:
    """A range of a domain's training users, in the store's order; a task a part of the store that has some of them."""
    domain = store.domains[share.domain]
    counts = domain.training_users_of_parts["train+validation" if with_validation else "train"]
    first, last = shard * share.num_users, (shard + 1) * share.num_users
    ranges: list[dict[str, Any]] = []
    begin = 0
    for path, number in zip(store.user_paths(domain.name), counts, strict=True):
        start, stop = max(first - begin, 0), min(last - begin, number)
        if start < stop:
            ranges.append({"path": path, "first": start, "last": stop})
        begin += number
    return ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(
        read_training_users,
        batch_size=1,
        batch_format="numpy",
        fn_kwargs={"store": store, "with_validation": with_validation},
        num_cpus=0,
        concurrency=READERS,
    )


def read_training_users(batch: dict[str, Any], store: Store, with_validation: bool) -> Iterator[pa.Table]:
    """Ranges of training users of a store's parts, as `training_rows`; StoreError where it was replaced meanwhile."""
    for path, first, last in zip(batch["path"], batch["first"], batch["last"], strict=True):
        rows = training_rows(read_part(str(path), ["user_index", *INTERACTION_COLUMNS]), with_validation)
        store.check_unchanged()  # else an epoch would take the items of another store by this one's indices
        yield rows.slice(int(first), int(last) - int(first))


def launch_scoring(
    loop: str,
    config: Config,
    store: Store,
    tokens_path: str,
    model: str,
    console: Console,
    **given: Any,
) -> EventHandler:
    """Have workers that only score do so; returns what they sent.

    Args:
        loop: as `launch` takes it.
        model, given: as `WorkerTask`.

    Raises:
        BeerayError: as `launch`.
        NotFiniteError: embeddings are no finite numbers.
    """
    handler = EventHandler(console, store.meta.num_items, config.cluster.num_workers)
    with tempfile.TemporaryDirectory(prefix="beeray-scoring-") as storage, listening(handler) as monitor:
        task = WorkerTask(config, store, tokens_path, monitor, model, **given)
        launch(loop, task, storage=Path(storage), name="scoring")
    handler.close()
    if handler.failure is not None:
        raise NotFiniteError(handler.failure)
    return handler


def launch(
    loop: str,
    task: WorkerTask,
    *,
    storage: Path,
    name: str,
    users: Mapping[str, ray.data.Dataset] | None = None,
    keep_checkpoints: int | None = None,
) -> ray.train.Result:
    """Run a loop on every worker and wait for it.

    Args:
        loop: what a worker runs with the task, `module:function`; named, so that only workers import it.
        task: handed to it.
        storage: folder that every node can write to; checkpoints go to `storage / name`. A name that has
            checkpoints resumes from the newest whole one.
        users: training users, a dataset a shard and domain; a worker reads those that it wants.
        keep_checkpoints: older ones are deleted.

    Raises:
        BeerayError: what a worker raised for the user, or that workers died too often.
        LostWorkersError: the process that watches over the workers is gone, and they with it.
    """
    cluster = task.config.cluster
    in_order = ray.train.DataConfig(
        datasets_to_split=[],
        execution_options=ray.data.ExecutionOptions(preserve_order=True),
    )
    trainer = _Trainer(
        _call,
        backend_config=ProcessGroupConfig("nccl" if cluster.use_gpu else "gloo"),
        train_loop_config={"loop": loop, "task": task},
        scaling_config=scaling(cluster),
        datasets=dict(users or {}),
        dataset_config=in_order,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep_checkpoints),
        ),
    )
    trainer.starts = WorkerStarts(task.monitor, cluster.max_failures)
    try:
        with _notices():
            return trainer.fit()
    except ray.train.TrainingFailedError as error:
        ours = find_cause(error)
        if ours is not None:
            raise ours from None
        raise RunError(_what_failed(error, cluster)) from error
    except ray.exceptions.RayError as error:  # Ray Train makes good what happens to workers, not to its own controller
        if not lost_on_the_way(error):
            raise
        _give_back()
        raise LostWorkersError(
            f"the workers' controller was lost ({what_it_says(error)}); run the same command again"
        ) from error


def _give_back() -> None:
    """Free what a lost controller had reserved for its workers: Ray does so itself only when this command ends.

    Ray Train's own cleaner asks the state API, which needs a dashboard. A trial's driver is an actor among others of a
    sweep, which has one where that matters.
    """
    context = ray.get_runtime_context()
    if context.get_actor_id() is not None:
        return
    for name in ray.util.placement_group_table():
        if name.endswith(context.get_job_id()):  # of which the last part is the job that made it
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Leaves signals to this command: Ray Train's own handler aborts the workers and exits with 0.

    Nor does it start what has nothing to do; each is a process that imports Ray Train while the workers import torch.
    """

    starts: WorkerStarts | None = None

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        useless = [DatasetsCallback] if not self.datasets else []
        if is_own():  # it ends with this command, and the cleaner would ask a dashboard that is not there
            useless.append(PlacementGroupCleanerCallback)
        useful = [one for one in super()._create_default_callbacks() if not isinstance(one, tuple(useless))]
        return [*useful, *([self.starts] if self.starts is not None else [])]


@contextmanager
def _notices() -> Iterator[None]:
    """Have Ray Train watch for nodes that are given notice, which it does unless told; not on a Ray of our own."""
    if not is_own() or ENABLE_PREEMPTION_WATCHER_ENV_VAR in os.environ:
        yield
        return
    os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"
    try:
        yield
    finally:
        os.environ.pop(ENABLE_PREEMPTION_WATCHER_ENV_VAR, None)


def scaling(cluster: ClusterConfig) -> ray.train.ScalingConfig:
    """What is asked of Ray for the workers."""
    each = {"CPU": cluster.cpus_per_worker}
    if cluster.use_gpu:
        each["GPU"] = cluster.gpus_per_worker
    return ray.train.ScalingConfig(num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker=each)


def _call(config: dict[str, Any]) -> None:
    module, _, function = config["loop"].partition(":")
    getattr(importlib.import_module(module), function)(config["task"])


def _what_failed(error: Exception, cluster: ClusterConfig) -> str:
    failures = getattr(error, "worker_failures", {})
    rank, cause = next(iter(failures.items()), (None, error))
    who = f"worker {rank}" if rank is not None else "the training controller"
    return (
        f"training stopped: {who} failed and cluster.max_failures is {cluster.max_failures} ({what_it_says(cause)}); "
        "run the same command again to go on from the last checkpoint"
    )
