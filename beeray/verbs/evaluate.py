"""What `beeray.evaluate` does: score an encoder on a config's held-out data."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beeray.config import Config, EncoderConfig
from beeray.console import Console
from beeray.core.encoder_files import encoder_source
from beeray.data.growth import STRANGE, said_of, said_without_note, trained_on_before
from beeray.data.preparation import store_fingerprint
from beeray.data.report_items import ORIGINAL, REPORT_FOLDER, TRAINED
from beeray.data.scored import SEEN, TRAINED_ON_VALIDATION
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import ConfigError, RunError
from beeray.inputs import located_encoder, prepared_store
from beeray.runtime.events import EventHandler
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.launch import launch_scoring
from beeray.runtime.lineage import learned_validation, run_of
from beeray.runtime.opening import Opening
from beeray.runtime.results import (
    flat_means,
    headline,
    neighbours_line,
    scores_table,
    summarise_neighbours,
    summarise_scores,
    summarise_workers,
)
from beeray.runtime.run_folder import ITEMS, RunFolder
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.tracked_evaluation import track_evaluation
from beeray.runtime.warm_start import check_model_prefix
from beeray.verbs.report import choose_report_items, refresh_report

if TYPE_CHECKING:
    import pyarrow as pa

UNTOUCHED = "untouched"
KEPT_AS = {UNTOUCHED: ORIGINAL, "model": TRAINED}
"""Under which name an encoder's embeddings of the report's items are kept, by its label."""


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Score one encoder; leaves `runs/<name>/evaluations/<label>-<text length>/` with metrics and per-user scores.

    Args:
        arguments: `model`, as `chosen_model` takes it; `store_fingerprint`, where the store is not to be prepared anew
            whatever its tables are now (as `opened_store`).
    """
    check_outlives_job(config, "runs_dir", "data.store")
    started = time.monotonic()
    check_scored(config)
    with storage_options(config.storage):
        label, model = chosen_model(config, arguments.model)
        check_model_prefix(config, model, f"--model {arguments.model!r}" if arguments.model else f"run {config.name!r}")
        chosen = config
        config = config.model_copy(update={"encoder": _named(config.encoder, model)})
        opening = Opening(config)
    with ray_session(config.cluster, config.storage):
        opening.check()
        check_placement(config.cluster)
        store = opened_store(config, getattr(arguments, "store_fingerprint", None), console)
        tokens_path = opening.tokens_path(store, console)
        console.line(f"evaluate {model} at {config.served_seq_length} tokens a text")
        trained_on = held_out_but_trained_on(config, model, store, console)
        handler = _launched(chosen, config, label, store, tokens_path, console)
    scores, measured = _measured(handler, config)
    record = {
        "model": model,
        "store_fingerprint": store.meta.fingerprint,
        **RunFolder(config).meaning(store.meta.fingerprint, _learned_validation(model, trained_on)),
        **trained_on,
        "text_length": config.served_seq_length,
        **measured,
        "seconds": round(time.monotonic() - started, 1),
    }
    kept = handler.neighbours_kept()
    if kept is not None:
        original = chosen.encoder.name
        record["neighbours_kept"] = summarise_neighbours(kept, config.evaluate, original, store.meta.num_items)
    label = f"{label}-{config.served_seq_length}"
    record = RunFolder(config).keep_evaluation(label, scores, record)
    _tell(config, label, record, console)
    report = refresh_report(chosen, console)
    if report is not None:
        console.line(f"report: {os.path.relpath(report)}")
    return record


def check_scored(config: Config) -> None:
    """Refuse a config by which nothing is scored; ConfigError."""
    if not config.evaluate.splits:
        raise ConfigError("evaluate.splits is empty: there is nothing to score; give validation, test or both")


def _launched(
    chosen: Config, config: Config, label: str, store: Store, tokens_path: str, console: Console
) -> EventHandler:
    """Have workers score an encoder, which is that of `config`; of `chosen` it is the one as configured."""
    keep_as = _kept_as(config, label) if choose_report_items(config, store, console) else ""
    return launch_scoring(
        "beeray.runtime.worker:evaluate_worker",
        config,
        store,
        tokens_path,
        config.encoder.name,
        console,
        run_dir=str(config.run_dir),
        keep_as=keep_as,
        old_items=RunFolder(config).old_items_of(store.meta.fingerprint),
        **_original(chosen, store, console),
    )


def _measured(handler: EventHandler, config: Config) -> tuple[pa.Table, dict[str, Any]]:
    """Scores of every user, and what they come to, with what that took.

    Raises:
        RunError: the scores were lost.
    """
    scores = handler.scores("model")
    if not scores:
        raise RunError("evaluate: the workers' scores were lost with their node; run the same command again")
    return scores_table(scores), {
        "metrics": summarise_scores(scores, config.evaluate),
        "timings": handler.timings.get("model", {}),
        **summarise_workers(handler.workers()),
    }


