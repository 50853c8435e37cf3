"""What a submitted job's own command holds of the cluster is not offered to the job's work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.util.state

from beeray.config import ClusterConfig, validate_config
from beeray.runtime import entrypoint, session
from beeray.runtime.entrypoint import held_by_this_job
from beeray.runtime.job_folder import JOB_CONFIG

SUBMITTED = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    entrypoint._held.cache_clear()
    yield
    entrypoint._held.cache_clear()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Two nodes of 8 CPUs and 2 cards."""
    nodes = {name: {"CPU": 8.0, "GPU": 2.0} for name in ("one", "two")}
    alive = [{"NodeID": name, "Resources": found, "Alive": True} for name, found in nodes.items()]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"NodeID": "gone", "Resources": {"CPU": 99}, "Alive": False}])
    return nodes


def submitted(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def list_actors(filters: list[tuple[str, str, str]], **_: Any) -> list[Any]:
        assert filters == [("name", "=", "_ray_internal_job_actor_raysubmit_1")]
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    monkeypatch.setenv(JOB_CONFIG, SUBMITTED)
    monkeypatch.setattr(ray.util.state, "list_actors", list_actors)


def test_a_command_that_is_no_job_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, dict[str, float]]
) -> None:
    monkeypatch.delenv(JOB_CONFIG, raising=False)
    assert held_by_this_job() == ("", {})
    assert session.live_nodes() == list(cluster.values())


def test_what_the_command_of_a_job_holds_is_taken_off_its_node(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, dict[str, float]]
) -> None:
    submitted(monkeypatch, SimpleNamespace(node_id="two", required_resources={"CPU": 3.0}))
    assert session.live_nodes() == [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 5.0, "GPU": 2.0}]
    assert cluster["two"]["CPU"] == 8.0, "what Ray said is as it was"
    assert session.wanted_bundles(ClusterConfig(num_workers=1))[-2:] == [{"CPU": 1}, {"CPU": 3}]
    placeable, lacking = session.lacking_workers(ClusterConfig(num_workers=13, cpus_per_worker=1))
    assert placeable == 12 and "it offers 13 CPU and 4 GPU on 2 nodes beside the 3 CPU of this job's own" in lacking


def test_a_job_whose_command_asked_for_nothing_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, dict[str, float]]
) -> None:
    submitted(monkeypatch, SimpleNamespace(node_id="two", required_resources={}))
    assert session.live_nodes() == list(cluster.values())


def test_where_the_cluster_does_not_tell_a_cpu_is_left_to_the_command(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, dict[str, float]]
) -> None:
    submitted(monkeypatch, ConnectionError("no dashboard"))
    assert held_by_this_job() == ("", {"CPU": 1.0})
    assert sum(node["CPU"] for node in session.live_nodes()) == 15.0


def test_encoder_actors_leave_a_cpu_to_the_data_beside_the_command(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, dict[str, float]]
) -> None:
    """All of 16 CPUs were given to 15 actors and the command, and what feeds the actors waited for ever."""
    config = validate_config({"name": "n", "data": {"source": "shop"}, "embed": {"cpus_per_actor": 1}})
    submitted(monkeypatch, SimpleNamespace(node_id="one", required_resources={"CPU": 1.0}))
    assert session.placeable_actors(config) == 14


@pytest.mark.parametrize(("share", "actors"), [(0.4, 8), (0.3, 12), (0.5, 8), (1, 4), (2, 2)])
def test_as_many_actors_are_chosen_as_can_be_placed_on_cards(
    cluster: dict[str, dict[str, float]], share: float, actors: int
) -> None:
    tree = {"cluster": {"use_gpu": True}, "embed": {"gpus_per_actor": share}}
    config = validate_config({"name": "n", "data": {"source": "shop"}, **tree})
    assert session.placeable_actors(config) == actors
    asked = ClusterConfig(use_gpu=True, gpus_per_worker=share, cpus_per_worker=0, num_workers=actors)
    assert session.workers_that_fit(session.live_nodes(), asked) == actors
