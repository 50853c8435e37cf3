"""MLflow, from the command: only the command talks to it. Nothing is written there, no database is made."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from beeray.config import Config
from beeray.config.credentials import redact_text, redact_uri
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding, in_one_line
from beeray.runtime.doctor.storage import nearest_folder
from beeray.runtime.tracking import tracking_key, tracking_uri

if TYPE_CHECKING:
    from sqlalchemy import Engine

DATABRICKS = ("databricks", "databricks-uc", "uc")
"""Servers to MLflow, which calls anything else without a scheme a folder."""
ALLOWS_FILES = "MLFLOW_ALLOW_FILE_STORE"
VERSION_TABLE = "alembic_version"


def check_mlflow(config: Config, limit_s: float) -> Finding:
    """Ask the MLflow server, or look at the database, that a run would log to.

    Args:
        limit_s: how long a server may take to answer.
    """
    uri = tracking_uri(config)
    named = tracking_key(config)
    key = named or "tracking.uri (unset)"
    shown = redact_uri(uri)
    try:
        finding = _look_at(uri, limit_s)
    except Exception as error:
        reason = redact_text(in_one_line(error), uri)
        remedy = (
            f"start the server, correct the address in {key}, or leave it out for a local database"
            if named
            else "give this user the right to write in runs_dir, or name a server in tracking.uri"
        )
        return Finding(FAILED, f"{key} {shown!r}: MLflow cannot be reached ({reason}); {remedy}")
    return replace(finding, said=f"{shown if finding.status == OK else f'{key} {shown!r}'}: {finding.said}")


def _look_at(uri: str, limit_s: float) -> Finding:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file") and uri not in DATABRICKS:
        return _files(Path(unquote(urlsplit(uri).path)) if scheme else Path(uri))
    if scheme == "sqlite":
        return _sqlite(uri)
    return _database(uri) if _is_database(scheme) else _server(uri, limit_s)


def _is_database(scheme: str) -> bool:
    return scheme in ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")


def _server(uri: str, limit_s: float) -> Finding:
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, int(limit_s)))}
    with _environment(patience):
        from mlflow import MlflowClient

        MlflowClient(uri).search_experiments(max_results=1)
    return Finding(OK, "the server answers")


def _database(uri: str) -> Finding:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        return _schema(engine, uri)
    finally:
        engine.dispose()


def _sqlite(uri: str) -> Finding:
    import sqlalchemy

    path = Path(unquote(uri.partition(":///")[2].partition("?")[0]).removeprefix("file:"))
    if not path.is_file():
        return Finding(OK, f"no database yet; {_folder(path.parent)}")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written")
    address = f"{path.absolute().as_uri()}?mode=ro"
    engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True, timeout=2.0))
    try:
        return _schema(engine, uri)
    finally:
        engine.dispose()


def _schema(engine: Engine, uri: str) -> Finding:
    """Whether the tables are of this MLflow's version; reads only. One that is empty gets its tables from the run.

    It goes as MLflow does when it opens a database: where a table of its own is missing it migrates all of them, and
    then it refuses a schema that is not the one it was written for. By helpers that MLflow keeps to itself, so a
    version without them is not asked.
    """
    import sqlalchemy

    tables = sqlalchemy.inspect(engine).get_table_names()
    fine = Finding(OK, f"a database of {len(tables)} tables")
    if VERSION_TABLE not in tables:
        return fine
    try:
        from alembic.script import ScriptDirectory
        from mlflow.store.db.utils import (
            _all_tables_exist,
            _get_alembic_config,
            _get_latest_schema_revision,
            _get_schema_version,
        )
    except ImportError:
        return fine
    version, own = _get_schema_version(engine), _get_latest_schema_revision()
    if version in (own, None):
        return fine
    script = ScriptDirectory.from_config(_get_alembic_config(""))
    differs = f"its tables are of version {version}, this MLflow's of {own}"
    if version not in {one.revision for one in script.walk_revisions()}:
        remedy = "install the MLflow that made them, or a newer one, where this command runs, or name another database"
        return Finding(FAILED, f"{differs}, which does not know theirs and refuses them; {remedy}")
    remedy = f"back the database up, then mlflow db upgrade {redact_uri(uri)}"
    if _all_tables_exist(engine):
        return Finding(FAILED, f"{differs}, which refuses them; {remedy}")
    return Finding(WARNING, f"{differs}, to which a run changes them, and their own MLflow refuses them then; {remedy}")


def _files(path: Path) -> Finding:
    """A folder as a store of runs, which later versions of MLflow refuse unless the environment allows it."""
    from mlflow import environment_variables

    allowed = getattr(environment_variables, ALLOWS_FILES, None)
    if allowed is None or allowed.get():
        return Finding(OK, _folder(path))
    return Finding(
        FAILED,
        f"this MLflow refuses to log into a folder; name a database (sqlite:///{path.absolute() / 'mlflow.db'}) or a "
        f"server, or set {ALLOWS_FILES}=true",
    )


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
