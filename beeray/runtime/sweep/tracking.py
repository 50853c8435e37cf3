"""MLflow: the sweep is a run, its trials are runs nested under it. Only the sweep's driver logs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

from beeray.config import Config, load_config, search_space
from beeray.console import Console
from beeray.errors import RunError
from beeray.runtime.events import EventHandler
from beeray.runtime.run_folder import CONFIG
from beeray.runtime.sweep.folder import FAILED, INVALID, SweepFolder, Trial, reported_metrics
from beeray.runtime.tracking import Tracker


class SweepTracking:
    """The trackers of a sweep and of the trials that are running; use as a context.

    Args:
        must_answer: refuse to begin where MLflow cannot be reached; what is searched already is not lost with it.

    Attributes:
        troubles: what kept a trial from being logged whole.
    """

    def __init__(self, config: Config, folder: SweepFolder, console: Console, *, must_answer: bool = True) -> None:
        self.folder, self.console, self.must_answer = folder, console, must_answer
        self.troubles: list[str] = []
        self._away = False
        self.parent = Tracker(config, folder.trials)
        self._space = {
            key: dimension.model_dump(mode="json", exclude_none=True) for key, dimension in search_space(config).items()
        }
        self._children: dict[int, Tracker] = {}
        self._closing = ThreadPoolExecutor(8, thread_name_prefix="mlflow-close")
        self._logged: list[Future[None]] = []

    def __enter__(self) -> SweepTracking:
        self.parent.__enter__()
        if self.must_answer:
            self.parent.check()
        self.parent.log_tags({"beeray.kind": "sweep"})
        self.parent.log_dict(self._space, "space.json")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._children.values():
            self._closing.submit(tracker.__exit__, kind or RunError, None, None)
        self._closing.shutdown(wait=True)
        self.parent.__exit__(kind, error, trace)

    def started(self, trial: Trial, config: Config) -> None:
        """Open the run of a trial, or the one that a killed command began."""
        tracker = Tracker(config, self.folder.run_dir(trial), parent=self.parent)
        tracker.__enter__()
        tracker.log_tags({"beeray.kind": "trial", "beeray.status": trial.status})
        self._children[trial.number] = tracker

    def heard(self, trial: Trial, metrics: dict[str, float], step: int) -> None:
        """Log what an epoch reported."""
        if trial.number in self._children:
            self._children[trial.number].log_metrics(metrics, step)

    def ended(self, trial: Trial) -> None:
        """Log a trial's steps and how it ended, and close its run without waiting for it."""
        tracker = self._children.pop(trial.number, None)
        if tracker is None:
            return
        EventHandler(self.console, 0, 0, tracker=tracker).track(self.folder.run(trial).steps())
        if trial.metric is not None:
            tracker.log_metrics({"sweep/metric": trial.metric}, max(trial.epochs, default=0))
        tracker.log_tags({"beeray.status": trial.status, "beeray.reason": trial.reason or ""})  # an earlier one's goes
        self._logged.append(self._closing.submit(self._close, tracker, trial))

    def catch_up(self, trials: list[Trial]) -> None:
        """Log trials again that ended without MLflow having all of them, and wait until every ended trial is logged."""
        wait(self._logged)
        for trial in trials:
            config = self.folder.run_dir(trial) / CONFIG
            if trial.over and trial.status != INVALID and trial.mlflow_run_id is None and config.is_file():
                self.started(trial, load_config(str(config)))
                for epoch in self.folder.run(trial).validation():
                    self.heard(trial, reported_metrics(epoch), epoch["step"])
                self.ended(trial)
        wait(self._logged)

    @property
    def went_away(self) -> bool:
        """Whether MLflow no longer answers, of the sweep or of a trial."""
        return self._away or self.parent.went_away

    @property
    def trouble(self) -> str | None:
        """Why MLflow does not have all of the sweep; None where it has."""
        return self.parent.trouble or next(iter(self.troubles), None)

    def conclude(self, best: Trial | None, artifacts: list[Path]) -> None:
        """Log the best metric and what the sweep left."""
        if best is not None and best.metric is not None:
            self.parent.log_metrics({"sweep/best": best.metric})
            self.parent.log_tags({"beeray.best": best.name})
        for path in artifacts:
            self.parent.log_artifact(path)

    def _close(self, tracker: Tracker, trial: Trial) -> None:
        tracker.__exit__(RunError if trial.status == FAILED else None, None, None)
        if tracker.trouble is None:
            trial.mlflow_run_id = tracker.run_id
            self.folder.save(trial)
        else:
            self.troubles.append(f"{trial.name}: {tracker.trouble}")
            if tracker.went_away:  # several threads close
                self._away = True
