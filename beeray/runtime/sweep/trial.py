"""What a trial runs with, and what it tells Ray Tune."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune

from beeray.config import Config, TuneConfig
from beeray.data.store import Store
from beeray.errors import BeerayError, RunError
from beeray.inputs import located_encoder
from beeray.runtime.events import EventHandler
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.sweep.folder import COMPLETE, SweepFolder, Trial, reported_metrics
from beeray.runtime.sweep.resources import check_sharing
from beeray.runtime.sweep.search import EPOCH, OBJECTIVE
from beeray.runtime.warm_start import WarmStart

OUTCOME, REASON, REPORTED, AT_EPOCH, AT_STEP = "outcome", "reason", "reported", "at_epoch", "at_step"
"""What results hold beside `OBJECTIVE` and `EPOCH`: how the trial ended, why it failed or how far it was when it was
stopped, all that an epoch reported."""
PAUSED = "paused"
"""An outcome that is no status: the trial was asked to stop, and the next command goes on with it."""
LOCK_PATIENCE_S = 60.0


@dataclass(frozen=True)
class SweepInputs:
    """What every trial is handed.

    Attributes:
        store: the prepared one.
        tokens: path of the token store by the encoder's name and prefix.
        metric: of an epoch's report, what is searched for.
        warm: what `train.init_from` names.
        fingerprint: of the encoder there.
        monitor: the sweep's, by which trials hear that they should stop.
        marker: file of the sweep's folder by which a trial knows that its own is on the same disk.
    """

    store: Store
    tokens: dict[tuple[str, str], str]
    metric: str
    warm: WarmStart | None = None
    fingerprint: str | None = None
    monitor: Any = None
    marker: str = ""


def trial_config(folder: SweepFolder, threads: int | None, trial: Trial, config: Config) -> Config:
    """The config that a trial runs with: any process understands its paths, and it scores validation users alone.

    Args:
        threads: of a worker.
        config: the sweep's, at the trial's point.

    Raises:
        ConfigError: the trial's workers would share a card.
    """
    check_sharing(config.cluster)
    only_validation = {"splits": ("validation",), "before": False, "neighbours": False}
    return config.model_copy(
        update={
            "name": trial.name,
            "runs_dir": str(folder.trials),
            "data": config.data.model_copy(update={"store": folder.config.store_path}),
            "encoder": config.encoder.model_copy(update={"name": located_encoder(config.encoder.name)}),
            "evaluate": config.evaluate.model_copy(update=only_validation),
            "report": config.report.model_copy(update={"enabled": False}),
            "cluster": config.cluster.model_copy(update={"threads_per_worker": threads}),
            "tune": TuneConfig(),
        }
    )


@contextmanager
def patiently_locked(folder: RunFolder) -> Iterator[None]:
    """The folder's lock; a process of a killed command that holds it is about to end."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            with folder.locked():
                yield
            return
        except RunError as error:
            if "another command" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def reason_of(error: BeerayError) -> str:
    """What is said of a trial that failed: in a sweep the same command alone does not do it again.

    One that diverged keeps no checkpoint (`SweepFolder.tidy`).
    """
    return (
        str(error)
        .removesuffix(". The checkpoint before it is kept")
        .replace("run the same command again", "give --retry-failed")
    )


class Reports:
    """What a trial tells Ray Tune: each epoch once, the last one when all is done."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._reported = 0

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch that is not the last; known by its number, so that a resumed trial tells none twice."""
        if record["epoch"] > self._reported:
            self._reported = record["epoch"]
            tune.report(self._result(record) | {EPOCH: record["epoch"]})

    def end(self, record: dict[str, Any]) -> None:
        """The last epoch, when all is on disk."""
        tune.report(self._result(record) | {OUTCOME: COMPLETE})

    def _result(self, record: dict[str, Any]) -> dict[str, Any]:
        return {
            OBJECTIVE: record[self.metric],
            REPORTED: reported_metrics(record),
            AT_EPOCH: record["epoch"],
            AT_STEP: record["step"],
        }


class TrialEvents(EventHandler):
    """Handles the workers' events as `beeray.train` does.

    Args:
        report: is handed epochs that are not the last.
        tell: is told when `saves_when_stopped` has become another.
        arguments, keywords: of `EventHandler`.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        tell: Callable[[bool], None],
        *arguments: Any,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._report, self._tell = report, tell

    def __call__(self, event: dict[str, Any]) -> None:
        """Handle one event."""
        before = self.saves_when_stopped
        super().__call__(event)
        if self.saves_when_stopped != before:
            self._tell(self.saves_when_stopped)

    def _on_epoch(self, event: dict[str, Any]) -> None:
        super()._on_epoch(event)
        if event["step"] < self._num_steps:
            self._report({"epoch": event["epoch"], "step": event["step"], **event["metrics"]})
