"""MLflow: one run per training run, wherever it ran and however often it resumed.

Only the driver logs. The run's id is kept in the run folder and used again on resume; steps that the
server already has are not logged twice. The client works in a thread of its own, since opening a new
database takes seconds that training need not wait for.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from beeray.config import Config, flatten_config
from beeray.errors import RunError

ID_FILE = "mlflow_run.json"
BATCH = 500
RETRY_PAUSES_S = (1.0, 5.0)


def tracking_uri(config: Config) -> str:
    """The MLflow URI of a config: its own, or a sqlite file (absolute path) in the runs folder."""
    return config.tracking.uri or f"sqlite:///{Path(config.runs_dir).absolute() / 'mlflow.db'}"


class Tracker:
    """Logs one run to MLflow in the background; use as a context.

    Args:
        config: what `tracking` says, and the parameters to log.
        run_dir: keeps the run's id.

    MLflow that fails while a run goes on does not stop the run: `trouble` says what happened.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self.uri = tracking_uri(config)
        self.run_id: str | None = None
        self._last_step = -1
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED"
        self._queue.put(lambda client: client.set_terminated(self.run_id, status))
        self._queue.put(None)
        self._thread.join()

    def check(self) -> None:
        """Wait until a server of the user's has answered; the local database is opened meanwhile.

        Raises:
            RunError: MLflow cannot be reached.
        """
        if self.config.tracking.uri is None:
            return
        opened = threading.Event()
        self._queue.put(lambda client: opened.set())
        while not opened.wait(0.1):
            if self.trouble:
                raise RunError(f"{self.trouble}; check tracking.uri, or leave it out for a local database")

    @property
    def trouble(self) -> str | None:
        """Why what MLflow has is incomplete; None when it is not."""
        if self._error is None:
            return None
        reason = (str(self._error).splitlines() or [type(self._error).__name__])[0]
        return f"tracking.uri {self.uri!r}: MLflow refused or did not answer ({reason[:300]})"

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step; a step logged before a resume is skipped."""
        from_time = int(time.time() * 1000)
        self._queue.put(lambda client: self._log(client, step, metrics, from_time, once=True))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of an epoch or of the whole run."""
        from_time = int(time.time() * 1000)
        self._queue.put(lambda client: self._log(client, step, metrics, from_time, once=False))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run folder."""
        self._queue.put(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def log_model(self, folder: Path) -> None:
        """The trained encoder, as an MLflow model (registered when `tracking.registered_model` is set)."""
        self._queue.put(lambda client: self._log_model(folder))

    def _work(self) -> None:
        client: Any = None
        while True:
            task = self._queue.get()
            if self._error is None and client is None:
                try:
                    client = self._open()
                except Exception as error:
                    self._error = error
            if task is None:
                return
            if client is not None:
                self._attempt(task, client)

    def _attempt(self, task: Callable[[Any], None], client: Any) -> None:
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return task(client)
            except Exception as error:
                if pause_s is None:
                    self._error = error
                    return None
                time.sleep(pause_s)
        return None

    def _open(self) -> Any:
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        kept = self.run_dir / ID_FILE
        if kept.is_file():
            self.run_id = json.loads(kept.read_text())["run_id"]
            client.update_run(self.run_id, status="RUNNING")
            self._last_step = int(client.get_run(self.run_id).data.metrics.get("step", -1))
            return client
        run = client.create_run(self._experiment(client), run_name=self.config.name)
        self.run_id = run.info.run_id
        kept.write_text(json.dumps({"run_id": self.run_id, "tracking_uri": self.uri}))
        params = [mlflow.entities.Param(key, str(value)) for key, value in flatten_config(self.config).items()]
        for start in range(0, len(params), 100):
            client.log_batch(self.run_id, params=params[start : start + 100])
        return client

    def _experiment(self, client: Any) -> str:
        name = self.config.tracking.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:"):  # MLflow's default would be the folder the command was typed in
            artifacts = (Path(self.config.runs_dir).absolute() / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=artifacts))

    def _log(self, client: Any, step: int, metrics: Mapping[str, float], timestamp: int, *, once: bool) -> None:
        from mlflow.entities import Metric

        if once and step <= self._last_step:
            return
        values = dict(metrics) | ({"step": float(step)} if once else {})
        entries = [Metric(_metric_name(name), float(value), timestamp, step) for name, value in values.items()]
        client.log_batch(self.run_id, metrics=entries[:BATCH])
        if once:
            self._last_step = step

    def _log_model(self, folder: Path) -> None:
        import mlflow
        from sentence_transformers import SentenceTransformer

        with mlflow.start_run(run_id=self.run_id):
            mlflow.sentence_transformers.log_model(
                SentenceTransformer(str(folder), device="cpu"),
                name="model",
                registered_model_name=self.config.tracking.registered_model,
                pip_requirements=["sentence-transformers", "torch"],  # no import of the world to infer them
            )


def _metric_name(name: str) -> str:
    return name.replace("@", "_at_")
