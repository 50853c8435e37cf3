"""Which trials are stopped early: Ray Tune's ASHA, told of every epoch that the sweep's folder knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from beeray.config import Config, Dimension, search_space
from beeray.runtime.sweep.folder import COMPLETE, Trial
from beeray.runtime.sweep.search import EPOCH, OBJECTIVE


@dataclass(frozen=True)
class _Numbered:
    """As much of Ray Tune's trial as the scheduler looks at."""

    trial_id: int


class SweepAsha(ASHAScheduler):
    """ASHA that knows a trial by its number, under which it was known before a kill too."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins, or goes on."""
        super().on_trial_add(tune_controller, _Numbered(trial.config["number"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether to go on after an epoch."""
        return str(super().on_trial_result(tune_controller, _Numbered(trial.config["number"]), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial has ended; it is still compared with."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As `on_trial_complete`."""

    def tell(self, number: int, epochs: Iterable[tuple[int, float]]) -> None:
        """Epochs of a trial that were judged by an earlier command."""
        earlier = _Numbered(number)
        super().on_trial_add(None, earlier)
        for epoch, metric in epochs:
            super().on_trial_result(None, earlier, {EPOCH: epoch, OBJECTIVE: metric})


def longest_epochs(config: Config) -> int:
    """Epochs of the longest trial of the space."""
    dimension = search_space(config).get("train.epochs", Dimension(choice=(config.train.epochs,)))
    return int(max(dimension.probes))


def stopping(config: Config, trials: Iterable[Trial]) -> TrialScheduler:
    """The scheduler of a sweep that goes on after these trials.

    A trial's last epoch is reported without its number, so that nothing is stopped that is done.
    """
    asha = config.tune.asha
    if asha is None:
        return FIFOScheduler()
    scheduler = SweepAsha(
        time_attr=EPOCH,
        metric=OBJECTIVE,
        mode=config.tune.mode,
        grace_period=asha.grace_epochs,
        reduction_factor=asha.reduction_factor,
        max_t=max(longest_epochs(config), asha.grace_epochs),
        stop_last_trials=False,
    )
    for trial in trials:
        epochs = sorted(trial.epochs.items())
        # one that goes on reports its epochs again: only of its last one it may not be known how it was judged; the
        # last one of a trial that ran to its end was not
        scheduler.tell(trial.number, epochs if trial.over and trial.status != COMPLETE else epochs[:-1])
    return scheduler
