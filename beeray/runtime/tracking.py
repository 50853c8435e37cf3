"""MLflow: one run per training run, wherever it ran and however often it resumed.

Only the driver logs. The run's id is kept in the run folder and used again on resume; steps that the
server already has are not logged twice. The client works in a thread of its own, since opening a new
database takes seconds that training need not wait for.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from beeray.config import Config, flatten_config
from beeray.config.credentials import redact_text, redact_uri
from beeray.config.paths import from_root
from beeray.errors import RunError
from beeray.runtime.whole_files import write_whole

ID_FILE = "mlflow_run.json"
MODEL = "model"
BATCH = 500
"""Metrics of one request; a server refuses more than a thousand."""
RETRY_PAUSES_S = (1.0, 5.0)
URI_VARIABLE = "MLFLOW_TRACKING_URI"
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", TIMEOUT_VARIABLE: "15"}
"""How long the client tries (it reads the environment at each request) unless the user has said so: a mute
server is given up in less than a minute, where MLflow's own defaults take a quarter of an hour."""
UPLOAD_TIMEOUT_S = "120"
"""An artifact's server may store a whole model elsewhere before it answers."""
CHECK_S = 120.0
"""How long `check` waits; a database of the user's may need its tables made."""
STALL_S, EXIT_S, STUCK_S = 60.0, 600.0, 1.0
"""What is left to log when the context ends may take so long: one record, all of them (or an upload), and what
has failed already."""


def tracking_uri(config: Config) -> str:
    """The MLflow URI of a config: its own, that of the environment, or a sqlite file in the runs folder.

    It may hold a password (from the environment): show `redact_uri` of it.
    """
    local = f"sqlite:///{from_root(config.runs_dir) / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get(URI_VARIABLE) or local


def tracking_key(config: Config) -> str | None:
    """What names the MLflow of a config: `tracking.uri`, a variable of the environment, or nothing (a local file)."""
    if config.tracking.uri is not None:
        return "tracking.uri"
    return URI_VARIABLE if os.environ.get(URI_VARIABLE) else None