def _tell(config: Config, label: str, record: dict[str, Any], console: Console) -> None:
    """Log what was measured to MLflow, and say it."""
    metrics = record["metrics"]
    trouble = track_evaluation(config, label, Path(record["scores"]).parent, flat_means(metrics), "evaluation")
    if trouble is not None:
        console.line(f"warning: {trouble}")
    for line in headline(metrics, config, record.get(TRAINED_ON_VALIDATION)):
        console.line(line)
    if "neighbours_kept" in record:
        console.line(neighbours_line(record["neighbours_kept"]))


def held_out_but_trained_on(config: Config, model: str, store: Store, console: Console) -> dict[str, Any]:
    """How much of what is asked for a run's encoder was trained on, for the record; says so where there is any.

    Of an encoder that no run left nothing is known, and nothing is said.
    """
    run = run_of(model)
    if run is None:
        return {}
    items, kind = run / ITEMS, store.meta.split_kind
    counts, growth = trained_on_before(store, str(items) if items.is_file() else None)
    strange = growth.said_of_strange(kind) if growth is not None else ""
    if strange:
        console.line(f"{run}: {strange}")
    told = {STRANGE: list(growth.strange)} if growth is not None and growth.strange else {}
    if counts is None:
        if growth is None or len(growth.strange) < len(store.meta.domains):
            console.line(f"{run} {said_without_note(kind)}")
        return told
    counts = {split: number for split, number in counts.items() if split in config.evaluate.splits}
    seen = said_of(counts, kind)
    if seen:
        console.line(f"warning: {seen}, which flatters its figures")
    return {SEEN: counts, **told}


def _learned_validation(model: str, trained_on: dict[str, Any]) -> bool | None:
    """As `learned_validation`, of the store that is scored on: a run on another may have learned from that one's alone.

    Not known where the run's store named other domains, in which an item may have had another text.

    Args:
        trained_on: what `held_out_but_trained_on` found.
    """
    seen = trained_on.get(SEEN, {}).get("validation")
    if STRANGE in trained_on and not seen:
        return None
    return False if seen == 0 else learned_validation(model)


def opened_store(config: Config, pinned: str | None, console: Console) -> Store:
    """The store to score on.

    Args:
        pinned: fingerprint of the one that is asked for, whatever the tables are now; None for the one that they give.

    Raises:
        RunError: the pinned one is not there, and the tables no longer give it.
    """
    if pinned is None:
        return prepared_store(config, console)[0]
    if Store.is_at(config.store_path, pinned):
        return Store.open(config.store_path)
    if store_fingerprint(config) != pinned:
        raise RunError(
            f"store {config.store_path!r}: run {config.name!r} was trained on {pinned}, which is no longer there, and "
            "its tables have changed since; run the same command again"
        )
    return prepared_store(config, console)[0]


def _named(encoder: EncoderConfig, model: str) -> EncoderConfig:
    return encoder.model_copy(update={"name": model, "revision": encoder.revision_of(model)})


def _original(chosen: Config, store: Store, console: Console) -> dict[str, str | None]:
    """What workers need to tell how many neighbours under the config's own encoder are kept; nothing unless asked."""
    if not chosen.evaluate.neighbours:
        return {}
    tokens_path = Opening(chosen).tokens_path(store, console)
    return {
        "original": located_encoder(chosen.encoder.name),
        "original_revision": chosen.encoder.revision,
        "original_tokens_path": tokens_path,
    }


def _kept_as(config: Config, label: str) -> str:
    """The name under which this evaluation keeps embeddings for the report; empty: none are lacking."""
    name = KEPT_AS.get(label, "")
    if name == ORIGINAL and _begun_with_another(config):
        return ""
    return name if name and not (config.run_dir / REPORT_FOLDER / f"{name}.npy").is_file() else ""


def _begun_with_another(config: Config) -> bool:
    """Whether "before training" was an encoder of `train.init_from`, by what the run noted when it began."""
    begun = RunFolder(config).begun_with()
    return config.train.init_from is not None if begun is None else begun[1] is not None


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
        name = encoder_source(located_encoder(asked))
        return f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}", name
    folder = RunFolder(config)
    if not folder.model.is_dir():
        raise RunError(
            f"run {config.name!r}: {folder.model} is not there, so the run is not finished; "
            "train it, or give --model PATH (or --model untouched for the encoder before training)"
        )
    folder.check_store(store_fingerprint(config))
    return "model", str(folder.model)
