"""What `beeray.nightly` does: continue from the serving model, evaluate both, publish the new one if it is not worse.

If it is, today's items are published with the model that serves: new items must not wait for a better one.

Every part is a verb that goes on where it was: train, evaluate, embed. What lies between them is in `runtime.nights`.
Serving changes in one go, when the new publication's `latest` is written; until then yesterday's is served, whole.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beeray.config import Config, validate_config
from beeray.console import ANEW, Console
from beeray.data.preparation import store_fingerprint
from beeray.data.scored import open_scored
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import DivergedError, RunError
from beeray.inputs import open_encoder
from beeray.runtime.gate import check_ranking, gate_metric, gate_split, judge
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.nights import Night, Nights
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.session import ray_session
from beeray.runtime.tracking import Tracker
from beeray.verbs import embed, evaluate, train

FIRST = {"publish": True}
"""The verdict where nothing served, so that there is nothing to compare with."""


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Do a night's work from wherever it stands; returns the verdict and what was published."""
    check_outlives_job(config, "runs_dir", "data.store", "embed.path")
    gate_metric(config), gate_split(config)  # told before hours of training
    check_ranking(config)
    nights = Nights(config)
    with nights.locked(), storage_options(config.storage):
        night = _begun(config, nights, arguments, console)
        if not night.finished:
            with ray_session(config.cluster, config.storage):
                night = _work(config, nights, night, console)
        return _told(config, nights, night, console)


def _begun(config: Config, nights: Nights, arguments: argparse.Namespace, console: Console) -> Night:
    """The night that is worked on, as far as it is; written down if it is new."""
    fingerprint = store_fingerprint(config)
    name = nights.chosen(arguments.night, datetime.now(UTC).strftime("%Y-%m-%d"), fingerprint)
    night = nights.kept(name)
    if night is not None and night.published is None:
        anew = arguments.fresh or _begins_anew(config, nights, night, fingerprint, console)
        night = None if anew else night
    if night is not None:
        console.line(f"night {name}: goes on")
        return night
    serving = serving_model(config)
    run = RunFolder(_tonight(config, nights, name, None))
    if serving is not None and Path(serving["name"]).resolve().is_relative_to(run.path.resolve()):
        raise RunError(f"night {name}: {serving['name']} of this very night serves; name another with --night")
    run.clear()
    if arguments.fresh:
        console.again = ANEW
    console.line(f"night {name}: continues from {serving['name'] if serving else config.encoder.name}")
    return nights.keep(Night(name, fingerprint, serving))


def _begins_anew(config: Config, nights: Nights, night: Night, fingerprint: str, console: Console) -> bool:
    """Whether a night's tables have changed; not once it is judged, nor while its finished run can be, on their store.

    Args:
        fingerprint: of the store that the tables give now.
    """
    run = RunFolder(_tonight(config, nights, night.name, night.serving))
    begun = run.begun_with()
    learned_from = night.store_fingerprint if begun is None else begun[0]
    if night.verdict is not None or learned_from == fingerprint:
        return False
    goes_on = run.finished() is not None and Store.is_at(config.store_path, learned_from)
    meaning = "but its run is finished and its store is there" if goes_on else "so it begins anew"
    console.line(f"night {night.name}: its tables have changed since it began, {meaning}")
    return not goes_on


def serving_model(config: Config) -> dict[str, str] | None:
    """Name and fingerprint of the model that the current publication was made with; None where there is none.

    Raises:
        RunError: the publication is damaged, domains are served by several models, or the model has changed or is gone.
    """
    models: dict[str, dict[str, str]] = {}
    for name, one in config.by_domain().items():
        published, why = embed.current_publication(one)
        if published is None and "damaged" in why:
            raise RunError(
                f"{one.embeddings_path}: {why}, so what serves is not known; publish it again with "
                "python -m beeray.embed --config C embed.model=MODEL"
            )
        if published is not None:
            models[str(name or "")] = {key: published.manifest.model[key] for key in ("name", "fingerprint")}
    if len({model["fingerprint"] for model in models.values()}) > 1:
        named = ", ".join(f"{name}: {model['name']}" for name, model in models.items())
        raise RunError(
            f"the domains of {config.embeddings_path} are served by several models ({named}); publish them with one"
        )
    serving = next(iter(models.values()), None)
    if serving is not None:
        _check_serving(config, serving)
    return serving


def _check_serving(config: Config, serving: dict[str, str]) -> None:
    """Refuse to compare with a model that is not the one that was published."""
    from beeray.core.fingerprint import model_fingerprint  # imports torch

    name = serving["name"]
    remedy = f"publish {config.embeddings_path} again with python -m beeray.embed --config C embed.model=MODEL"
    _check_there(name, remedy)
    found = model_fingerprint(open_encoder(config, name, config.served_seq_length))
    if found != serving["fingerprint"]:
        raise RunError(
            f"the serving model {name} is {found}, but {serving['fingerprint']} was published: it has been replaced "
            f"since, or an earlier version told it by other marks; {remedy}"
        )


