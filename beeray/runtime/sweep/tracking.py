"""MLflow: the sweep is a run, its trials are runs nested under it. Only the sweep's driver logs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from beeray.config import Config, search_space
from beeray.console import Console
from beeray.errors import RunError
from beeray.runtime.events import EventHandler
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.sweep.folder import FAILED, SweepFolder, Trial
from beeray.runtime.tracking import Tracker


class SweepTracking:
    """The trackers of a sweep and of the trials that are running; use as a context."""

    def __init__(self, config: Config, folder: SweepFolder, console: Console) -> None:
        self.folder, self.console = folder, console
        self.parent = Tracker(config, folder.trials)
        self._space = {
            key: dimension.model_dump(mode="json", exclude_none=True) for key, dimension in search_space(config).items()
        }
        self._children: dict[int, Tracker] = {}
        self._closing = ThreadPoolExecutor(8, thread_name_prefix="mlflow-close")

    def __enter__(self) -> SweepTracking:
        self.parent.__enter__()
        self.parent.check()
        self.parent.log_tags({"beeray.kind": "sweep"})
        self.parent.log_dict(self._space, "space.json")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._children):
            self._close(self._children.pop(number), failed=True)
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
        config = tracker.config
        EventHandler(self.console, 0, 0, tracker=tracker).track(RunFolder(config).steps())
        if trial.metric is not None:
            tracker.log_metrics({"sweep/metric": trial.metric}, max(trial.epochs, default=0))
        tags = {"beeray.status": trial.status} | ({"beeray.reason": trial.reason} if trial.reason else {})
        tracker.log_tags(tags)
        trial.mlflow_run_id = tracker.run_id
        self._close(tracker, failed=trial.status == FAILED)

    def conclude(self, best: Trial | None, artifacts: list[Path]) -> None:
        """Log the best metric and what the sweep left."""
        if best is not None and best.metric is not None:
            self.parent.log_metrics({"sweep/best": best.metric})
            self.parent.log_tags({"beeray.best": best.name})
        for path in artifacts:
            self.parent.log_artifact(path)

    def _close(self, tracker: Tracker, *, failed: bool) -> None:
        error: Any = RunError if failed else None
        self._closing.submit(tracker.__exit__, error, None, None)
