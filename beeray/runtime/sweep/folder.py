"""The sweep's part of a run folder: which trials there are and how each one ended.

runs/<name>/best.yaml             the best trial's config; `beeray.train --config` takes it
runs/<name>/trials.csv            all trials, the best first
runs/<name>/sweep.html            parallel coordinates, and the metric of every epoch
runs/<name>/trials/sweep.yaml     the config that the sweep was started with
runs/<name>/trials/sweep.json     its MLflow run; there only when all is done, so a sweep that has it is finished
runs/<name>/trials/trial-000/     an ordinary run folder, and in it
    trial.json                    values, status, metric of every epoch; what a killed sweep goes on from
    train.log                     what `beeray.train` would have shown

`trial.json` is written before a trial starts and when it ends, by the driver alone and whole or not at all, so that
the folder says the truth whenever the driver and Ray are killed. Nothing else is needed to go on: the search and the
early stopping are told anew what is in the folders. The MLflow run is noted in it last, once it has everything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from beeray.config import Config, load_config, noted_point, search_space, searched_metric
from beeray.config.paths import found
from beeray.data.storage import storage_errors
from beeray.errors import ConfigError, RunError
from beeray.runtime.locks import locked_file
from beeray.runtime.run_folder import CHECKPOINTS, MODEL, NOT_FINITE, SWEEP_FILES, RunFolder
from beeray.runtime.whole_files import write_whole

RUNNING, COMPLETE, STOPPED, FAILED, INVALID = "running", "complete", "stopped", "failed", "invalid"
STATUSES = (COMPLETE, STOPPED, FAILED, INVALID, RUNNING)
CONFIG, TRIAL, DONE = "sweep.yaml", "trial.json", "sweep.json"
TRIALS, BEST, TABLE, PAGE = SWEEP_FILES
SHOWN_KEYS = 6
CLEARED = ".cleared-trials-"
"""Begins the name that an earlier sweep's trials have while they are being removed."""


@dataclass
class Trial:
    """One point of the space and what became of it.

    Attributes:
        number: from 0, in the order in which they were drawn.
        values: dotted config keys.
        status: one of `STATUSES`; `running` until it has ended, in this command or one that was killed.
        epochs: the sweep's metric after each epoch that was reported.
        metric: that of the whole run, where it came to its end; else of the last epoch that was reported.
        reason: why it failed or is no valid config.
        wall_s: from start to end, waiting for workers included; of the last command that ran it.
        mlflow_run_id: its MLflow run, once that is closed and whole.
    """

    number: int
    values: dict[str, Any]
    status: str = RUNNING
    epochs: dict[int, float] = field(default_factory=dict)
    metric: float | None = None
    reason: str | None = None
    wall_s: float = 0.0
    mlflow_run_id: str | None = None

    @property
    def name(self) -> str:
        """E.g. `trial-003`."""
        return f"trial-{self.number:03d}"

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status != RUNNING

    def heard(self, epoch: int, metric: float) -> None:
        """Note the metric of an epoch."""
        self.epochs[epoch] = metric
        self.metric = metric


