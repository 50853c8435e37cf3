"""What one trial of `beeray.tune` does, in a process of its own: train to the end, telling Ray Tune of every epoch."""

from __future__ import annotations

import functools
import traceback
from typing import Any

from ray import tune

from beeray.config import Config
from beeray.console import Console
from beeray.data.storage import storage_options
from beeray.data.store import Store
from beeray.errors import BeerayError
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.startup import Startup
from beeray.runtime.sweep.folder import FAILED
from beeray.runtime.sweep.search import point_of
from beeray.runtime.sweep.trial import OUTCOME, REASON, Reports, SweepInputs, TrialEvents, patiently_locked
from beeray.runtime.tracking import Untracked
from beeray.verbs.train import TrainInputs, train_run, users_per_rank


def run_trial(config: dict[str, Any], inputs: SweepInputs) -> None:
    """One trial, in a process of its own: train to the end, reporting every epoch; or report why that failed."""
    _, trial = point_of(config)
    folder = RunFolder(trial)
    reports = Reports(inputs.metric)
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "train.log", "a", encoding="utf-8") as log, storage_options(trial.storage):
        console = Console(log, log)
        try:
            _run_trial(trial, folder, inputs, reports, console)
        except BeerayError as error:
            console.line(f"failed: {error}")
            tune.report({OUTCOME: FAILED, REASON: str(error)})
        except Exception as error:
            console.line(traceback.format_exc())
            said = (str(error).splitlines() or ["no message"])[0]
            tune.report({OUTCOME: FAILED, REASON: f"{type(error).__name__}: {said[:300]}"})


def _run_trial(trial: Config, folder: RunFolder, inputs: SweepInputs, reports: Reports, console: Console) -> None:
    with patiently_locked(folder):
        store = Store.open(inputs.store_path)
        tokens = inputs.tokens[trial.encoder.name, trial.encoder.prefix]
        for record in folder.validation():  # of a command that was killed
            if record["epoch"] < trial.train.epochs:
                reports.epoch(record)
        if folder.finished() is None:
            folder.claim(store.meta.fingerprint)
            handling = functools.partial(TrialEvents, reports.epoch)
            train_inputs = TrainInputs(store, tokens, users_per_rank(trial, store))
            train_run(trial, folder, train_inputs, console, Startup(), Untracked, handling)
        reports.end(folder.validation()[-1])
