"""One MLflow run per training run, on a real sqlite store: kept across resumes, no step twice, clear refusals."""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError
from finished_run import a_record
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from beeray.config import Config, flatten_config, load_config, validate_config
from beeray.console import Console
from beeray.errors import RunError
from beeray.runtime import tracking
from beeray.runtime.mlflow_run import BATCH, ID_FILE, MlflowRun
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.tracked_evaluation import evaluation_tracked, track_evaluation
from beeray.runtime.tracking import Tracker, tracking_uri
from beeray.verbs import train

pytestmark = pytest.mark.usefixtures("no_tracking_variables")


def a_config(folder: Path, **section: str) -> Config:
    tree = {"name": "tracked", "runs_dir": str(folder), "data": {"source": "shop"}, "train": {"lr": 3e-4}}
    return validate_config(tree | {"tracking": section})


@pytest.fixture
def dead_port() -> int:
    """A port on loopback where nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run, each test's own."""
    return tmp_path


def log(config: Config, run_dir: Path, steps: dict[int, float]) -> str:
    """Open a tracker, log the loss of some steps, close it; returns the run's id."""
    with Tracker(config, run_dir) as tracker:
        for step, loss in steps.items():
            tracker.log_step(step, {"train/loss": loss})
    assert tracker.run_id is not None
    return tracker.run_id


def history(config: Config, run_id: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(tracking_uri(config))
    return sorted((one.step, one.value) for one in client.get_metric_history(run_id, "train/loss"))


def test_a_resumed_run_keeps_its_id_and_logs_only_the_steps_that_the_server_has_not(
    runs_dir: Path, run_dir: Path
) -> None:
    config = a_config(runs_dir)
    first = log(config, run_dir, {0: 1.5, 1: 1.4, 2: 1.3})
    again = log(config, run_dir, {1: 9.0, 2: 9.0, 3: 1.2, 4: 1.1})
    assert again == first
    assert history(config, first) == [(0, 1.5), (1, 1.4), (2, 1.3), (3, 1.2), (4, 1.1)]


def test_another_run_folder_is_another_run(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir)
    (run_dir / "one").mkdir()
    (run_dir / "two").mkdir()
    assert log(config, run_dir / "one", {0: 1.0}) != log(config, run_dir / "two", {0: 1.0})


def test_every_evaluation_is_a_run_of_its_own_with_the_names_that_training_gives_its_figures(
    runs_dir: Path, run_dir: Path
) -> None:
    config = a_config(runs_dir)
    for value in (0.3, 0.4):
        assert track_evaluation(config, "baseline-ease", run_dir, {"test/held_out/ndcg@10": value}, "baseline") is None
    client = mlflow.MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name("beeray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'tracked:baseline-ease'")
    assert sorted(run.data.metrics["final/test/held_out/ndcg_at_10"] for run in runs) == [0.3, 0.4]
    assert {(run.info.status, run.data.tags["beeray.kind"], run.data.tags["beeray.run"]) for run in runs} == {
        ("FINISHED", "baseline", "tracked")
    }
    assert runs[0].info.run_id == json.loads((run_dir / "mlflow_run.json").read_text())["run_id"]
    assert evaluation_tracked(run_dir)


def test_an_mlflow_that_does_not_answer_costs_an_evaluation_one_line(
    run_dir: Path, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "RETRY_PAUSES_S", (0.01,))
    config = a_config(run_dir, uri=f"http://127.0.0.1:{dead_port}")
    said = track_evaluation(config, "model-32", run_dir, {"test/held_out/ndcg@10": 0.3}, "evaluation")
    assert said is not None and said.startswith("tracking.uri 'http://127.0.0.1:")
    assert not evaluation_tracked(run_dir)


def test_a_step_repeated_by_a_restarted_worker_is_logged_once(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir)
    with Tracker(config, run_dir) as tracker:
        for place, step in enumerate((0, 1, 2, 1, 2, 3)):
            tracker.log_step(step, {"train/loss": 1.0 + place})
    assert tracker.run_id is not None
    assert history(config, tracker.run_id) == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 6.0)]


