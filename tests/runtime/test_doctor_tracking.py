"""MLflow reached or not: a server that is not there, one that is mute, databases; nothing is written."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from beeray.config import Config, validate_config
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
