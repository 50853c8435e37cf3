"""One MLflow run per training run, on a real sqlite store: kept across resumes, no step twice, clear refusals."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from beeray.config import Config, validate_config
from beeray.errors import RunError
from beeray.runtime import tracking
from beeray.runtime.tracking import Tracker, tracking_uri


def a_config(folder: Path, **section: str) -> Config:
    tree = {"name": "tracked", "runs_dir": str(folder), "data": {"source": "shop"}, "train": {"lr": 3e-4}}
    return validate_config(tree | {"tracking": section})


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
