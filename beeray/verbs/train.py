"""What `beeray.train` does: store, token store, workers, export, scores, tracking; and how it resumes."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.console import Console
from beeray.data.parts import write_part
from beeray.data.preparation import store_fingerprint
from beeray.data.sources import open_source
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import DataError, RunError
from beeray.inputs import located_encoder, open_tokenizer, prepared_store, token_store
from beeray.runtime.events import EventHandler
from beeray.runtime.launch import launch, user_dataset
from beeray.runtime.monitor import listening
from beeray.runtime.results import flat_means, headline, scores_table, summarise_scores, summarise_training
from beeray.runtime.run_folder import CHECKPOINTS, RunFolder
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.startup import Startup
from beeray.runtime.steps import plan_steps
from beeray.runtime.task import WorkerTask
from beeray.runtime.tracking import Tracker
from beeray.verbs.report import choose_report_items, refresh_report


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train a config to its end, from wherever its run folder stands; returns what was made and measured."""
    folder, startup = RunFolder(config), Startup()
    startup.reached("imports")
    with folder.locked(), storage_options(config.storage):
        if not arguments.fresh:
            folder.check_config()
            if folder.begun:
                folder.check_store(store_fingerprint(config, open_source(config.data)))
            finished = folder.finished()
            if finished is not None:
                console.line(f"run {config.name!r} in {folder.path} is finished already; --fresh starts it over")
                _show(console, finished, config)
                return finished
        opened = ThreadPoolExecutor(1).submit(open_tokenizer, config)  # imports torch, while Ray starts
        with ray_session(config.cluster, config.storage):
            tokenizer = opened.result()  # what is wrong with the encoder is told before anything is prepared
            check_placement(config.cluster)
            startup.reached("ray")
            store, _ = prepared_store(config, console)
            startup.reached("store")
            tokens_path = token_store(config, store, tokenizer, console)
            inputs = TrainInputs(store, tokens_path, users_per_rank(config, store))
            startup.reached("tokens")
            if arguments.fresh:
                folder.clear()
            folder.claim(store.meta.fingerprint)
            choose_report_items(config, store, console)
            record = train_run(config, folder, inputs, console, startup)
        _show(console, record, config)
        return record


@dataclass(frozen=True)
class TrainInputs:
    """What a run trains on.

    Attributes:
        store: the prepared store.
        tokens_path: the token store of its encoder.
        users_per_rank: training users of one worker in an epoch.
        beside_others: other runs stream their users at the same time.
    """

    store: Store
    tokens_path: str
    users_per_rank: int
    beside_others: bool = False


def users_per_rank(config: Config, store: Store) -> int:
    """Training users of each worker; raises DataError where there are none."""
    users = store.num_training_users(config.trains_on_validation) // config.cluster.num_workers
    if users < 1:
        raise DataError(
            f"store {store.path}: {store.num_training_users(config.trains_on_validation)} users with two or more "
            f"trainable items do not suffice for cluster.num_workers {config.cluster.num_workers}; lower it"
        )
    return users


def train_run(
    config: Config,
    folder: RunFolder,
    inputs: TrainInputs,
    console: Console,
    startup: Startup,
    tracking: type[Tracker] = Tracker,
    handling: Callable[..., EventHandler] = EventHandler,
) -> dict[str, Any]:
    """Train in a folder that was claimed, to the end; returns what was measured.

    Args:
        tracking: what logs the run.
        handling: makes what hears of the workers' progress; takes the arguments of `EventHandler`.
    """
    started = time.monotonic()
    per_epoch, num_steps = plan_steps(config, inputs.users_per_rank)
    console.line(
        f"train {config.name}: {config.encoder.name}, {num_steps:,} steps ({per_epoch:,} an epoch) of "
        f"{config.train.batch_size:,} users and {config.train.max_output} items on {config.cluster.num_workers} "
        f"worker{'s' if config.cluster.num_workers > 1 else ''}, ZeRO-{config.deepspeed.stage}"
    )
    with tracking(config, folder.path) as tracker:
        tracker.check()
        handler = handling(
            console,
            inputs.store.meta.num_items,
            config.cluster.num_workers,
            folder=folder,
            tracker=tracker,
            scored=lambda when: _keep_before(config, folder, handler) if when == "before" else None,
            startup=startup,
        )
        handler.track(folder.steps())  # what a killed driver did not get to log
        with listening(handler) as monitor:
            result = launch(
                "beeray.runtime.training:train_worker",
                WorkerTask(
                    config,
                    inputs.store.path,
                    inputs.tokens_path,
                    monitor,
                    num_users=inputs.users_per_rank,
                    model=located_encoder(config.encoder.name),
                    run_dir=str(folder.path),
                ),
                storage=folder.path,
                name=CHECKPOINTS,
                users=user_dataset(inputs.store, config.trains_on_validation, beside_others=inputs.beside_others),
                keep_checkpoints=config.train.keep_checkpoints,
            )
        handler.close()
        if handler.failure is not None:
            raise RunError(handler.failure)
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as exported:
            folder.take_model(Path(exported) / "model")
        record = _report(config, folder, inputs, handler)
        record["wall_s"] = round(time.monotonic() - started, 1)
        folder.finish(record)  # from here on nothing that goes wrong with report or tracking costs the run
        report = refresh_report(config, console)
        if report is not None:
            record["report"] = str(report)
        _track(config, folder, tracker, record)
    record["mlflow_run_id"] = tracker.run_id
    if tracker.trouble:
        console.line(f"warning: {tracker.trouble}; what was measured is in {folder.metrics}")
    folder.finish(record)
    return record


def _keep_before(config: Config, folder: RunFolder, handler: EventHandler) -> None:
    scores = handler.scores("before")
    write_part(scores_table(scores), str(folder.path / "scores-before.parquet"))
    folder.keep_before(summarise_scores(scores, config.evaluate))


def _report(config: Config, folder: RunFolder, inputs: TrainInputs, handler: EventHandler) -> dict[str, Any]:
    after = handler.scores("after")
    if after:
        write_part(scores_table(after), str(folder.scores))
    record = {
        "run": config.name,
        "folder": str(folder.path),
        "model": str(folder.model),
        "config_digest": config.result_digest(),
        "store_fingerprint": inputs.store.meta.fingerprint,
        "text_length": config.served_seq_length,
        "metrics": summarise_scores(after, config.evaluate),
        "training": summarise_training(folder.steps(), handler.workers()),
        "timings": handler.timings,
        **({"head": handler.head} if handler.head is not None else {}),
        "startup_s": handler.startup.record(),
    }
    if handler.profile is not None:
        record["profile"] = handler.profile
    before, validation = folder.before(), folder.validation()
    if before is not None:
        record["metrics_before"] = before
    if validation:
        record["validation"] = validation
    return record


def _track(config: Config, folder: RunFolder, tracker: Tracker, record: dict[str, Any]) -> None:
    steps = record["training"]["steps"]
    tracker.log_metrics({f"final/{name}": value for name, value in flat_means(record["metrics"]).items()}, steps)
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
    for line in headline(record["metrics"], config):
        console.line(line)
    if "profile" in record:
        console.line(f"profile: {os.path.relpath(record['profile'])}")
    if "report" in record:
        console.line(f"report: {os.path.relpath(record['report'])}")
    console.line(f"model: {os.path.relpath(record['model'])}")