def _check_there(name: str, remedy: str) -> None:
    if name.startswith("/") and not Path(name).is_dir():
        raise RunError(f"the serving model {name} is gone, so the new one cannot be compared with it; {remedy}")


def _tonight(config: Config, nights: Nights, night: str, serving: dict[str, str] | None) -> Config:
    """The config of a night's training run: it begins with the serving model, on the store of all nights."""
    tree = config.model_dump(mode="json")
    tree["name"] = nights.run_name(night)
    tree["data"]["store"] = config.store_path
    if serving is not None and serving["name"].startswith("/"):
        tree["train"]["init_from"] = serving["name"]
    elif serving is not None:
        tree["encoder"] |= {"name": serving["name"], "revision": config.encoder.revision_of(serving["name"])}
    tree["tracking"]["registered_model"] = None  # none is registered before its verdict
    return validate_config(tree)


def _work(config: Config, nights: Nights, night: Night, console: Console) -> Night:
    tonight = _tonight(config, nights, night.name, night.serving)
    if night.verdict is None:
        night = nights.keep(night, verdict=_trained_and_judged(tonight, night, console))
    model = str(RunFolder(tonight).model)
    if night.refused:
        assert night.serving is not None, "nothing is refused where nothing served"
        model = night.serving["name"]
        console.line(f"night {night.name}: refused; today's items are embedded with {model}, which serves on")
    served = config.model_copy(
        update={"embed": config.embed.model_copy(update={"path": config.embeddings_path, "model": None})}
    )
    record = embed.execute(served, argparse.Namespace(model=model), console)
    versions = {name: one["version"] for name, one in record.get("domains", {"": record}).items()}
    if not night.refused:
        _register(config, tonight, console)
    return nights.keep(night, **{"refreshed" if night.refused else "published": versions})


def _register(config: Config, tonight: Config, console: Console) -> None:
    """Register what was published under `tracking.registered_model`; one line where MLflow does not."""
    name = config.tracking.registered_model
    if name is None or not config.tracking.log_model:
        return
    with Tracker(tonight, tonight.run_dir) as tracker:
        tracker.register_model(name)
    if tracker.trouble:
        console.line(f"warning: {tracker.trouble}: the model is not registered as {name!r}")


def _trained_and_judged(tonight: Config, night: Night, console: Console) -> dict[str, Any]:
    """The verdict; a run that is finished is not trained again, also where its tables have changed since."""
    run = RunFolder(tonight)
    finished = run.finished()
    if finished is not None:
        run.check_config()
        console.line(f"run {tonight.name!r} in {run.path} is finished already")
        train.tracked_later(tonight, run, finished, console)
        return _verdict(tonight, night, console)
    if night.serving is not None:
        _check_there(night.serving["name"], "put it back, or have the night begin anew with --fresh")
    try:
        train.execute(tonight, argparse.Namespace(fresh=False), console)
    except DivergedError as error:
        if night.serving is None:
            raise
        console.line(f"gate: {error}: refused")
        return {"publish": False, "diverged": str(error)}
    return _verdict(tonight, night, console)


def _verdict(tonight: Config, night: Night, console: Console) -> dict[str, Any]:
    if night.serving is None:
        console.line("gate: nothing is published yet, so there is nothing to compare with")
        return FIRST
    begun = RunFolder(tonight).begun_with()
    assert begun is not None, "a run that is judged is finished"
    pinned = argparse.Namespace(model=night.serving["name"], store_fingerprint=begun[0])  # its tables may have changed
    record = evaluate.execute(tonight, pinned, console)
    serving = open_scored(str(Path(record["scores"]).parent))
    verdict = judge(serving, open_scored(str(tonight.run_dir)), tonight)
    for line in verdict.lines():
        console.line(line)
    return verdict.record()


def _serving_now(config: Config) -> list[str]:
    """Names of all models that are published now: a night that is told of again may be an old one."""
    published = [embed.current_publication(one)[0] for one in config.by_domain().values()]
    return [one.manifest.model["name"] for one in published if one is not None]


def _told(config: Config, nights: Nights, night: Night, console: Console) -> dict[str, Any]:
    assert night.verdict is not None
    model = nights.model(night.name)
    serving = str(model) if night.published else (night.serving or {}).get("name", "")
    for run in nights.prune([serving, *_serving_now(config)], console.line):
        console.line(f"removed {run}: nightly.keep_runs is {config.nightly.keep_runs}")
    versions = ", ".join(f"{name} {one}".strip() for name, one in (night.published or night.refreshed or {}).items())
    said = "refused the new model; published" if night.refused else "published"
    console.line(f"night {night.name}: {said} {versions} with {serving}")
    return {
        "night": night.name,
        "published": night.published,
        "refreshed": night.refreshed,
        "model": str(model),
        "serving_before": night.serving,
        "gate": night.verdict,
    }
