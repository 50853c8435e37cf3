"""What `beeray.tune` does: store and tokens once, then trials under Ray Tune, each a training run of its own.

A trial is a Ray Tune function whose process drives a Ray Train run, just as `beeray.train`'s does: it hears of the
workers' epochs and reports them to Ray Tune. When Ray Tune stops a trial it ends that process, and with it go the Ray
Train controller and workers that it owns. What the workers had reserved is given back by a cleaner of Ray Train's,
which asks the state API whether the controller lives; so a Ray that is started here has the dashboard that serves it.

At SIGTERM or Ctrl-C trials that are at their steps save a checkpoint before the command ends (`runtime.sweep.pausing`).

Ray Tune reserves nothing for a trial (`NOTHING`), since Ray Train asks for its workers itself; what bounds the trials
at once is `trials_at_once`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from beeray.config import Config, search_space, searched_metric
from beeray.console import ANEW, Console
from beeray.data.preparation import store_fingerprint
from beeray.data.storage import storage_errors, storage_options
from beeray.errors import BeerayError, ClusterError, RunError, UnansweredError
from beeray.inputs import located_encoder, prepared_store, token_store
from beeray.interruption import Interrupted, signals_handled
from beeray.runtime.doctor import finding
from beeray.runtime.doctor.tracking import check_mlflow
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.monitor import listening
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.run_start import begin_run, open_start
from beeray.runtime.session import check_placement, ray_session
from beeray.runtime.shared_folder import marked, what_is_not_shared
from beeray.runtime.startup import Startup
from beeray.runtime.sweep.best import write_best
from beeray.runtime.sweep.demand import largest_demand, token_variants
from beeray.runtime.sweep.folder import FAILED, STATUSES, SweepFolder, Trial, best_of
from beeray.runtime.sweep.measurable import check_held_out, check_searched_head, check_validation_users, measurable
from beeray.runtime.sweep.page import write_page
from beeray.runtime.sweep.pausing import Pausing, TrialWishes
from beeray.runtime.sweep.progress import SweepProgress
from beeray.runtime.sweep.resources import check_sharing, room_for_trials, shortage, threads_each, trials_at_once
from beeray.runtime.sweep.search import Sweep, SweepSearch, num_left, point_of
from beeray.runtime.sweep.stopping import stopping
from beeray.runtime.sweep.table import table_lines, write_table
from beeray.runtime.sweep.tracking import SweepTracking
from beeray.runtime.sweep.trial import (
    OUTCOME,
    PAUSED,
    REASON,
    Reports,
    SweepInputs,
    TrialEvents,
    patiently_locked,
    reason_of,
    trial_config,
)
from beeray.runtime.tracking import Untracked, tracking_key
from beeray.runtime.warm_start import check_peft, find_warm_start
from beeray.verbs.train import train_run

NOTHING = {"memory": 1.0}
"""A byte: Ray Tune wants a trial's own process to ask for something."""
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside our own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is `Pausing`'s
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # how a trial failed is reported without a metric
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}
SCRATCH = "ray-tune"
FITTED = ("encoder.", "train.head", "train.lora", "train.freeze_layers", "train.matryoshka_dims")
"""Keys whose values fit one encoder and not another."""
STATE_API_PATIENCE_S = 30
MLFLOW_ANSWERS_S = 15.0
STORE_PATIENCE_S = 10.0
"""Before a trial whose store did not answer is tried again; more each time."""


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Search a config's space to the end, from wherever its folder stands; returns what was found."""
    check_outlives_job(config, "runs_dir", "data.store")
    started = time.monotonic()
    config = measurable(config, console)
    check_sharing(largest_demand(config).cluster)
    check_peft(config)
    folder = SweepFolder(config)
    with folder.locked(), storage_options(config.storage):
        if arguments.fresh:
            folder.check_spared(config.train.init_from)
            _go_on(config, folder, console, fresh=True)
            return _conclude(config, folder, console) | {"seconds": round(time.monotonic() - started, 1)}
        folder.check_config()
        if arguments.retry_failed:
            folder.retry_failed()
        if folder.finished() is None:
            folder.check_trials()
            folder.reopen()
            _go_on(config, folder, console)
        else:
            console.line(f"sweep {config.name!r} in {folder.trials} is finished already; --fresh starts it over")
        return _conclude(config, folder, console) | {"seconds": round(time.monotonic() - started, 1)}


def _go_on(config: Config, folder: SweepFolder, console: Console, *, fresh: bool = False) -> None:
    """From wherever the folder stands to a finished sweep; from an empty one, if that is asked for."""
    trials = [] if fresh else folder.load()
    if len(trials) < config.tune.num_trials or any(not trial.over for trial in trials):
        _search(config, folder, console, fresh=fresh)
    with SweepTracking(config, folder, console, must_answer=False) as tracking:
        trials = folder.load()
        best = best_of(trials, config.tune.mode)
        folder.tidy(trials, best)
        tracking.catch_up(trials)
        tracking.conclude(best, _write(config, folder, trials))
    if not tracking.went_away:
        folder.finish(tracking.parent.run_id)
    if tracking.trouble is not None:
        later = ", and the same command gives MLflow what it lacks" if tracking.went_away else ""
        console.line(f"warning: {tracking.trouble}; what was found is in {folder.path}{later}")


