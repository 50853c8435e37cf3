"""One run on MLflow: made, or found again by the id that the run folder keeps, and what is written to it.

Each method is a request of `tracking.Tracker`'s thread, which knows what to do when one fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beeray.config import Config, flatten_config
from beeray.config.credentials import redact_uri
from beeray.config.paths import from_root

ID_FILE = "mlflow_run.json"
MODEL = "model"
BATCH = 500
"""Metrics of one request; a server refuses more than a thousand."""


class MlflowRun:
    """A run, written to once it is open.

    Args:
        config: names the run and its experiment; its keys are the parameters.
        run_dir: keeps the run's id.
        uri: of MLflow.

    Attributes:
        run_id: once MLflow has given it.
    """

    def __init__(self, config: Config, run_dir: Path, uri: str) -> None:
        self.config, self.run_dir, self.uri = config, run_dir, uri
        self.run_id: str | None = None
        self._client: Any = None
        self._last_step = -1

    def open(self, parent_id: Callable[[], str] | None) -> None:
        """Go on with the run that this folder began, or make one.

        Args:
            parent_id: of the run to nest it under.
        """
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        kept = self._kept_run(client)
        if kept is not None:
            self.run_id = str(kept.info.run_id)
            client.update_run(self.run_id, status="RUNNING")
            self._last_step = int(kept.data.metrics.get("step", -1))
            self._log_params(client, known=kept.data.params)
        else:
            nested = {"mlflow.parentRunId": parent_id()} if parent_id is not None else None
            run = client.create_run(self._experiment(client), run_name=self.config.name, tags=nested)
            self.run_id = str(run.info.run_id)
            record = {"run_id": self.run_id, "tracking_uri": redact_uri(self.uri)}
            (self.run_dir / ID_FILE).write_text(json.dumps(record))
            self._log_params(client, known={})
        self._client = client

    def end(self, status: str) -> None:
        """Close the run as FINISHED, KILLED or FAILED."""
        self._client.set_terminated(self.run_id, status)

    def log_step(self, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Metrics of a step, and `step` itself, unless the run has those of it or of a later one."""
        if step > self._last_step:
            self.log_metrics(step, {**metrics, "step": float(step)}, timestamp_ms)
            self._last_step = step

    def log_metrics(self, step: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Metrics, in requests of `BATCH`."""
        from mlflow.entities import Metric

        entries = [Metric(_metric_name(name), float(value), timestamp_ms, step) for name, value in metrics.items()]
        for start in range(0, len(entries), BATCH):
            self._client.log_batch(self.run_id, metrics=entries[start : start + BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words about the run."""
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def log_artifact(self, path: Path, folder: str | None) -> None:
        """A file, in a folder of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_dict(self, content: dict[str, Any], name: str) -> None:
        """A JSON artifact."""
        self._client.log_dict(self.run_id, content, name)

    def log_model(self, folder: Path) -> None:
        """An encoder's folder as an MLflow model, registered where `tracking.registered_model` says so."""
        import mlflow

        from beeray.runtime.task import open_encoder

        with mlflow.start_run(run_id=self.run_id):
            mlflow.sentence_transformers.log_model(
                open_encoder(self.config, str(folder), self.config.served_seq_length, "cpu"),
                name=MODEL,
                registered_model_name=self.config.tracking.registered_model,
                pip_requirements=["sentence-transformers", "torch"],  # no import of the world to infer them
            )

    def register_model(self, name: str) -> None:
        """Make the model that was logged a version of a registered model, once."""
        import mlflow

        known = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        if not any(version.name == name for version in known):
            mlflow.register_model(f"runs:/{self.run_id}/{MODEL}", name)

    def _log_params(self, client: Any, known: Mapping[str, str]) -> None:
        """The config's keys that the run lacks: all, or those that a killed driver did not get to log."""
        from mlflow.entities import Param

        flat = flatten_config(self.config)
        params = [Param(key, str(value)) for key, value in flat.items() if key not in known]
        for start in range(0, len(params), 100):
            client.log_batch(self.run_id, params=params[start : start + 100])

    def _kept_run(self, client: Any) -> Any:
        """The run that this folder began; None if there is none, or the server has it no more."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = json.loads((self.run_dir / ID_FILE).read_text())["run_id"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or torn by a killed driver
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.get_http_status_code() == 404:
                return None
            raise
        return None if run.info.lifecycle_stage == "deleted" else run

    def _experiment(self, client: Any) -> str:
        name = self.config.tracking.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:"):  # MLflow's default would be the folder the command was typed in
            artifacts = (from_root(self.config.runs_dir) / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=artifacts))


def _metric_name(name: str) -> str:
    return name.replace("@", "_at_")
