"""Which processes Ray Train starts beside the workers: on a Ray of our own none that has nothing to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, get_env_vars_to_propagate

from beeray.config import ClusterConfig, StorageConfig, validate_config
from beeray.runtime import launch, session

DATASET = {"a": SimpleNamespace()}


def helpers(datasets: dict[str, Any]) -> set[type]:
    """Callbacks that start an actor of their own, of those that a trainer has."""
    trainer = launch._Trainer(
        lambda config: None, scaling_config=ray.train.ScalingConfig(num_workers=1), datasets=datasets
    )
    return {type(one) for one in trainer._create_default_callbacks()} & {
        DatasetsCallback,
        PlacementGroupCleanerCallback,
    }


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions open and close without a Ray."""
    monkeypatch.setattr(session, "_start_or_join", lambda *given: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(ENABLE_PREEMPTION_WATCHER_ENV_VAR, raising=False)


@contextmanager
def opened(address: str | None) -> Iterator[None]:
    with session.ray_session(ClusterConfig(address=address), StorageConfig()):
        yield


@pytest.mark.usefixtures("pretended")
def test_on_a_ray_of_our_own_nobody_cleans_up_or_watches_for_notice() -> None:
    with opened(None):
        assert helpers(DATASET) == {DatasetsCallback} and helpers({}) == set()
        with launch._notices():
            assert get_env_vars_to_propagate()[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"
        assert ENABLE_PREEMPTION_WATCHER_ENV_VAR not in os.environ
    assert not session.is_own()


@pytest.mark.usefixtures("pretended")
def test_a_launch_on_it_is_one_without_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            pass

        def fit(self) -> str | None:
            return os.environ.get(ENABLE_PREEMPTION_WATCHER_ENV_VAR)

    monkeypatch.setattr(launch, "_Trainer", Trainer)
    task: Any = SimpleNamespace(config=validate_config({"name": "n", "data": {"source": "shop"}}), monitor=None)
    with opened(None):
        assert launch.launch("module:loop", task, storage=tmp_path, name="checkpoints") == "0"
    assert launch.launch("module:loop", task, storage=tmp_path, name="checkpoints") is None


@pytest.mark.usefixtures("pretended")
def test_a_session_within_ours_is_on_our_ray_and_one_left_by_an_error_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), opened(None):
        with monkeypatch.context() as joined:
            joined.setattr(ray, "is_initialized", lambda: True)
            with opened(None):
                assert session.is_own()
        assert session.is_own()
        raise KeyError
    assert not session.is_own()


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("joined", ["the config", "the environment", "the caller"])
def test_on_a_cluster_they_stay(joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def assert_they_stay() -> None:
        assert helpers(DATASET) == {DatasetsCallback, PlacementGroupCleanerCallback}
        assert helpers({}) == {PlacementGroupCleanerCallback}
        with launch._notices():
            assert ENABLE_PREEMPTION_WATCHER_ENV_VAR not in os.environ

    if joined == "the environment":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    if joined == "the caller":
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with opened("10.0.0.1:6379" if joined == "the config" else None):
        assert_they_stay()


@pytest.mark.usefixtures("pretended")
def test_who_sets_ray_train_s_watching_for_notice_has_it_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "1")
    with opened(None), launch._notices():
        assert os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "1"
    assert os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "1"
