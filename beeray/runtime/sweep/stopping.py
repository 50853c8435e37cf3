"""Which trials are stopped early: Ray Tune's ASHA, told of every epoch that the sweep's folder knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from beeray.config import Config, Dimension, search_space
from beeray.runtime.sweep.folder import Trial
from beeray.runtime.sweep.search import EPOCH, OBJECTIVE


@dataclass(frozen=True)
class _Earlier:
    """As much of Ray Tune's trial as the scheduler looks at."""

    trial_id: str


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
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=OBJECTIVE,
        mode=config.tune.mode,
        grace_period=asha.grace_epochs,
        reduction_factor=asha.reduction_factor,
        max_t=max(longest_epochs(config), asha.grace_epochs),
        stop_last_trials=False,
    )
    for trial in trials:
        if trial.over:  # one that goes on reports its earlier epochs again
            earlier = _Earlier(trial.name)
            scheduler.on_trial_add(None, earlier)
            for epoch, metric in sorted(trial.epochs.items()):
                scheduler.on_trial_result(None, earlier, {EPOCH: epoch, OBJECTIVE: metric})
    return scheduler