class Tracker:
    """Logs one run to MLflow in the background; use as a context.

    Args:
        config: what `tracking` says, and the parameters to log.
        run_dir: keeps the run's id.
        parent: the tracker of the run that this one is nested under; it must be in use.

    MLflow that fails while a run goes on does not stop the run: `trouble` says what happened. A record that it
    refuses is left out; once it does not answer, nothing more is attempted.
    """

    def __init__(self, config: Config, run_dir: Path, parent: Tracker | None = None) -> None:
        self.config = config
        self.run_dir = run_dir
        self.parent = parent
        self.uri: str = parent.uri if parent is not None else tracking_uri(config)
        named = tracking_key(config)
        self._is_local = parent is not None or named is None
        self._key = named or "tracking.uri"
        self.run_id: str | None = None
        self._opened = threading.Event()
        self._last_step = -1
        self._queue: queue.Queue[tuple[Callable[[Any], None], bool] | None] = queue.Queue()
        self._refusal: Exception | None = None
        self._error: Exception | None = None
        self._uploading = False
        self._progress_at = time.monotonic()
        self._environment: dict[str, str | None] = {}
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")

    def __enter__(self) -> Tracker:
        settings = dict(REQUESTS)
        if redact_uri(self.uri) != self.uri:
            settings["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # MLflow would print the password
        self._environment = {name: os.environ.get(name) for name in (*settings, URI_VARIABLE)}
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "FINISHED" if kind is None else "KILLED" if interrupted else "FAILED"
        self._put(lambda client: client.set_terminated(self.run_id, status))
        self._queue.put(None)
        try:
            self._join()
        finally:
            for name, value in self._environment.items():  # MLflow sets URI_VARIABLE, which the next run would read
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _join(self) -> None:
        started = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            waited = time.monotonic() - started
            stalled = min(waited, time.monotonic() - self._progress_at) > STALL_S and not self._uploading
            if self._error is not None and waited > STUCK_S:
                return  # the thread is in a call that will fail, and tries nothing after it
            if stalled or waited > EXIT_S:
                self._error = self._error or TimeoutError(f"no end within {waited:.0f} s")

    def check(self) -> None:
        """Wait until a server of the user's has answered; the local database is opened meanwhile.

        Raises:
            RunError: MLflow cannot be reached.
        """
        if self._is_local:
            return
        opened = threading.Event()
        self._put(lambda client: opened.set())
        deadline = time.monotonic() + CHECK_S
        while not opened.wait(0.1):
            if time.monotonic() > deadline:
                self._error = self._error or TimeoutError(f"no answer within {CHECK_S:.0f} s")
            if self._failure:
                raise RunError(f"{self._failure}; check {self._key}, or leave it out for a local database")

    @property
    def trouble(self) -> str | None:
        """Why what MLflow has is incomplete; None when it is not."""
        return self._failure and f"{self._failure}; its records of this run are incomplete"

    @property
    def _failure(self) -> str | None:
        error = self._error or self._refusal
        if error is None:
            return None
        reason = (redact_text(str(error), self.uri).splitlines() or [type(error).__name__])[0]
        return f"{self._key} {redact_uri(self.uri)!r}: MLflow refused or did not answer ({reason[:300]})"

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step; a step logged before a resume is skipped."""
        from_time = int(time.time() * 1000)
        self._put(lambda client: self._log(client, step, metrics, from_time, once=True))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of an epoch or of the whole run."""
        from_time = int(time.time() * 1000)
        self._put(lambda client: self._log(client, step, metrics, from_time, once=False))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run folder."""
        self._put(lambda client: client.log_artifact(self.run_id, str(path), folder), upload=True)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Words about the run: fingerprints, versions."""
        self._put(lambda client: self._set_tags(client, dict(tags)))

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        """A JSON artifact."""
        self._put(lambda client: client.log_dict(self.run_id, dict(content), name), upload=True)

    def log_model(self, folder: Path) -> None:
        """The trained encoder, as an MLflow model (registered when `tracking.registered_model` is set)."""
        self._put(lambda client: self._log_model(folder), upload=True)

    def register_model(self, name: str) -> None:
        """Make the model that this run logged a version of a registered model, once."""
        self._put(lambda client: self._register_model(client, name), upload=True)

    def wait_for_id(self) -> str:
        """The run's id, once MLflow has given it.

        Raises:
            RunError: MLflow refused or did not answer.
        """
        while not self._opened.wait(0.1):
            if self._failure or not self._thread.is_alive():
                raise RunError(self._failure or "the run was closed before MLflow gave it an id")
        assert self.run_id is not None
        return self.run_id

    def _put(self, task: Callable[[Any], None], *, upload: bool = False) -> None:
        self._queue.put((task, upload))

    def _work(self) -> None:
        client: Any = None
        while (entry := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                client = client or self._open()
                self._opened.set()
            except Exception as error:
                self._error = self._error or error
                continue
            task, self._uploading = entry
            self._attempt(task, client)
            self._uploading = False
            self._progress_at = time.monotonic()

    def _attempt(self, task: Callable[[Any], None], client: Any) -> None:
        for pause_s in (*RETRY_PAUSES_S, None):
            if self._error is not None:
                return
            try:
                return self._with_patience(task, client)
            except Exception as error:
                if _is_refusal(error) or (self._uploading and pause_s is None):  # artifacts have a server of their own
                    self._refusal = self._refusal or error
                    return
                if pause_s is None:
                    self._error = self._error or error
                    return
                time.sleep(pause_s)

    def _with_patience(self, task: Callable[[Any], None], client: Any) -> None:
        if not self._uploading or self._environment[TIMEOUT_VARIABLE] is not None:
            return task(client)
        os.environ[TIMEOUT_VARIABLE] = UPLOAD_TIMEOUT_S
        try:
            return task(client)
        finally:
            if self._error is None:  # else the context may have ended, and put the environment back
                os.environ[TIMEOUT_VARIABLE] = REQUESTS[TIMEOUT_VARIABLE]

    def _open(self) -> Any:
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        kept = self._kept_run(client)
        if kept is not None:
            self.run_id = str(kept.info.run_id)
            client.update_run(self.run_id, status="RUNNING")
            self._last_step = int(kept.data.metrics.get("step", -1))
            self._log_params(client, known=kept.data.params)
            return client
        nested = {"mlflow.parentRunId": self.parent.wait_for_id()} if self.parent is not None else None
        run = client.create_run(self._experiment(client), run_name=self.config.name, tags=nested)
        self.run_id = run.info.run_id
        record = {"run_id": self.run_id, "tracking_uri": redact_uri(self.uri)}
        (self.run_dir / ID_FILE).write_text(json.dumps(record))
        self._log_params(client, known={})
        return client

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

    def _log(self, client: Any, step: int, metrics: Mapping[str, float], timestamp: int, *, once: bool) -> None:
        from mlflow.entities import Metric

        if once and step <= self._last_step:
            return
        values = dict(metrics) | ({"step": float(step)} if once else {})
        entries = [Metric(_metric_name(name), float(value), timestamp, step) for name, value in values.items()]
        for start in range(0, len(entries), BATCH):
            client.log_batch(self.run_id, metrics=entries[start : start + BATCH])
        if once:
            self._last_step = step

    def _set_tags(self, client: Any, tags: dict[str, str]) -> None:
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value)

    def _log_model(self, folder: Path) -> None:
        import mlflow

        from beeray.runtime.task import open_encoder

        with mlflow.start_run(run_id=self.run_id):
            mlflow.sentence_transformers.log_model(
                open_encoder(self.config, str(folder), self.config.served_seq_length, "cpu"),
                name=MODEL,
                registered_model_name=self.config.tracking.registered_model,
                pip_requirements=["sentence-transformers", "torch"],  # no import of the world to infer them
            )

    def _register_model(self, client: Any, name: str) -> None:
        import mlflow

        known = client.search_model_versions(f"run_id = '{self.run_id}'")
        if not any(version.name == name for version in known):
            mlflow.register_model(f"runs:/{self.run_id}/{MODEL}", name)


class Untracked(Tracker):
    """Drops what a run would log: the trials of a sweep are logged by its driver."""

    def __enter__(self) -> Untracked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def check(self) -> None:
        """Nothing to wait for."""

    def _put(self, task: Callable[[Any], None], *, upload: bool = False) -> None:
        return


def track_evaluation(config: Config, label: str, folder: Path, metrics: Mapping[str, float], kind: str) -> str | None:
    """Log what was scored as an MLflow run of its own, `<run>:<label>`, with the names that a training's figures have.

    Args:
        folder: of the evaluation; keeps the id of its last MLflow run. Scored again it is a new run, since parameters
            may be others.
        metrics: by name, as `flat_means` gives them.
        kind: tag `beeray.kind`.

    Returns:
        why MLflow's record is incomplete; None when it is not.
    """
    (folder / ID_FILE).unlink(missing_ok=True)
    with Tracker(config.model_copy(update={"name": f"{config.name}:{label}"}), folder) as tracker:
        tracker.log_metrics({f"final/{name}": value for name, value in metrics.items()})
        tracker.log_tags({"beeray.kind": kind, "beeray.run": config.name})
    if tracker.trouble is None:
        record = json.loads((folder / ID_FILE).read_text())
        write_whole(folder / ID_FILE, json.dumps(record | {"whole": True}))
    return tracker.trouble


def evaluation_tracked(folder: Path) -> bool:
    """Whether MLflow has all of an evaluation: `track_evaluation` came to its end since it was scored."""
    try:
        return bool(json.loads((folder / ID_FILE).read_text()).get("whole"))
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow is there and says no to this record, so that others may pass and trying again is vain."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status < 500 and status != 429
    return isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error, OSError)


def _metric_name(name: str) -> str:
    return name.replace("@", "_at_")