def test_params_are_the_dotted_config_and_metric_names_carry_no_at_sign(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir)
    artifact = run_dir / "config.yaml"
    artifact.write_text("name: tracked\n")
    with Tracker(config, run_dir) as tracker:
        tracker.log_metrics({"test/ndcg@100": 0.25}, 7)
        tracker.log_metrics({"test/ndcg@100": 0.5}, 9)
        tracker.log_artifact(artifact)
    client = mlflow.MlflowClient(tracking_uri(config))
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tracked"
    assert (run.data.params["train.lr"], run.data.params["encoder.max_seq_length"]) == ("0.0003", "384")
    assert run.data.metrics["test/ndcg_at_100"] == 0.5
    assert [one.path for one in client.list_artifacts(tracker.run_id)] == ["config.yaml"]
    assert list((runs_dir / "mlartifacts").rglob("config.yaml")), "artifacts lie in the runs folder"


def test_more_metrics_than_one_request_takes_are_all_logged(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir)
    means = {f"final/test/held_out/domain-{number}/ndcg@10": float(number) for number in range(2 * BATCH + 1)}
    with Tracker(config, run_dir) as tracker:
        tracker.log_metrics(means, 7)
    assert tracker.trouble is None and tracker.run_id is not None
    logged = mlflow.MlflowClient(tracking_uri(config)).get_run(tracker.run_id).data.metrics
    assert logged == {name.replace("@", "_at_"): value for name, value in means.items()}


