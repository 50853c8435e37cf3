"""What happens to trials, as Ray Tune tells it: into the folder, to Optuna, to MLflow, onto the console."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback

from beeray.config import Config
from beeray.console import Console
from beeray.runtime.sweep.folder import COMPLETE, FAILED, STOPPED, Trial, best_of
from beeray.runtime.sweep.pausing import Pausing
from beeray.runtime.sweep.search import OBJECTIVE, Sweep
from beeray.runtime.sweep.table import shown
from beeray.runtime.sweep.tracking import SweepTracking
from beeray.runtime.sweep.trial import AT_EPOCH, AT_STEP, OUTCOME, PAUSED, REASON, REPORTED


class SweepProgress(Callback):
    """Follows the trials that run; the only one that knows how each of them ends.

    Args:
        write: what writes the sweep's files, called whenever a trial has ended.
        pausing: is told which trials run, and ends the command after a signal.
        placed: called at every news of a trial that runs; most of those that began with it have their workers by then.
    """

    def __init__(
        self,
        sweep: Sweep,
        tracking: SweepTracking,
        console: Console,
        write: Callable[[], Any],
        pausing: Pausing,
        placed: Callable[[], None],
    ) -> None:
        self.sweep, self.tracking, self.console, self.write = sweep, tracking, console, write
        self.pausing, self.placed = pausing, placed
        self._running: dict[int, tuple[Trial, float]] = {}
        self._bar = console.progress("trials", sweep.config.tune.num_trials, "trial")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as of SweepSearch

    def started(self, trial: Trial, config: Config) -> None:
        """A trial was handed to Ray Tune."""
        self._running[trial.number] = (trial, time.monotonic())
        self.pausing.begun(trial.number)
        self.tracking.started(trial, config)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch of a trial, or its end."""
        self.placed()
        ours, _ = self._running[trial.config["number"]]
        if OBJECTIVE in result:
            ours.heard(result[AT_EPOCH], result[OBJECTIVE])
            self.tracking.heard(ours, result[REPORTED], result[AT_STEP])
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end, failed by itself, was stopped early, or because the sweep was asked to stop."""
        last = trial.last_result or {}
        if last.get(OUTCOME) == PAUSED:
            return self._paused(trial.config["number"], last[REASON])
        self._ended(trial.config["number"], last.get(OUTCOME, STOPPED), last.get(REASON))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own driver died too often, or could not be started."""
        lines = [line.strip() for line in str(trial.get_error() or "its driver died").splitlines() if line.strip()]
        self._ended(trial.config["number"], FAILED, lines[-1][:300])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own driver died, and the trial is to go on in another."""
        self.pausing.begun(trial.config["number"])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune has looked for news; raises Interrupted where the sweep is to stop and all is saved."""
        self.pausing.check()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def _paused(self, number: int, how_far: str) -> None:
        """In the folder it stays as it was when it began, so it is gone on with; nobody is told of an end."""
        trial, _ = self._running.pop(number)
        self.pausing.ended(number, f"{trial.name} {how_far}")
        self._show()

    def _ended(self, number: int, status: str, reason: str | None) -> None:
        trial, since = self._running.pop(number)
        self.pausing.ended(number)
        trial.status, trial.reason, trial.wall_s = status, reason, time.monotonic() - since
        if status != FAILED and trial.metric is None:
            trial.status, trial.reason = FAILED, "it reported no epoch"
        self.sweep.ended(trial)
        self.tracking.ended(trial)  # after it is in the folder: what MLflow lacks of it then is caught up with
        best = best_of(self.sweep.trials, self.sweep.config.tune.mode)
        self.sweep.folder.tidy([trial], best)
        if trial is best:
            self.sweep.folder.tidy(self.sweep.trials, best)
        self.write()
        self.console.line(describe(trial, trial is best))
        self._show()

    def _show(self) -> None:
        trials = self.sweep.trials
        count = {status: sum(one.status == status for one in trials) for status in (COMPLETE, STOPPED, FAILED)}
        best = best_of(trials, self.sweep.config.tune.mode)
        note = f"{len(self._running)} running, {count[COMPLETE]} complete, {count[STOPPED]} stopped"
        note += f", {count[FAILED]} failed" if count[FAILED] else ""
        note += f", best {best.metric:.4f} ({best.name})" if best is not None else ""
        self._bar.update_to(sum(one.over for one in trials), note)


def describe(trial: Trial, is_best: bool) -> str:
    """One line: how a trial ended."""
    values = ", ".join(f"{key} {shown(value)}" for key, value in trial.values.items())
    after = f"after epoch {max(trial.epochs)}" if trial.epochs else "before its first epoch"
    figure = f" at {trial.metric:.4f}" if trial.metric is not None else ""
    said = {
        COMPLETE: f"complete{figure}{', the best so far' if is_best else ''}",
        STOPPED: f"stopped {after}{figure}",
    }
    return f"{trial.name}: {said.get(trial.status, f'{trial.status}: {trial.reason}')}  ({values})"
