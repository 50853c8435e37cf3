"""What `beeray.evaluate` does: score an encoder on a config's held-out data."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.console import Console
from beeray.core.encoder import encoder_source
from beeray.data.parts import write_part
from beeray.data.preparation import store_fingerprint
from beeray.data.sources import open_source
from beeray.data.storage import storage_options
from beeray.errors import ConfigError, RunError
from beeray.inputs import located_encoder, open_tokenizer, prepared_store, token_store
from beeray.runtime.events import EventHandler
from beeray.runtime.launch import launch
from beeray.runtime.monitor import listening
from beeray.runtime.results import (
    headline,
    neighbours_line,
    scores_table,
    summarise_neighbours,
    summarise_scores,
    summarise_workers,
)
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.task import WorkerTask

UNTOUCHED = "untouched"


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Score one encoder; leaves `runs/<name>/evaluations/<label>-<text length>/` with metrics and per-user scores."""
    started = time.monotonic()
    if not config.evaluate.splits:
        raise ConfigError("evaluate.splits is empty: there is nothing to score; give validation, test or both")
    with storage_options(config.storage):
        label, model = chosen_model(config, arguments.model)
    wanted, untouched = config, located_encoder(config.encoder.name)
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"name": model})})
    tokenizer = open_tokenizer(config)
    with ray_session(config.cluster, config.storage):
        check_placement(config.cluster)
        store, _ = prepared_store(config, console)
        tokens_path = token_store(config, store, tokenizer, console)
        console.line(f"evaluate {model} at {config.served_seq_length} tokens a text")
        handler = EventHandler(console, store.meta.num_items, config.cluster.num_workers)
        with tempfile.TemporaryDirectory(prefix="beeray-evaluate-") as storage, listening(handler) as monitor:
            task = WorkerTask(
                config,
                store.path,
                tokens_path,
                monitor,
                model,
                old_items=RunFolder(config).old_items_of(store.meta.fingerprint),
            )
            if config.evaluate.neighbours:
                theirs = token_store(wanted, store, open_tokenizer(wanted), console)
                task = replace(task, original=untouched, original_tokens_path=theirs)
            launch("beeray.runtime.worker:evaluate_worker", task, storage=Path(storage), name="evaluate")
        handler.close()
    scores = handler.scores("model")
    if not scores:
        raise RunError("evaluate: the workers' scores were lost with their node; run the same command again")
    metrics = summarise_scores(scores, config.evaluate)
    folder = config.run_dir / "evaluations" / f"{label}-{config.served_seq_length}"
    folder.mkdir(parents=True, exist_ok=True)
    write_part(scores_table(scores), str(folder / "scores.parquet"))
    record = {
        "model": model,
        "store_fingerprint": store.meta.fingerprint,
        "text_length": config.served_seq_length,
        "metrics": metrics,
        "scores": str(folder / "scores.parquet"),
        "timings": handler.timings.get("model", {}),
        **summarise_workers(handler.workers()),
        "seconds": round(time.monotonic() - started, 1),
    }
    kept = handler.neighbours_kept()
    if kept is not None:
        record["neighbours_kept"] = summarise_neighbours(kept, config.evaluate)
    (folder / "metrics.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    for line in headline(metrics, config):
        console.line(line)
    if kept is not None:
        console.line(neighbours_line(record["neighbours_kept"]))
    return record


def chosen_model(config: Config, asked: str | None) -> tuple[str, str]:
    """Label and name of the encoder to score.

    Args:
        asked: a folder or hub name; `untouched` for the config's own encoder; None for what the run trained.

    Raises:
        RunError: the run has no model yet, or was trained on another store or split.
    """
    if asked == UNTOUCHED:
        return UNTOUCHED, located_encoder(config.encoder.name)
    if asked is not None:
        name = located_encoder(encoder_source(asked))
        return f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}", name
    folder = RunFolder(config)
    if not folder.model.is_dir():
        raise RunError(
            f"run {config.name!r}: {folder.model} is not there, so the run is not finished; "
            "train it, or give --model PATH (or --model untouched for the encoder before training)"
        )
    folder.check_store(store_fingerprint(config, open_source(config.data)))
    return "model", str(folder.model)
