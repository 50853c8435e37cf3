"""What `beeray.baselines` does: fit and score what fine-tuning must beat, and show it beside the run's own model.

Each leaves `runs/<name>/evaluations/baseline-<which>/` of the form that `beeray.evaluate` leaves, and is not done again
while its settings, the evaluation and the store stay the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from beeray.config import BASELINES, WITHOUT_TEXT, Baseline, Config, config_digest
from beeray.console import ANEW, Console
from beeray.data.preparation import store_fingerprint
from beeray.data.scored import METRICS, SCORES, TRAINED_ON_VALIDATION, Scored, open_scored
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import ConfigError, RunError
from beeray.inputs import located_encoder, prepared_store
from beeray.runtime.comparison import Choice, compare
from beeray.runtime.comparison_table import comparison_text
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.launch import launch_scoring
from beeray.runtime.locks import locked_file
from beeray.runtime.opening import Opening
from beeray.runtime.rankings import rankings
from beeray.runtime.results import flat_means, headline, scores_table, summarise_scores, summarise_workers
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.tracked_evaluation import evaluation_tracked, track_evaluation
from beeray.verbs.evaluate import check_scored
from beeray.verbs.report import refresh_report

CANNOT_RANK_NEW_ITEMS = (
    "knows interactions alone: all items of the split's held_out ranking tie, and its figures there are the expected "
    "ones of a random order"
)


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Fit and score what is not there yet, then print all beside the run's own model."""
    check_outlives_job(config, "runs_dir", "data.store")
    asked = chosen(config, arguments.only)
    by_name = arguments.only is not None
    fingerprint, which, fitted = ensure(config, asked, console, fresh=arguments.fresh, by_name=by_name)
    comparison = compared(config, which, own_model(config, fingerprint, console), console)
    records = {name: kept(name, config, fingerprint) for name in which}
    refresh_report(config, console)
    return {"baselines": records, "fitted": fitted, **({"comparison": comparison} if comparison else {})}


def ensure(
    config: Config, which: list[Baseline], console: Console, *, fresh: bool = False, by_name: bool = False
) -> tuple[str, list[Baseline], list[Baseline]]:
    """Fit and score the baselines that are not there with these settings; all of them with `fresh`.

    Args:
        by_name: refuse what would not fit into memory; else it is left out, which a line says.

    Returns:
        fingerprint of the store, those of `which` that there are now, and what was fitted now.
    """
    check_scored(config)
    lock = config.run_dir.parent / "logs" / f"{config.name}-baselines.lock"
    with (
        locked_file(lock, f"run {config.name!r}: its baselines are being fitted by another command", "wait for it"),
        storage_options(config.storage),
    ):
        fingerprint = store_fingerprint(config)
        missing = [name for name in which if fresh or kept(name, config, fingerprint) is None]
        done = [name for name in which if name not in missing]
        if done:
            console.line(f"there already, with the same settings and store: {', '.join(done)} (--fresh does it again)")
        if fresh:
            for name in missing:  # so that the same command without --fresh goes on with those that are left
                (folder_of(name, config) / METRICS).unlink(missing_ok=True)
            console.again = ANEW
        left_out = _fit_and_score(config, missing, console, by_name) if missing else []
        there, fitted = ([name for name in names if name not in left_out] for names in (which, missing))
        _track(config, there, fingerprint, console)
    return fingerprint, there, fitted


def _track(config: Config, which: list[Baseline], fingerprint: str, console: Console) -> None:
    """Log each baseline that MLflow lacks, whoever scored it, as a run; one line where MLflow does not take them."""
    for name in which:
        if evaluation_tracked(folder_of(name, config)):
            continue
        record = kept(name, config, fingerprint)
        assert record is not None, name
        means = flat_means(record["metrics"])
        trouble = track_evaluation(config, _label(name), folder_of(name, config), means, "baseline")
        if trouble is not None:
            console.line(f"warning: {trouble}")
            return