def _search(config: Config, folder: SweepFolder, console: Console, *, fresh: bool) -> None:
    """Search what is left; an earlier sweep is cleared, where that is asked for, once nothing speaks against it."""
    warm = find_warm_start(config)
    check_searched_head(config, warm)
    with ray_session(config.cluster, config.storage, dashboard=True), _environment(), ExitStack() as room:
        _check_state_api(config)
        demand = largest_demand(config)
        opened = {key: open_start(variant, warm) for key, variant in token_variants(config).items()}
        check_placement(demand.cluster)
        fingerprint = next(fingerprint for _, fingerprint in opened.values())
        if not fresh:
            folder.check_data(store_fingerprint(config), fingerprint)  # before the store is prepared anew
        store, _ = prepared_store(config, console)
        check_validation_users(config, store)
        check_held_out(warm, store, console)
        if fresh:
            _check_tracking(config)
            folder.clear()
            console.again = ANEW
        folder.claim()
        inputs = SweepInputs(
            store,
            {
                (located_encoder(key[0]), key[1]): token_store(variant, store, opened[key][0], console)
                for key, variant in token_variants(config).items()
            },
            searched_metric(config),
            warm,
            fingerprint,
        )
        nodes = room.enter_context(room_for_trials(demand, num_left(config, folder.load()), console))
        at_once = trials_at_once(nodes, demand)
        threads = threads_each(nodes, demand, at_once)
        sweep = Sweep(config, folder, functools.partial(fitting_config, folder, threads))
        console.line(
            f"tune {config.name}: {', '.join(sweep.space)}; {sweep.num_left} of {config.tune.num_trials} trials to go, "
            f"{at_once} at once{shortage(at_once, config)}, {_workers(config.cluster.num_workers)} each"
        )
        with SweepTracking(config, folder, console) as tracking:
            _run(sweep, tracking, inputs, at_once, console, room.close)


def _check_tracking(config: Config) -> None:
    if tracking_key(config) is None:
        return  # a file of ours, which costs a warning at most
    found = check_mlflow(config, MLFLOW_ANSWERS_S)
    if found.status == finding.FAILED:
        raise RunError(found.said)


def fitting_config(folder: SweepFolder, threads: int | None, trial: Trial, config: Config) -> Config:
    """See `trial_config`; refused before anything is started is what does not fit the encoder that it begins with.

    Raises:
        ConfigError: as `trial_config`, or peft is missing.
        EncoderError: a head, adapters, frozen layers or prefixes that the encoder does not take.
    """
    if any(key.startswith(FITTED) for key in trial.values):  # else the sweep's own config was found to fit
        check_peft(config)
        open_start(config, find_warm_start(config))
    return trial_config(folder, threads, trial, config)


def _check_state_api(config: Config) -> None:
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    if config.tune.asha is None:
        return
    try:
        list_actors(ray.get_runtime_context().gcs_address, limit=1, timeout=STATE_API_PATIENCE_S)
    except (RayStateApiException, ConnectionError) as error:
        raise ClusterError(
            "tune.asha stops trials early, but this cluster has no dashboard, without which Ray does not give back "
            f"what their workers reserved ({str(error).splitlines()[0][:200]}); start Ray with its dashboard, or set "
            "tune.asha: null"
        ) from None


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number > 1 else ''}"


def _run(
    sweep: Sweep,
    tracking: SweepTracking,
    inputs: SweepInputs,
    at_once: int,
    console: Console,
    placed: Callable[[], None],
) -> None:
    """Run the trials that are left; `placed` is called at every news of one."""
    write = functools.partial(_write, sweep.config, sweep.folder, sweep.trials)
    pausing = Pausing()
    progress = SweepProgress(sweep, tracking, console, write, pausing, placed)
    try:
        with (
            marked(sweep.folder.trials) as marker,
            listening(pausing.hear, lambda: pausing.asked) as monitor,
            signals_handled(pausing.request),
        ):
            _tuner(sweep, progress, replace(inputs, monitor=monitor, marker=marker), at_once).fit()
            pausing.check()  # a signal that came after the last trial's end
    finally:
        progress.close()
        sweep.folder.remove_scratch(SCRATCH)


def _tuner(sweep: Sweep, progress: SweepProgress, inputs: SweepInputs, at_once: int) -> tune.Tuner:
    trainable = tune.with_resources(tune.with_parameters(run_trial, inputs=inputs), NOTHING)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=SweepSearch(sweep, progress.started, lambda: progress.pausing.asked),
            scheduler=stopping(sweep.config, sweep.trials),
            num_samples=sweep.num_left,
            max_concurrent_trials=at_once,
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:03d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=SCRATCH,
            storage_path=str(sweep.folder.trials),
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=sweep.config.cluster.max_failures),
            verbose=0,
        ),
    )


