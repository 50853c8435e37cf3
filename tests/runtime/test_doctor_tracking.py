"""MLflow reached or not: a server that is not there, one that is mute, databases; nothing is written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.db import utils as mlflow_databases

from beeray.config import Config, validate_config
from beeray.runtime.doctor.finding import Finding
from beeray.runtime.doctor.tracking import check_mlflow

pytestmark = pytest.mark.usefixtures("no_tracking_variables")


@pytest.fixture
def answering_port() -> Iterator[int]:
    """A server that says what MLflow says when it has no experiment."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def a_config(folder: Path, uri: str | None = None) -> Config:
    tree = {"name": "tracked", "runs_dir": str(folder / "runs"), "data": {"source": "shop"}}
    return validate_config(tree | {"tracking": {"uri": uri}})


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    finding = check_mlflow(a_config(tmp_path, "http://127.0.0.1:9"), 5)
    assert finding.status == "FAILED"
    assert finding.said.startswith("tracking.uri 'http://127.0.0.1:9': MLflow cannot be reached (")
    assert finding.said.endswith(
        "start the server, correct the address in tracking.uri, or leave it out for a local database"
    )
    assert "\n" not in finding.said


def test_a_mute_server_is_given_up_within_the_limit(tmp_path: Path, mute_port: int) -> None:
    started = time.monotonic()
    finding = check_mlflow(a_config(tmp_path, f"http://127.0.0.1:{mute_port}"), 1)
    assert finding.status == "FAILED" and "timed out" in finding.said.lower()
    assert time.monotonic() - started < 15
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP")]


def test_a_server_that_answers_passes(tmp_path: Path, answering_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_mlflow(a_config(tmp_path, f"http://127.0.0.1:{answering_port}"), 5).status == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter22@127.0.0.1:{answering_port}")
    finding = check_mlflow(a_config(tmp_path), 5)
    assert finding.status == "ok" and "hunter22" not in finding.said


def test_a_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:9")
    finding = check_mlflow(a_config(tmp_path), 5)
    assert finding.said.startswith("MLFLOW_TRACKING_URI 'http://***@127.0.0.1:9'")
    assert "hunter22" not in finding.said and "correct the address in MLFLOW_TRACKING_URI" in finding.said


def test_a_local_database_is_not_made_and_one_that_is_there_is_opened(tmp_path: Path) -> None:
    assert "no database yet" in check_mlflow(a_config(tmp_path), 5).said
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as connection:
        connection.execute("CREATE TABLE experiments (id INTEGER)")
    assert check_mlflow(a_config(tmp_path), 5).said.endswith("a database of 1 tables")
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"no database at all, but a file of that name" * 50)
    finding = check_mlflow(a_config(tmp_path), 5)
    assert finding.status == "FAILED" and "not a database" in finding.said


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "nonsense://x", "mlruns-of-nobody://"])
def test_other_addresses_that_cannot_be_reached_fail(tmp_path: Path, uri: str) -> None:
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "FAILED", finding.said
    assert "; start the server, correct the address in tracking.uri" in finding.said


@pytest.mark.parametrize("uri", ["file://{}/with%20space/mlruns", "{}/with space/mlruns"])
def test_a_folder_fails_as_mlflow_refuses_it_unless_the_environment_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    uri = uri.format(tmp_path)
    with pytest.raises(Exception, match="MLFLOW_ALLOW_FILE_STORE"):
        MlflowClient(uri).search_experiments(max_results=1)
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "FAILED"
    assert finding.said == (
        f"tracking.uri {uri!r}: this MLflow refuses to log into a folder; name a database "
        f"(sqlite:///{tmp_path}/with space/mlruns/mlflow.db) or a server, or set MLFLOW_ALLOW_FILE_STORE=true"
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert check_mlflow(a_config(tmp_path, uri), 5).said == f"{uri}: its folder can be written"
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    monkeypatch.delattr("mlflow.environment_variables.MLFLOW_ALLOW_FILE_STORE")
    assert check_mlflow(a_config(tmp_path, uri), 5).status == "ok", "a version that knows no such setting takes folders"
    assert list(tmp_path.iterdir()) == []


def test_databricks_is_a_server_and_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beeray.runtime.doctor.tracking._server", lambda uri, limit_s: Finding("ok", "asked"))
    assert check_mlflow(a_config(tmp_path, "databricks"), 1).said == "databricks: asked"


@pytest.fixture(scope="module")
def made_by_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the tables of this MLflow."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    mlflow_databases._initialize_tables(engine)
    engine.dispose()
    return path


def changed(made: Path, folder: Path, *statements: str) -> tuple[str, Path]:
    """URI and path of a copy of a database after some statements."""
    path = folder / "mlflow.db"
    shutil.copy(made, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return f"sqlite:///{path}", path


def revisions() -> tuple[str, str]:
    """That of this MLflow's tables, and the one before."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(mlflow_databases._get_alembic_config(""))
    own, before, *_ = [one.revision for one in script.walk_revisions()]
    return own, before


def test_a_database_of_this_mlflow_passes_and_is_left_as_it_was(tmp_path: Path, made_by_mlflow: Path) -> None:
    uri, path = changed(made_by_mlflow, tmp_path)
    before = path.read_bytes()
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "ok" and finding.said.startswith(f"{uri}: a database of "), finding.said
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_tables_of_an_older_mlflow_fail_where_it_refuses_them(
    tmp_path: Path, made_by_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, older = revisions()
    uri, path = changed(made_by_mlflow, tmp_path, f"UPDATE alembic_version SET version_num = '{older}'")
    with pytest.raises(Exception, match="out-of-date database schema"):
        MlflowClient(uri).search_experiments(max_results=1)
    before = path.read_bytes()
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "FAILED"
    assert finding.said == (
        f"tracking.uri {uri!r}: its tables are of version {older}, this MLflow's of {own}, which refuses them; back "
        f"the database up, then mlflow db upgrade {uri}"
    )
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.delattr("mlflow.store.db.utils._get_latest_schema_revision")
    assert check_mlflow(a_config(tmp_path, uri), 5).status == "ok", "a version without that helper is not asked"


def test_tables_that_mlflow_would_change_by_itself_are_a_warning_and_are_not_changed(
    tmp_path: Path, made_by_mlflow: Path
) -> None:
    own, older = revisions()
    lacking = "DROP TABLE webhooks", f"UPDATE alembic_version SET version_num = '{older}'"
    uri, path = changed(made_by_mlflow, tmp_path, *lacking)
    before = path.read_bytes()
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "warning"
    assert f"version {older}, this MLflow's of {own}, to which a run changes them, and their own MLflow" in finding.said
    assert path.read_bytes() == before


def test_tables_of_a_newer_mlflow_cannot_be_upgraded_and_ask_for_another_mlflow(
    tmp_path: Path, made_by_mlflow: Path
) -> None:
    uri, _ = changed(made_by_mlflow, tmp_path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    finding = check_mlflow(a_config(tmp_path, uri), 5)
    assert finding.status == "FAILED" and "its tables are of version ffffffffffff, this MLflow's of " in finding.said
    assert "db upgrade" not in finding.said and "install the MLflow that made them, or a newer one" in finding.said


def test_an_empty_database_gets_its_tables_from_the_run(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    finding = check_mlflow(a_config(tmp_path, f"sqlite:///{tmp_path}/mlflow.db"), 5)
    assert finding.status == "ok" and finding.said.endswith("a database of 0 tables")
    assert (tmp_path / "mlflow.db").stat().st_size == 0