def chosen(config: Config, only: str | None) -> list[Baseline]:
    """The baselines asked for, in the order of `BASELINES`; ConfigError names one that there is not."""
    names = only.split(",") if only is not None else list(config.baselines.which)
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r}: no such baseline; there are: {', '.join(BASELINES)}")
    return [name for name in BASELINES if name in names]


OBJECTIVE = {"loss", "temperature", "relu", "top_k", "negatives", "matryoshka_dims", "distill_weight", "init_from"}
"""What of `train` decides how a head on a frozen encoder is trained, and which rankings it is scored in."""


def folder_of(name: Baseline, config: Config) -> Path:
    """Where a baseline's scores go."""
    return RunFolder(config).evaluations / _label(name)


def _label(name: Baseline) -> str:
    return f"baseline-{name}"


def kept(name: Baseline, config: Config, fingerprint: str) -> dict[str, Any] | None:
    """The record of a baseline that was scored with these settings on this store; None if there is none."""
    folder = folder_of(name, config)
    try:
        record: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    same = record.get("digest") == digest(name, config, fingerprint)
    return record if same and (folder / SCORES).is_file() else None


def digest(name: Baseline, config: Config, fingerprint: str) -> str:
    """Digest of all that decides a baseline's scores."""
    irrelevant = {"users_per_block", "items_per_block", "before", "neighbours", "neighbours_at"}
    evaluate = config.evaluate.model_dump(mode="json", exclude=irrelevant)
    deciding: dict[str, Any] = {
        "baseline": name,
        "settings": config.baselines.settings_of(name),
        "evaluate": evaluate,
        "store_fingerprint": fingerprint,
        "with_validation": config.trains_on_validation,
        "seed": config.seed,
    }
    if "filtered" in rankings(config):
        deciding |= {"filtered": "dropped once ranked"}  # and not ranked alone, as by versions before
    if name not in WITHOUT_TEXT:
        encoder = config.encoder.model_dump(mode="json", exclude={"dropout", "attention"})
        deciding |= {"encoder": encoder, "precision": config.train.precision}
        further = {"matryoshka_dims", "init_from"}
        deciding |= config.train.model_dump(mode="json", include=OBJECTIVE if name == "frozen_head" else further)
    if name == "frozen_head":  # it learns from each domain's share of users
        weights = {domain: one.weight for domain, one in (config.data.domains or {}).items() if one.weight != 1}
        deciding |= {"weights": weights} if weights else {}
    return config_digest(deciding)


def _fit_and_score(config: Config, which: list[Baseline], console: Console, by_name: bool) -> list[Baseline]:
    """Returns those that were left out."""
    left_out: list[Baseline] = []
    opening = Opening(config) if set(which) - set(WITHOUT_TEXT) else None
    with ray_session(config.cluster, config.storage):
        if opening is not None:
            opening.check()
            check_placement(config.cluster)
        store, _ = prepared_store(config, console)
        without_text = [name for name in which if name in WITHOUT_TEXT]
        if without_text:
            left_out = _without_text(without_text, config, store, console, by_name)
        if opening is not None:
            tokens_path = opening.tokens_path(store, console)
            _of_encoder([name for name in which if name not in WITHOUT_TEXT], config, store, tokens_path, console)
    return left_out


def _without_text(
    which: list[Baseline], config: Config, store: Store, console: Console, by_name: bool
) -> list[Baseline]:
    from beeray.runtime.baselines import fit_and_score, too_large

    user_items = store.training_interactions(config.trains_on_validation)
    left_out = too_large(config.baselines, which, user_items)
    if left_out and by_name:
        raise next(iter(left_out.values()))
    for name, why in left_out.items():
        console.line(f"{name} is left out: {why}")
    for name in which:
        if name in left_out:
            continue
        scores, timings = fit_and_score(name, config, store, user_items, console)
        new_items = {"scores_new_items": False, "note": CANNOT_RANK_NEW_ITEMS}
        about = {"model": name, "text_length": None, **(new_items if store.meta.split_kind == "item" else {})}
        _keep(name, config, store, scores, {**about, "timings": timings}, console)
    return list(left_out)


