"""What `beeray.train` does: store, token store, workers, export, scores, tracking; and how it resumes."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from beeray.config import Config
from beeray.console import Console
from beeray.data.preparation import store_fingerprint
from beeray.data.report_items import REPORT_FOLDER
from beeray.data.scored import TRAINED_ON_VALIDATION
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import DivergedError, LostWorkersError, NotFiniteError, RunError
from beeray.inputs import prepared_store
from beeray.interruption import Interrupted, StopRequest, signals_handled
from beeray.reporting.neighbours import neighbours_kept
from beeray.runtime.events import EventHandler
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.known_checkpoints import mend_checkpoints
from beeray.runtime.launch import launch, user_datasets
from beeray.runtime.monitor import Outbox, listening
from beeray.runtime.recovery import Recovery
from beeray.runtime.results import (
    flat_means,
    headline,
    neighbours_line,
    summarise_neighbours,
)
from beeray.runtime.run_folder import CHECKPOINTS, RunFolder
from beeray.runtime.run_record import keep_before, run_record
from beeray.runtime.run_start import TrainInputs, begin_run, opening_of
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.shared_folder import marked
from beeray.runtime.startup import Startup
from beeray.runtime.steps import plan_steps
from beeray.runtime.task import WorkerTask
from beeray.runtime.tracking import Tracker
from beeray.runtime.warm_start import check_peft, find_warm_start
from beeray.verbs.report import choose_report_items, refresh_report

if TYPE_CHECKING:
    import ray.train

TRACKED = "mlflow_run_id"
"""What a record has once the run is over in MLflow too (None where nothing is tracked)."""


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train a config to its end, from wherever its run folder stands; returns what was made and measured."""
    check_outlives_job(config, "runs_dir", "data.store")
    check_peft(config)
    folder, startup = RunFolder(config), Startup()
    startup.reached("imports")
    with folder.locked(), storage_options(config.storage):
        if not arguments.fresh:
            folder.check_config()
            if folder.begun:
                folder.check_store(store_fingerprint(config))
            finished = folder.finished()
            if finished is not None:
                console.line(f"run {config.name!r} in {folder.path} is finished already; --fresh starts it over")
                finished = tracked_later(config, folder, finished, console)
                _show(console, finished, config)
                return finished
        warm = find_warm_start(config)
        opening = opening_of(config, warm)
        with ray_session(config.cluster, config.storage):
            opening.check()  # what is wrong with it is told before anything is prepared
            check_placement(config.cluster)
            startup.reached("ray")
            store, _ = prepared_store(config, console)
            startup.reached("store")
            tokens_path = opening.tokens_path(store, console)
            startup.reached("tokens")
            inputs = begin_run(
                config,
                folder,
                store,
                tokens_path,
                console,
                warm=warm,
                fingerprint=opening.fingerprint(),
                fresh=arguments.fresh,
            )
            choose_report_items(config, store, console)
            record = train_run(config, folder, inputs, console, startup)
        _show(console, record, config)
        return record