def test_a_run_that_was_killed_between_disk_and_mlflow_is_logged_by_the_same_command(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = a_config(runs_dir, uri=tracking_uri(a_config(runs_dir))).model_dump(mode="json")
    tree |= {"runs_dir": str(run_dir), "report": {"enabled": False}}
    tree["tracking"]["log_model"] = False
    config, shown = validate_config(tree), io.StringIO()
    folder = RunFolder(config)
    folder.claim("store-a")
    folder.model.mkdir()
    folder.original_embeddings.parent.mkdir()
    folder.original_embeddings.write_bytes(b"")
    folder.log_step(A_STEP)
    measured = a_record(0.4) | {"model": str(folder.model)}
    measured.pop("neighbours_kept")
    folder.finish(measured)
    with Tracker(config, folder.path) as killed:
        pass
    client = mlflow.MlflowClient(killed.uri)
    client.update_run(str(killed.run_id), status="RUNNING")
    monkeypatch.setattr(train, "store_fingerprint", lambda config: "store-a")
    record = train.execute(config, argparse.Namespace(fresh=False), Console(shown, shown))
    assert record["mlflow_run_id"] == killed.run_id and record == folder.finished()
    run = client.get_run(record["mlflow_run_id"])
    assert (run.info.status, run.data.metrics["train/loss"]) == ("FINISHED", 1.5)
    assert run.data.metrics["final/test/held_out/ndcg_at_20"] == 0.4
    assert not folder.original_embeddings.exists()
    monkeypatch.setattr(train, "Tracker", None)
    assert train.execute(config, argparse.Namespace(fresh=False), Console(shown, shown)) == record, "it is done once"


A_STEP = {"step": 0, "loss": 1.5, "items": 9, "tokens": 90, "padded_tokens": 99, "recomputed_tokens": 0} | {
    "step_s": 0.5,
    "wait_s": 0.1,
}


def test_a_model_that_was_logged_is_registered_later_and_once(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_PAUSES_S", ())
    config = a_config(runs_dir)
    with Tracker(config, run_dir) as tracker:
        tracker._put(lambda client: log_any_model(str(tracker.run_id)), upload=True)
    client = mlflow.MlflowClient(tracking_uri(config))
    for _ in range(2):
        with Tracker(config, run_dir) as again:
            again.register_model("ours")
        assert again.trouble is None
    (version,) = client.search_model_versions("name = 'ours'")
    assert version.run_id == tracker.run_id


def log_any_model(run_id: str) -> None:
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(name="model", python_model=lambda model_input: model_input, pip_requirements=[])


def test_a_run_that_raised_is_marked_failed_and_its_own_error_is_what_is_raised(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir)
    with pytest.raises(KeyError, match="mine"), Tracker(config, run_dir) as tracker:
        raise KeyError("mine")
    client = mlflow.MlflowClient(tracking_uri(config))
    assert tracker.run_id is not None
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    assert log(config, run_dir, {0: 1.0}) == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db", "nonsense://x"])
def test_an_mlflow_that_cannot_be_reached_is_said_before_training_in_one_line_that_names_the_uri(
    run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = a_config(run_dir, uri=uri)
    with pytest.raises(RunError) as caught, Tracker(config, run_dir) as tracker:
        tracker.check()
    message = str(caught.value)
    assert message.startswith(f"tracking.uri {uri!r}: MLflow refused or did not answer (")
    assert message.endswith("; check tracking.uri, or leave it out for a local database")
    assert "\n" not in message
    assert not list(run_dir.iterdir())


def test_an_mlflow_that_answers_passes_the_check(runs_dir: Path, run_dir: Path) -> None:
    config = a_config(runs_dir, uri=tracking_uri(a_config(runs_dir)))
    with Tracker(config, run_dir) as tracker:
        tracker.check()
        assert tracker.run_id is not None, "check returns when the server has answered, not before"
    assert tracker.trouble is None


def test_what_mlflow_refuses_while_a_run_goes_on_is_told_as_trouble_and_stops_nothing(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_PAUSES_S", (0.01,))
    config = a_config(runs_dir)
    with Tracker(config, run_dir) as tracker:
        tracker.log_step(0, {"train/loss": 1.5})
        tracker.log_artifact(run_dir / "missing.parquet")
        tracker.log_step(1, {"train/loss": 1.4})
    assert tracker.trouble is not None and "missing.parquet" in tracker.trouble
    assert tracker.run_id is not None
    assert history(config, tracker.run_id) == [(0, 1.5), (1, 1.4)]


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionError("the artifacts' server is away"), True),
        (EndpointConnectionError(endpoint_url="http://warehouse"), True),
        (ClientError({"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject"), False),
        (MlflowException("no such artifact", error_code=RESOURCE_DOES_NOT_EXIST), False),
    ],
)
def test_what_was_refused_is_told_from_what_can_be_given_later(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, away: bool
) -> None:
    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr(tracking, "RETRY_PAUSES_S", (0.01,))
    monkeypatch.setattr(MlflowRun, "log_artifact", fail)
    config = a_config(runs_dir)
    with Tracker(config, run_dir) as tracker:
        tracker.log_artifact(run_dir / "trials.csv")
        tracker.log_step(1, {"train/loss": 1.4})
    assert tracker.trouble is not None and tracker.went_away is away
    assert tracker.run_id is not None
    assert history(config, tracker.run_id) == [(1, 1.4)], "what comes after it is taken"


def test_the_environment_names_the_server_where_the_config_does_not(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tracking_uri(a_config(runs_dir))
    elsewhere = a_config(run_dir)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local)
    assert tracking_uri(elsewhere) == local
    assert tracking_uri(a_config(run_dir, uri="http://127.0.0.1:9")) == "http://127.0.0.1:9", "the config wins"
    run_id = log(elsewhere, run_dir, {0: 1.0})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(elsewhere) == f"sqlite:///{run_dir / 'mlflow.db'}"
    assert history(a_config(runs_dir), run_id) == [(0, 1.0)]


def test_a_tracker_leaves_the_environment_as_it_was_so_that_the_next_run_has_its_own_database(
    runs_dir: Path, run_dir: Path
) -> None:
    before = dict(os.environ)
    config = a_config(runs_dir)
    with Tracker(config, run_dir) as tracker:
        tracker.log_metrics({"loss": 1.0})
        while tracker.run_id is None:
            time.sleep(0.01)
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert dict(os.environ) == before
    assert tracking_uri(a_config(run_dir)) == f"sqlite:///{run_dir / 'mlflow.db'}"


def test_what_the_user_says_about_requests_is_left_alone(
    runs_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with Tracker(a_config(runs_dir), run_dir):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


SECRET = "hunter2"


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@127.0.0.1:{port}",
        "http://hunter2@127.0.0.1:{port}",
        "postgresql://me:hunter2@127.0.0.1:{port}/mlflow",
        "postgresql://me:a/hunter2@127.0.0.1:{port}/mlflow",
        "nonsense://me:hunter2@127.0.0.1:{port}/x",
        "nonsense://127.0.0.1:{port}/x?password=hunter2",
    ],
)
def test_a_password_from_the_environment_is_never_shown(
    run_dir: Path, dead_port: int, uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=dead_port))
    config = a_config(run_dir)
    with pytest.raises(RunError) as caught, Tracker(config, run_dir) as tracker:
        tracker.check()
    message = str(caught.value)
    assert message.startswith("MLFLOW_TRACKING_URI '") and "***" in message and "127.0.0.1" in message
    assert message.endswith("; check MLFLOW_TRACKING_URI, or leave it out for a local database")
    assert SECRET not in message and SECRET not in (tracker.trouble or "")
    assert SECRET not in str(flatten_config(config))
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err