def _of_encoder(which: list[Baseline], config: Config, store: Store, tokens_path: str, console: Console) -> None:
    model = located_encoder(config.encoder.name)
    config = config.model_copy(update={"baselines": config.baselines.model_copy(update={"which": tuple(which)})})
    old_items = RunFolder(config).old_items_of(store.meta.fingerprint)
    loop = "beeray.runtime.frozen:frozen_worker"
    handler = launch_scoring(loop, config, store, tokens_path, model, console, old_items=old_items)
    used = summarise_workers(handler.workers())
    for name in which:
        scores = handler.scores(name)
        if not scores:
            raise RunError("baselines: the workers' scores were lost with their node; run the same command again")
        about = {"model": model, "text_length": config.served_seq_length, "timings": handler.timings[name]}
        _keep(name, config, store, scores, {**about, **used}, console)


def _keep(name: Baseline, config: Config, store: Store, scores: Any, about: dict[str, Any], console: Console) -> None:
    metrics = summarise_scores(scores, config.evaluate)
    record = {
        "label": _label(name),
        **about,
        "settings": config.baselines.settings_of(name),
        "digest": digest(name, config, store.meta.fingerprint),
        "store_fingerprint": store.meta.fingerprint,
        **RunFolder(config).meaning(
            store.meta.fingerprint, config.trains_on_validation if name != "untouched" else None
        ),
        "metrics": metrics,
    }
    RunFolder(config).keep_evaluation(_label(name), scores_table(scores), record)
    for line in headline(metrics, config, record.get(TRAINED_ON_VALIDATION)):
        console.line(f"{name}: {line}")


def compared(config: Config, which: list[Baseline], first: list[Scored], console: Console) -> dict[str, Any] | None:
    """Print a table of some systems and all baselines; None where there is only one.

    Args:
        first: what comes before the baselines; the first of all is the reference.
    """
    systems = [*first, *(open_scored(str(folder_of(name, config))) for name in which)]
    systems = _alike(systems, config, console)
    if len(systems) < 2:
        return None
    record = compare(systems, Choice(splits=compared_splits(config)))
    console.show(comparison_text(record))
    return record


def _alike(systems: list[Scored], config: Config, console: Console) -> list[Scored]:
    """Those that fit into one table: where it is of validation alone, those trained on it as the baselines were."""
    if "test" in compared_splits(config) or len({bool(one.trained_on_validation) for one in systems}) < 2:
        return systems
    like = {True} if config.trains_on_validation else {False, None}
    like_baselines = [one.trained_on_validation in like for one in systems]
    was, were = ("was not", "were") if config.trains_on_validation else ("was", "were not")
    for one, alike in zip(systems, like_baselines, strict=True):
        if not alike:
            console.line(
                f"{one.name} {was} trained on validation data, the baselines {were}: left out of the table; "
                "evaluate.splits=[test] compares them by test"
            )
    return [one for one, alike in zip(systems, like_baselines, strict=True) if alike]


def compared_splits(config: Config) -> tuple[str, ...]:
    """Those that the table is of: test where it is scored."""
    return ("test",) if "test" in config.evaluate.splits else tuple(config.evaluate.splits)


def own_model(config: Config, fingerprint: str, console: Console) -> list[Scored]:
    """What the config's own run scored at its end, if it is finished and was scored on this store."""
    folder = RunFolder(config)
    if folder.finished() is None or not folder.scores.is_file():
        return []
    own = open_scored(str(folder.path))
    if own.store_fingerprint != fingerprint:
        console.line(f"run {config.name!r} was scored on another store, {own.store_fingerprint}: left out of the table")
        return []
    lacking = [split for split in compared_splits(config) if split not in own.table["split"].unique().to_pylist()]
    if lacking:
        console.line(
            f"run {config.name!r} was not scored on {', '.join(lacking)}: left out of the table; beeray.evaluate "
            f"scores its model there, and beeray.compare {config.name}:model {config.name}:baseline-NAME compares both"
        )
        return []
    return [own]
