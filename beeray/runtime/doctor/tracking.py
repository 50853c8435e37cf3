"""MLflow, from the command: only the command talks to it. Nothing is written there, no database is made."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from beeray.config import Config
from beeray.config.credentials import redact_text, redact_uri
from beeray.runtime.doctor.finding import FAILED, OK, Finding, in_one_line
from beeray.runtime.doctor.storage import nearest_folder
from beeray.runtime.tracking import tracking_key, tracking_uri

WEB = ("http", "https")


def check_mlflow(config: Config, limit_s: float) -> Finding:
    """Ask the MLflow server, or look at the database, that a run would log to.

    Args:
        limit_s: how long a server may take to answer.
    """
    uri = tracking_uri(config)
    named = tracking_key(config)
    key = named or "tracking.uri (unset)"
    shown, scheme = redact_uri(uri), urlsplit(uri).scheme.partition("+")[0]
    try:
        if scheme in ("", "file"):
            said = _folder(Path(unquote(urlsplit(uri).path)) if scheme else Path(uri))
        elif scheme == "sqlite":
            said = _sqlite(uri)
        elif scheme in WEB or not _is_database(scheme):
            said = _server(uri, limit_s)
        else:
            said = _database(uri)
    except Exception as error:
        reason = redact_text(in_one_line(error), uri)
        remedy = (
            f"start the server, correct the address in {key}, or leave it out for a local database"
            if named
            else "give this user the right to write in runs_dir, or name a server in tracking.uri"
        )
        return Finding(FAILED, f"{key} {shown!r}: MLflow cannot be reached ({reason}); {remedy}")
    return Finding(OK, f"{shown}: {said}")


def _is_database(scheme: str) -> bool:
    return scheme in ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")


def _server(uri: str, limit_s: float) -> str:
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, int(limit_s)))}
    with _environment(patience):
        from mlflow import MlflowClient

        MlflowClient(uri).search_experiments(max_results=1)
    return "the server answers"


def _database(uri: str) -> str:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
    finally:
        engine.dispose()
    return "the database answers"


def _sqlite(uri: str) -> str:
    path = Path(unquote(uri.partition(":///")[2].partition("?")[0]).removeprefix("file:"))
    if not path.is_file():
        return f"no database yet; {_folder(path.parent)}"
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)) as connection:
        (number,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return f"a database of {number} tables"


def _folder(path: Path) -> str:
    folder = Path(nearest_folder(str(path.absolute())))
    with tempfile.TemporaryFile(dir=folder):  # rights alone do not tell: a disk may be read-only
        pass
    return "its folder can be written"


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, until the context ends."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