class SweepFolder:
    """The sweep that lives in `config.run_dir`, beside the run of that name if there is one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.run_dir
        self.trials, self.best, self.table, self.page = (self.path / name for name in SWEEP_FILES)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sweeps of this name away until the context ends.

        Raises:
            RunError: another command is at work on this sweep.
        """
        lock = self.path.parent / "logs" / f"{self.config.name}-tune.lock"
        said = f"sweep {self.config.name!r} in {self.trials} is being searched by another command"
        with locked_file(lock, said, "wait for it, or choose another name=…"):
            yield

    def check_spared(self, spare: str | None) -> None:
        """Refuse to begin with a trial of the sweep that is to be cleared.

        Args:
            spare: what `train.init_from` names.

        Raises:
            RunError: it is one.
        """
        if spare is not None and found(spare).resolve().is_relative_to(self.trials.resolve()):
            raise RunError(
                f"train.init_from {spare}: --fresh would remove it with the other trials of the sweep "
                f"{self.config.name!r}; give the sweep another name=…, or copy that trial's model elsewhere"
            )

    def clear(self) -> None:
        """Remove all that an earlier sweep of this name left, its trials in one go; a run of the name stays.

        Raises:
            DataError: it cannot be removed.
        """
        with storage_errors(str(self.path)):
            if self.trials.is_dir():
                self.trials.rename(self.trials.with_name(f"{CLEARED}{uuid4().hex[:8]}"))
            for file in (self.best, self.table, self.page):
                file.unlink(missing_ok=True)
        for left in self.path.glob(f"{CLEARED}*"):
            shutil.rmtree(left, ignore_errors=True)

    def check_config(self) -> None:
        """Refuse to go on with a sweep that searched something else.

        Raises:
            RunError: names the keys that differ, with both values.
        """
        kept = self.trials / CONFIG
        if not kept.is_file():
            if self.load():
                raise RunError(
                    f"sweep {self.config.name!r}: {self.trials} has trials, but no {CONFIG} that tells what they "
                    "searched; bring it back, choose another name=… or start over with --fresh"
                )
            return
        try:
            theirs = _deciding(load_config(str(kept)))
        except ConfigError as error:
            raise RunError(
                f"sweep {self.config.name!r}: {kept} is not a config of this version ({error}); "
                "choose another name=… or start over with --fresh"
            ) from None
        ours = _deciding(self.config)
        changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if not changed:
            return
        shown = [f"{key}: {theirs.get(key)!r} → {ours.get(key)!r}" for key in changed[:SHOWN_KEYS]]
        more = f" and {len(changed) - SHOWN_KEYS} more" if len(changed) > SHOWN_KEYS else ""
        raise RunError(
            f"sweep {self.config.name!r} in {self.trials} was started with another config ({'; '.join(shown)}{more}); "
            "choose another name=… or start over with --fresh"
        )

    def check_trials(self) -> None:
        """Refuse to go on with trials that are no points of the space, as those of an earlier version may be.

        Raises:
            RunError: names the trial, and a key with its value.
        """
        space = search_space(self.config)
        for trial in self.load():
            for key in sorted(space.keys() | trial.values.keys()):
                if key in space and key in trial.values and space[key].holds(trial.values[key]):
                    continue
                has = f"has {key} {trial.values[key]!r}" if key in trial.values else f"has no {key}"
                asked = space[key].model_dump(mode="json", exclude_none=True) if key in space else "nothing"
                raise RunError(
                    f"sweep {self.config.name!r} in {self.trials}: {trial.name} {has}, where tune.space has {asked}, "
                    "so the search cannot be told of it; choose another name=… or start over with --fresh"
                )

    def check_data(self, store_fingerprint: str, init_fingerprint: str | None) -> None:
        """Refuse to go on with a sweep whose trials learned from, or were measured on, other data.

        Args:
            store_fingerprint: of the store that the config gives now.
            init_fingerprint: of the encoder that `train.init_from` names.

        Raises:
            RunError: names the trial, with what it began on and what there is now.
        """
        now = {"store": store_fingerprint, "encoder of train.init_from": init_fingerprint}
        for trial in self.load():
            begun = self.run(trial).begun_with()
            if begun is None:  # an invalid one, or one that never started
                continue
            changed = [f"{what} {old} → {now[what]}" for what, old in zip(now, begun, strict=True) if old != now[what]]
            if changed:
                raise RunError(
                    f"sweep {self.config.name!r} in {self.trials} was begun on other data ({trial.name}: "
                    f"{'; '.join(changed)}), so its trials could not be compared; choose another name=… or start over "
                    "with --fresh"
                )

    def claim(self) -> None:
        """Make the folder this sweep's."""
        text = yaml.safe_dump(self.config.as_written(), sort_keys=False, allow_unicode=True)
        write_whole(self.trials / CONFIG, text)

    def run_dir(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.trials / trial.name

    def run(self, trial: Trial) -> RunFolder:
        """What a trial's run left."""
        return RunFolder(self.config.model_copy(update={"name": trial.name, "runs_dir": str(self.trials)}))

    def finish(self, mlflow_run_id: str | None) -> None:
        """Note that all is done."""
        write_whole(self.trials / DONE, json.dumps({"mlflow_run_id": mlflow_run_id}))

    def finished(self) -> dict[str, Any] | None:
        """What `finish` noted, unless more trials are wanted since."""
        done = self.trials / DONE
        trials = self.load()
        if not done.is_file() or len(trials) < self.config.tune.num_trials or not all(one.over for one in trials):
            return None
        return dict(json.loads(done.read_text(encoding="utf-8")))

    def reopen(self) -> None:
        """Note that there is something to do."""
        (self.trials / DONE).unlink(missing_ok=True)

    def load(self) -> list[Trial]:
        """All trials there are, in the order in which they were drawn; running ones with the epochs they have done.

        Values are as the space has them, whatever form of them an earlier version noted.
        """
        found = []
        for path in self.trials.glob(f"trial-*/{TRIAL}"):
            record = json.loads(path.read_text(encoding="utf-8"))
            epochs = {int(epoch): metric for epoch, metric in record.pop("epochs").items()}
            trial = Trial(**record, epochs=epochs)
            trial.values = noted_point(self.config, trial.values)
            if not trial.over:
                for done in self.run(trial).validation():
                    trial.heard(done["epoch"], done[searched_metric(self.config)])
            found.append(trial)
        return sorted(found, key=lambda trial: trial.number)

    def save(self, trial: Trial) -> None:
        """Write what is known of a trial."""
        write_whole(self.run_dir(trial) / TRIAL, json.dumps(asdict(trial), indent=2))

    def retry_failed(self) -> None:
        """Have trials that failed go on."""
        for trial in self.load():
            if trial.status == FAILED:
                trial.status, trial.reason, trial.mlflow_run_id = RUNNING, None, None
                self.save(trial)
                (self.run_dir(trial) / NOT_FINITE).unlink(missing_ok=True)  # said of the attempt before

    def remove_scratch(self, name: str) -> None:
        """Remove a folder beside the trials' own."""
        shutil.rmtree(self.trials / name, ignore_errors=True)

    def tidy(self, trials: list[Trial], best: Trial | None) -> None:
        """Remove checkpoints of trials that have ended, and the models that `tune.keep_models` does not keep.

        A failed trial keeps its checkpoints, which --retry-failed goes on from; unless it diverged, since it would
        diverge again at the same step.
        """
        keep = self.config.tune.keep_models
        for trial in trials:
            if not trial.over:
                continue
            if trial.status != FAILED or (self.run_dir(trial) / NOT_FINITE).is_file():
                shutil.rmtree(self.run_dir(trial) / CHECKPOINTS, ignore_errors=True)
            if keep == "none" or (keep == "best" and trial is not best):
                shutil.rmtree(self.run_dir(trial) / MODEL, ignore_errors=True)


def best_of(trials: list[Trial], mode: str) -> Trial | None:
    """The best of the trials that ran to their end; the earlier of two equals."""
    done = ranked([trial for trial in trials if trial.status == COMPLETE], mode)
    return done[0] if done and done[0].metric is not None else None


def ranked(trials: list[Trial], mode: str) -> list[Trial]:
    """Trials by status and, within it, the best first; those without a metric last."""
    sign = -1.0 if mode == "max" else 1.0

    def place(trial: Trial) -> tuple[int, bool, float, int]:
        no_metric = trial.metric is None or trial.metric != trial.metric
        return STATUSES.index(trial.status), no_metric, 0.0 if no_metric else sign * (trial.metric or 0.0), trial.number

    return sorted(trials, key=place)


def reported_metrics(record: dict[str, Any]) -> dict[str, float]:
    """The metrics in a record of a run's validation.jsonl."""
    return {name: value for name, value in record.items() if name.startswith("validation/")}


def _deciding(config: Config) -> dict[str, Any]:
    """What decides which trials there are and how they are measured, by dotted key."""
    dimensions = {
        f"tune.space.{key}": dimension.model_dump(mode="json", exclude_none=True)
        for key, dimension in search_space(config).items()
    }
    others = config.tune.model_dump(mode="json", include={"metric", "mode", "asha", "search", "random_trials", "seed"})
    measured = config.evaluate.model_dump(mode="json", include={"recall_at", "ndcg_at", "max_seq_length", "domains"})
    return (
        config.result_keys()
        | dimensions
        | {f"tune.{key}": value for key, value in others.items()}
        | {f"evaluate.{key}": value for key, value in measured.items()}
        | {"train.evaluate_every_epochs": config.train.evaluate_every_epochs}
    )
