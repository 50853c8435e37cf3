"""MLflow: one run per training run, wherever it ran and however often it resumed.

Only the driver logs. The run's id is kept in the run folder and used again on resume; steps that the
server already has are not logged twice (`mlflow_run.py`). Requests are made in a thread of their own, since
opening a new database takes seconds that training need not wait for; here is what becomes of those that fail.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from beeray.config import Config
from beeray.config.credentials import redact_text, redact_uri
from beeray.config.paths import from_root
from beeray.errors import RunError
from beeray.runtime.mlflow_run import MlflowRun

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

OBJECT_STORES = ("botocore", "boto3", "s3transfer")
"""What puts an artifact on S3 raises errors of its own."""
Request = Callable[[MlflowRun], None]


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
        self.parent = parent
        self.uri: str = parent.uri if parent is not None else tracking_uri(config)
        named = tracking_key(config)
        self._is_local = parent is not None or named is None
        self._key = named or "tracking.uri"
        self._run = MlflowRun(config, run_dir, self.uri)
        self._opened = threading.Event()
        self._queue: queue.Queue[tuple[Request, bool] | None] = queue.Queue()
        self._refusal: Exception | None = None
        self._lost_upload: Exception | None = None
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
        self._put(lambda run: run.end(status))
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

    @property
    def run_id(self) -> str | None:
        """The run's id, once MLflow has given it."""
        return self._run.run_id

    def check(self) -> None:
        """Wait until a server of the user's has answered; the local database is opened meanwhile.

        Raises:
            RunError: MLflow cannot be reached.
        """
        if self._is_local:
            return
        opened = threading.Event()
        self._put(lambda run: opened.set())
        deadline = time.monotonic() + CHECK_S
        while not opened.wait(0.1):
            if time.monotonic() > deadline:
                self._error = self._error or TimeoutError(f"no answer within {CHECK_S:.0f} s")
            if self._failure:
                raise RunError(f"{self._failure}; check {self._key}, or leave it out for a local database")

    @property
    def went_away(self) -> bool:
        """Whether MLflow no longer answers, so that it can be given later what it lacks; not what it has refused."""
        lost = [error for error in (self._error, self._lost_upload) if error is not None]
        return any(not _is_refusal(error) for error in lost)

    @property
    def trouble(self) -> str | None:
        """Why what MLflow has is incomplete; None when it is not."""
        return self._failure and f"{self._failure}; its records of this run are incomplete"

    @property
    def _failure(self) -> str | None:
        error = self._error or self._lost_upload or self._refusal
        if error is None:
            return None
        reason = (redact_text(str(error), self.uri).splitlines() or [type(error).__name__])[0]
        return f"{self._key} {redact_uri(self.uri)!r}: MLflow refused or did not answer ({reason[:300]})"

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step; a step logged before a resume is skipped."""
        from_time = int(time.time() * 1000)
        self._put(lambda run: run.log_step(step, metrics, from_time))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of an epoch or of the whole run."""
        from_time = int(time.time() * 1000)
        self._put(lambda run: run.log_metrics(step, metrics, from_time))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run folder."""
        self._put(lambda run: run.log_artifact(path, folder), upload=True)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Words about the run: fingerprints, versions."""
        self._put(lambda run: run.set_tags(dict(tags)))

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        """A JSON artifact."""
        self._put(lambda run: run.log_dict(dict(content), name), upload=True)

    def log_model(self, folder: Path) -> None:
        """The trained encoder, as an MLflow model (registered when `tracking.registered_model` is set)."""
        self._put(lambda run: run.log_model(folder), upload=True)

    def register_model(self, name: str) -> None:
        """Make the model that this run logged a version of a registered model, once."""
        self._put(lambda run: run.register_model(name), upload=True)

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

    def _put(self, request: Request, *, upload: bool = False) -> None:
        self._queue.put((request, upload))

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                if not self._opened.is_set():
                    self._run.open(self.parent.wait_for_id if self.parent is not None else None)
                    self._opened.set()
            except Exception as error:
                self._error = self._error or error
                continue
            request, self._uploading = entry
            self._attempt(request)
            self._uploading = False
            self._progress_at = time.monotonic()

    def _attempt(self, request: Request) -> None:
        for pause_s in (*RETRY_PAUSES_S, None):
            if self._error is not None:
                return
            try:
                return self._with_patience(request)
            except Exception as error:
                if _is_refusal(error):
                    self._refusal = self._refusal or error
                    return
                if self._uploading and pause_s is None:  # artifacts have a server of their own
                    self._lost_upload = self._lost_upload or error
                    return
                if pause_s is None:
                    self._error = self._error or error
                    return
                time.sleep(pause_s)

    def _with_patience(self, request: Request) -> None:
        if not self._uploading or self._environment[TIMEOUT_VARIABLE] is not None:
            return request(self._run)
        os.environ[TIMEOUT_VARIABLE] = UPLOAD_TIMEOUT_S
        try:
            return request(self._run)
        finally:
            if self._error is None:  # else the context may have ended, and put the environment back
                os.environ[TIMEOUT_VARIABLE] = REQUESTS[TIMEOUT_VARIABLE]


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

    def _put(self, request: Request, *, upload: bool = False) -> None:
        return


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow is there and says no to this record, so that others may pass and trying again is vain."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status < 500 and status != 429
    if type(error).__module__.partition(".")[0] in OBJECT_STORES:  # no `OSError`s, also of a network
        status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return bool(status < 500 and status != 429)
    return isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error, OSError)