@contextmanager
def _environment() -> Iterator[None]:
    """What Ray Tune reads from the environment, until the context ends."""
    kept = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def run_trial(config: dict[str, Any], inputs: SweepInputs) -> None:
    """One trial, in a process of its own: train to the end, reporting every epoch; or report why that failed.

    Where the sweep is to stop, a trial that is at its steps reports how far it came, with a checkpoint.
    """
    number, trial = point_of(config)
    folder = RunFolder(trial)
    reports = Reports(inputs.metric)
    trials = folder.path.parent
    trouble = what_is_not_shared(str(trials.parent.parent), trials, inputs.marker)
    if trouble:  # else it would train to its end in a folder that the sweep's command does not see
        return tune.report({OUTCOME: FAILED, REASON: trouble})
    with storage_errors(str(folder.path)):
        folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "train.log", "a", encoding="utf-8") as log, storage_options(trial.storage):
        console = Console(log, log)
        try:
            _run_patiently(trial, folder, inputs, reports, console, TrialWishes(inputs.monitor, number))
        except Interrupted as stopped:
            console.line(stopped.said)
            tune.report({OUTCOME: PAUSED, REASON: stopped.said})
        except BeerayError as error:
            console.line(f"failed: {error}")
            tune.report({OUTCOME: FAILED, REASON: reason_of(error)})
        except Exception as error:
            console.line(traceback.format_exc())
            said = (str(error).splitlines() or ["no message"])[0]
            tune.report({OUTCOME: FAILED, REASON: f"{type(error).__name__}: {said[:300]}"})


def _run_patiently(
    trial: Config, folder: RunFolder, inputs: SweepInputs, reports: Reports, console: Console, wishes: TrialWishes
) -> None:
    """Run a trial, again from its last checkpoint where a store did not answer, as often as workers may fail."""
    for tries in itertools.count(1):
        try:
            return _run_trial(trial, folder, inputs, reports, console, wishes)
        except UnansweredError as error:
            if tries > trial.cluster.max_failures:
                raise
            console.line(f"{error}; trying again ({tries} of cluster.max_failures {trial.cluster.max_failures})")
            time.sleep(STORE_PATIENCE_S * tries)


def _run_trial(
    trial: Config, folder: RunFolder, inputs: SweepInputs, reports: Reports, console: Console, wishes: TrialWishes
) -> None:
    with patiently_locked(folder):
        folder.check_config()
        store = inputs.store
        store.check_unchanged()
        tokens = inputs.tokens[trial.encoder.name, trial.encoder.prefix]
        for record in folder.validation():  # of a command that was killed
            if record["epoch"] < trial.train.epochs:
                reports.epoch(record)
        if folder.finished() is None:
            handling = functools.partial(TrialEvents, reports.epoch, wishes.tell)
            begun = begin_run(trial, folder, store, tokens, console, warm=inputs.warm, fingerprint=inputs.fingerprint)
            train_run(trial, folder, begun, console, Startup(), Untracked, handling, wishes.stop)
        reports.end(folder.validation()[-1])


def _write(config: Config, folder: SweepFolder, trials: list[Trial]) -> list[Path]:
    """Write what a sweep leaves; returns the files."""
    tune_config = config.tune
    space, metric = search_space(config), searched_metric(config)
    write_table(folder.table, trials, list(space), metric, tune_config.mode)
    write_page(folder.page, f"Sweep {config.name}", trials, space, metric, tune_config.mode)
    best = best_of(trials, tune_config.mode)
    if best is None:
        folder.best.unlink(missing_ok=True)
        return [folder.table, folder.page]
    write_best(folder, config, best, metric)
    return [folder.table, folder.page, folder.best]


def _conclude(config: Config, folder: SweepFolder, console: Console) -> dict[str, Any]:
    """Show the table; returns the record.

    Raises:
        RunError: no trial ran to its end.
    """
    trials, metric = folder.load(), searched_metric(config)
    for line in table_lines(trials, list(search_space(config)), metric, config.tune.mode):
        console.line(line)
    best = best_of(trials, config.tune.mode)
    if best is None:
        failed = next((trial for trial in trials if trial.reason), None)
        first = f"; {failed.name} {failed.status}: {failed.reason}" if failed is not None else ""
        raise RunError(
            f"none of {len(trials)} trials ran to its end{first}; see {folder.table}, and give --retry-failed when "
            "what they failed of is put right, or --fresh"
        )
    console.line(
        f"best: {best.name}, {metric} {best.metric:.4f}; python -m beeray.train --config {os.path.relpath(folder.best)}"
    )
    return {
        "sweep": config.name,
        "folder": str(folder.path),
        "metric": metric,
        "best": {"trial": best.name, "metric": best.metric, "values": best.values},
        "best_config": str(folder.best),
        "table": str(folder.table),
        "page": str(folder.page),
        "mlflow_run_id": (folder.finished() or {}).get("mlflow_run_id"),
        "trials": {status: sum(trial.status == status for trial in trials) for status in STATUSES},
    }
