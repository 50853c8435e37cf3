"""What `beeray.train` does: store, token store, workers, export, scores, tracking; and how it resumes."""

from __future__ import annotations

import argparse
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.console import Console
from beeray.data.parts import write_part
from beeray.data.preparation import store_fingerprint
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import RunError
from beeray.inputs import located_encoder, open_tokenizer, prepared_store, token_store
from beeray.interruption import Interrupted, StopRequest, signals_handled
from beeray.runtime.events import EventHandler
from beeray.runtime.launch import launch, user_datasets
from beeray.runtime.monitor import listening
from beeray.runtime.results import flat_means, headline, scores_table, summarise_scores, summarise_training
from beeray.runtime.run_folder import CHECKPOINTS, RunFolder
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.startup import Startup
from beeray.runtime.steps import UserShare, plan_steps, user_shares
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
                folder.check_store(store_fingerprint(config))
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
            inputs = _Inputs(store, tokens_path, tuple(user_shares(config, store)))
            startup.reached("tokens")
            if arguments.fresh:
                folder.clear()
            folder.claim(store.meta.fingerprint)
            choose_report_items(config, store, console)
            record = _train(config, folder, inputs, console, startup)
        _show(console, record, config)
        return record


@dataclass(frozen=True)
class _Inputs:
    store: Store
    tokens_path: str
    shares: tuple[UserShare, ...]


def _train(config: Config, folder: RunFolder, inputs: _Inputs, console: Console, startup: Startup) -> dict[str, Any]:
    started = time.monotonic()
    per_epoch, num_steps = plan_steps(config, sum(share.num_drawn for share in inputs.shares))
    console.line(
        f"train {config.name}: {config.encoder.name}, {num_steps:,} steps ({per_epoch:,} an epoch) of "
        f"{config.train.batch_size:,} users and {config.train.max_output} items on {config.cluster.num_workers} "
        f"worker{'s' if config.cluster.num_workers > 1 else ''}, ZeRO-{config.deepspeed.stage}"
    )
    with Tracker(config, folder.path) as tracker:
        tracker.check()
        handler = EventHandler(
            console,
            inputs.store.meta.num_items,
            config.cluster.num_workers,
            folder=folder,
            tracker=tracker,
            scored=lambda when: _keep_before(config, folder, handler) if when == "before" else None,
            startup=startup,
        )
        handler.track(folder.steps())  # what a killed driver did not get to log
        stop = StopRequest(lambda: handler.saves_when_stopped)
        with listening(handler, lambda: stop.asked) as monitor, signals_handled(stop):
            result = launch(
                "beeray.runtime.training:train_worker",
                WorkerTask(
                    config,
                    inputs.store.path,
                    inputs.tokens_path,
                    monitor,
                    shares=inputs.shares,
                    model=located_encoder(config.encoder.name),
                    run_dir=str(folder.path),
                ),
                storage=folder.path,
                name=CHECKPOINTS,
                users=user_datasets(inputs.store, inputs.shares, config.trains_on_validation),
                keep_checkpoints=config.train.keep_checkpoints,
            )
        handler.close()
        if handler.failure is not None:
            raise RunError(handler.failure)
        if handler.stopped_after is not None:
            raise Interrupted(stop.signum or signal.SIGTERM, _how_far(handler.stopped_after, num_steps))
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


def _how_far(step: int, num_steps: int) -> str:
    return f"stopped after step {step:,} of {num_steps:,}, with a checkpoint"


def _keep_before(config: Config, folder: RunFolder, handler: EventHandler) -> None:
    scores = handler.scores("before")
    write_part(scores_table(scores), str(folder.path / "scores-before.parquet"))
    folder.keep_before(summarise_scores(scores, config.evaluate))


def _report(config: Config, folder: RunFolder, inputs: _Inputs, handler: EventHandler) -> dict[str, Any]:
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