def train_run(
    config: Config,
    folder: RunFolder,
    inputs: TrainInputs,
    console: Console,
    startup: Startup,
    tracking: type[Tracker] = Tracker,
    handling: Callable[..., EventHandler] = EventHandler,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train in a folder that was claimed, to the end; returns what was measured.

    Args:
        tracking: what logs the run.
        handling: makes what hears of the workers' progress; takes the arguments of `EventHandler`.
        stopping: whether somebody else than a signal wants it to stop; it does as at a signal.

    Raises:
        Interrupted: it was asked to stop, and has saved a checkpoint; says how far it came.
    """
    started = time.monotonic()
    per_epoch, num_steps = plan_steps(config, inputs.shares, inputs.num_shards)
    console.line(
        f"train {config.name}: {config.begins_with}, {num_steps:,} steps ({per_epoch:,} an epoch) of "
        f"{config.train.batch_size:,} users and {config.train.max_output} items on {config.cluster.num_workers} "
        f"worker{'s' if config.cluster.num_workers > 1 else ''}, ZeRO-{config.deepspeed.stage}"
    )
    with tracking(config, folder.path) as tracker:
        tracker.check()
        handler: EventHandler = handling(
            console,
            inputs.store.meta.num_items,
            config.cluster.num_workers,
            folder=folder,
            tracker=tracker,
            scored=lambda when: keep_before(config, folder, handler) if when == "before" else None,
            startup=startup,
        )
        handler.track(folder.steps())  # what a killed driver did not get to log
        stop = StopRequest(lambda: handler.saves_when_stopped)
        with listening(handler, lambda: stop.asked or stopping()) as monitor, signals_handled(stop):
            result = _run_workers(config, folder, inputs, monitor, console)
        handler.close()
        if handler.refused is not None:
            raise RunError(handler.refused)
        if handler.failure is not None:
            said = handler.failure + _blamed(folder, inputs.store, handler.not_finite)
            raise DivergedError(said) if handler.diverged else NotFiniteError(said)
        if handler.stopped_after is not None:
            raise Interrupted(stop.signum or signal.SIGTERM, _how_far(handler.stopped_after, num_steps))
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as exported:
            folder.take_model(Path(exported) / "model")
        record = run_record(config, folder, inputs, handler, _neighbours_kept(config, folder, inputs, handler))
        record["wall_s"] = round(time.monotonic() - started, 1)
        folder.finish(record)  # from here on nothing that goes wrong with report or tracking costs the run
        _report_and_track(config, folder, tracker, record, console)
    return _concluded(folder, tracker, record, console)


def tracked_later(config: Config, folder: RunFolder, record: dict[str, Any], console: Console) -> dict[str, Any]:
    """Do what a kill left undone between a finished run's end on disk and in MLflow; returns the whole record."""
    if TRACKED in record:
        return record
    with Tracker(config, folder.path) as tracker:
        EventHandler(console, 0, 0, tracker=tracker).track(folder.steps())
        _report_and_track(config, folder, tracker, record, console)
    return _concluded(folder, tracker, record, console)


def _concluded(folder: RunFolder, tracker: Tracker, record: dict[str, Any], console: Console) -> dict[str, Any]:
    """The record with the id of its MLflow run, by which a later command knows that nothing is left to do."""
    record = {**record, TRACKED: tracker.run_id}
    if tracker.trouble:
        console.line(f"warning: {tracker.trouble}; what was measured is in {folder.metrics}")
    folder.original_embeddings.unlink(missing_ok=True)  # as large as a catalog's embeddings, and not needed again
    folder.finish(record)
    return record


def _run_workers(
    config: Config, folder: RunFolder, inputs: TrainInputs, monitor: Any, console: Console
) -> ray.train.Result:
    """Have workers train from the newest whole checkpoint to the end, or until they are asked to stop.

    Raises:
        LostWorkersError: all were lost more often than `cluster.max_failures` allows.
    """
    recovery = Recovery(config.cluster, console)
    with marked(folder.path) as marker:
        task = WorkerTask(
            config,
            inputs.store,
            inputs.tokens_path,
            monitor,
            shares=inputs.shares,
            num_shards=inputs.num_shards,
            model=inputs.model,
            run_dir=str(folder.path),
            marker=marker,
            old_items=folder.old_items_of(inputs.store.meta.fingerprint),
        )
        lost = Outbox(monitor)
        while True:
            mend_checkpoints(folder.path / CHECKPOINTS)
            try:
                return launch(
                    "beeray.runtime.training:train_worker",
                    task,
                    storage=folder.path,
                    name=CHECKPOINTS,
                    users=user_datasets(inputs.store, inputs.shares, inputs.num_shards, config.trains_on_validation),
                    keep_checkpoints=config.train.keep_checkpoints,
                )
            except LostWorkersError as error:
                with suppress(ray.exceptions.RayError):
                    lost.send({"kind": "lost"})
                    lost.wait()  # before the next workers tell anything
                recovery.go_on(error, "from the last checkpoint")


def _blamed(folder: RunFolder, store: Store, found: dict[str, Any] | None) -> str:
    """Write down what made a loss no number, and say where; nothing where no loss did."""
    if found is None:
        return ""
    path = folder.keep_not_finite(
        {
            "step": found["step"],
            "item_ids": store.item_ids().take(pa.array(found["items"], pa.int64())).to_pylist(),
            "user_ids": store.user_ids(found["users"]),
        }
    )
    return (
        f". Embeddings of {len(found['items']):,} of its {found['num_items']:,} items are no numbers, and losses of "
        f"{len(found['users']):,} of its {found['num_users']:,} users: {os.path.relpath(path)} has their ids. The "
        "checkpoint before it is kept"
    )


def _how_far(step: int, num_steps: int) -> str:
    return f"stopped after step {step:,} of {num_steps:,}, with a checkpoint"


def _neighbours_kept(
    config: Config, folder: RunFolder, inputs: TrainInputs, handler: EventHandler
) -> dict[str, Any] | None:
    """Of the whole catalog where that was measured; else among the report's items, whose embeddings are there."""
    kept, among = handler.neighbours_kept(), inputs.store.meta.num_items
    if kept is None and config.evaluate.neighbours is None:
        kept = neighbours_kept(folder.path / REPORT_FOLDER, config.evaluate.neighbours_at)
        among = 0 if kept is None else len(kept)
    return None if kept is None else summarise_neighbours(kept, config.evaluate, config.begins_with, among)


def _report_and_track(
    config: Config, folder: RunFolder, tracker: Tracker, record: dict[str, Any], console: Console
) -> None:
    report = refresh_report(config, console)
    if report is not None:
        record["report"] = str(report)
    steps = record["training"]["steps"]
    tracker.log_metrics({f"final/{name}": value for name, value in flat_means(record["metrics"]).items()}, steps)
    if "neighbours_kept" in record:
        tracker.log_metrics({"final/neighbours_kept": record["neighbours_kept"]["mean"]}, steps)
    measured = {f"training/{name}": value for name, value in record["training"].items()}
    tracker.log_metrics({name: float(value) for name, value in measured.items()}, steps)
    tracker.log_artifact(folder.path / "config.yaml")
    if folder.scores.is_file():
        tracker.log_artifact(folder.scores)
    if "report" in record:
        tracker.log_artifact(Path(record["report"]))
    if config.tracking.log_model:
        tracker.log_model(folder.model)


def _show(console: Console, record: dict[str, Any], config: Config) -> None:
    for line in headline(record["metrics"], config, record.get(TRAINED_ON_VALIDATION)):
        console.line(line)
    if "neighbours_kept" in record:
        console.line(neighbours_line(record["neighbours_kept"]))
    if "profile" in record:
        console.line(f"profile: {os.path.relpath(record['profile'])}")
    if "report" in record:
        console.line(f"report: {os.path.relpath(record['report'])}")
    console.line(f"model: {os.path.relpath(record['model'])}")
