"""Starting Ray Train workers: resources, data split, storage, retries, and what their failure means."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.data
import ray.train

from beeray.config import ClusterConfig, Config
from beeray.console import Console
from beeray.data.storage import resolve
from beeray.data.store import INTERACTION_COLUMNS, Store, training_rows
from beeray.data.streaming import find_cause, set_up_ray_data
from beeray.errors import RunError
from beeray.runtime.events import EventHandler
from beeray.runtime.monitor import listening
from beeray.runtime.steps import UserShare
from beeray.runtime.task import WorkerTask

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

READERS_BESIDE_OTHERS = 2
"""Tasks of one run that read users at once, where no CPUs bound them."""


def user_datasets(
    store: Store, shares: Sequence[UserShare], with_validation: bool, *, beside_others: bool = False
) -> dict[str, ray.data.Dataset]:
    """Each domain's users with their trainable items, streamed.

    Args:
        beside_others: other runs stream at the same time. Ray Data deals the CPUs that are left to the datasets that
            are being read, in whole ones, and reads nothing of one whose part is 0; so nothing is asked for then.
    """
    set_up_ray_data()
    return {
        share.dataset: _user_dataset(store, share.domain, with_validation, beside_others=beside_others)
        for share in shares
    }


def _user_dataset(store: Store, domain: int, with_validation: bool, *, beside_others: bool) -> ray.data.Dataset:
    """One domain's users; kept in order so that a split is repeatable."""
    asking: dict[str, float] = {"num_cpus": 0, "concurrency": READERS_BESIDE_OTHERS} if beside_others else {}
    paths = store.user_paths(store.meta.domains[domain])
    users = ray.data.read_parquet(  # blocks as the store has them: left to Ray Data, they follow the number of CPUs
        [resolve(path)[1] for path in paths],
        filesystem=resolve(store.path)[0],
        columns=["user_index", *INTERACTION_COLUMNS],
        override_num_blocks=len(paths),
        **asking,
    )
    return users.map_batches(
        training_rows,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"with_validation": with_validation},
        **(asking or {"num_cpus": 0.25}),
    )


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
    """
    handler = EventHandler(console, store.meta.num_items, config.cluster.num_workers)
    with tempfile.TemporaryDirectory(prefix="beeray-scoring-") as storage, listening(handler) as monitor:
        task = WorkerTask(config, store.path, tokens_path, monitor, model, **given)
        launch(loop, task, storage=Path(storage), name="scoring")
    handler.close()
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
        users: training users, a dataset a domain, each split among the workers.
        keep_checkpoints: older ones are deleted.

    Raises:
        BeerayError: what a worker raised for the user, or that workers died too often.
    """
    cluster = task.config.cluster
    split = ray.train.DataConfig(
        datasets_to_split=list(users or {}),
        execution_options=ray.data.ExecutionOptions(preserve_order=True),
    )
    trainer = _trainer_type()(
        _call,
        train_loop_config={"loop": loop, "task": task},
        scaling_config=scaling(cluster),
        datasets=dict(users or {}),
        dataset_config=split,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep_checkpoints),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        ours = find_cause(error)
        if ours is not None:
            raise ours from None
        raise RunError(_what_failed(error, cluster)) from error


def _trainer_type() -> type[TorchTrainer]:
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """Leaves signals to this command: Ray Train's own handler aborts the workers and exits with 0."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    return Trainer


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
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    who = f"worker {rank}" if rank is not None else "the training controller"
    said = lines[-1][:300] if lines else repr(cause)
    return (
        f"training stopped: {who} failed and cluster.max_failures is {cluster.max_failures} ({said}); "
        "run the same command again to go on from the last checkpoint"
    )