def test_a_password_is_kept_neither_in_the_run_folder_nor_on_the_server_yet_it_connects(
    runs_dir: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite takes no password, but a query: a real connection by a URI that holds one."""
    monkeypatch.chdir(tmp_path)  # MLflow makes the folder that it takes such a URI for
    database = runs_dir / "mlflow.db"
    log(a_config(runs_dir), run_dir, {0: 1.0})
    (run_dir / ID_FILE).unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{database}?uri=true&password={SECRET}")
    run_id = log(a_config(runs_dir), run_dir, {0: 2.0})
    kept = (run_dir / ID_FILE).read_text()
    assert json.loads(kept) == {"run_id": run_id, "tracking_uri": f"sqlite:///file:{database}?***"}
    with sqlite3.connect(database) as connection:
        stored = "\n".join(connection.iterdump())
    assert run_id in stored and SECRET not in stored


def test_a_config_that_was_written_is_taken_again_with_the_password_in_the_environment(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{SECRET}@host/db")
    config = a_config(run_dir)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    (run_dir / "config.yaml").write_text(text)
    assert SECRET not in text
    again = load_config(str(run_dir / "config.yaml"))
    assert again == config
    assert tracking_uri(again) == f"postgresql://me:{SECRET}@host/db"


def test_a_server_that_dies_is_given_up_once_and_holds_nothing(
    runs_dir: Path, run_dir: Path, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand queued steps cost one failure, not a thousand."""
    monkeypatch.setattr(tracking, "RETRY_PAUSES_S", (0.2, 0.2))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = a_config(runs_dir)
    dead = mlflow.MlflowClient(f"http://127.0.0.1:{dead_port}")
    with Tracker(config, run_dir) as tracker:
        tracker.log_step(0, {"train/loss": 1.0})
        tracker._put(lambda client: dead.log_metric(str(tracker.run_id), "a", 1.0))
        for step in range(1, 1000):
            tracker.log_step(step, {"train/loss": 1.0})
            tracker._put(lambda client: dead.log_metric(str(tracker.run_id), "a", 1.0))
        started = time.monotonic()
    assert time.monotonic() - started < 20, "0.4 s of pauses a failure; all of them would take 400 s"
    assert tracker.trouble is not None and tracker.trouble.endswith("; its records of this run are incomplete")
    assert tracker.run_id is not None
    assert history(config, tracker.run_id) == [(0, 1.0)]


def test_a_mute_server_ends_the_check_in_bounded_time_though_nothing_is_set(
    run_dir: Path, mute_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own defaults would wait a quarter of an hour: 8 requests of 120 s, and pauses between them."""
    monkeypatch.setitem(tracking.REQUESTS, tracking.TIMEOUT_VARIABLE, "2")
    config = a_config(run_dir, uri=f"http://127.0.0.1:{mute_port}")
    started = time.monotonic()
    with pytest.raises(RunError, match="MLflow refused or did not answer"), Tracker(config, run_dir) as tracker:
        tracker.check()
    assert time.monotonic() - started < 25, "3 requests of 2 s, with about 5 s between them"


def test_a_server_that_falls_mute_while_the_context_ends_holds_the_command_no_longer_than_the_limit(
    runs_dir: Path, run_dir: Path, mute_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "STALL_S", 2.0)
    config = a_config(runs_dir)
    mute = mlflow.MlflowClient(f"http://127.0.0.1:{mute_port}")
    with Tracker(config, run_dir) as tracker:
        tracker.log_step(0, {"train/loss": 1.0})
        while tracker.run_id is None or not history(config, tracker.run_id):
            time.sleep(0.1)
        tracker._put(lambda client: mute.log_metric(str(tracker.run_id), "a", 1.0))
        tracker.log_step(1, {"train/loss": 1.0})
        started = time.monotonic()
    assert 1 < time.monotonic() - started < 8
    assert tracker.trouble is not None and "no end within 2 s" in tracker.trouble
    assert tracker.trouble.endswith("; its records of this run are incomplete")


def test_a_check_that_gets_no_answer_ends_at_its_limit(
    run_dir: Path, mute_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who lets MLflow try for long does not hold the command for as long."""
    monkeypatch.setattr(tracking, "CHECK_S", 3.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute_port}")
    started = time.monotonic()
    with pytest.raises(RunError, match="no answer within 3 s"), Tracker(a_config(run_dir), run_dir) as tracker:
        tracker.check()
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("gone", ["deleted", "unknown", "torn"])
def test_a_run_that_the_server_has_no_more_is_begun_anew_with_all_its_steps(
    runs_dir: Path, run_dir: Path, gone: str
) -> None:
    config = a_config(runs_dir, uri=tracking_uri(a_config(runs_dir)))
    first = log(config, run_dir, {0: 1.5, 1: 1.4})
    client = mlflow.MlflowClient(tracking_uri(config))
    kept = run_dir / ID_FILE
    if gone == "deleted":
        client.delete_run(first)
    elif gone == "unknown":
        kept.write_text(json.dumps({"run_id": "0" * 32}))
    else:
        kept.write_text(kept.read_text()[:20])
    with Tracker(config, run_dir) as tracker:
        tracker.check()
        for step, loss in ((0, 1.5), (1, 1.4), (2, 1.3)):
            tracker.log_step(step, {"train/loss": loss})
    assert tracker.trouble is None
    assert tracker.run_id is not None and tracker.run_id != first
    assert json.loads(kept.read_text())["run_id"] == tracker.run_id
    assert history(config, tracker.run_id) == [(0, 1.5), (1, 1.4), (2, 1.3)]
    assert client.get_run(tracker.run_id).data.params["train.lr"] == "0.0003"


@pytest.mark.parametrize("logged", [0, 1])
def test_params_that_a_killed_driver_did_not_get_to_log_are_logged_when_the_run_goes_on(
    runs_dir: Path, run_dir: Path, logged: int
) -> None:
    config = a_config(runs_dir)
    client = mlflow.MlflowClient(tracking_uri(config))
    (run_dir / "other").mkdir()
    with Tracker(config, run_dir / "other") as opened:  # makes the database and the experiment
        pass
    experiment = client.get_run(str(opened.run_id)).info.experiment_id
    run = client.create_run(experiment, run_name="tracked")
    for key, value in list(flatten_config(config).items())[:logged]:
        client.log_param(run.info.run_id, key, str(value))
    (run_dir / ID_FILE).write_text(json.dumps({"run_id": run.info.run_id}))
    assert log(config, run_dir, {0: 1.0}) == run.info.run_id
    params = client.get_run(run.info.run_id).data.params
    assert params == {key: str(value) for key, value in flatten_config(config).items()}
