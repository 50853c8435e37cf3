"""What a real Ray of two CPUs can place, and that a Ray which was joined goes on."""

from __future__ import annotations

import io
import time
from typing import Any

import psutil
import pytest
import ray

from beeray.config import ClusterConfig, Config, validate_config
from beeray.console import Console
from beeray.errors import ClusterError
from beeray.runtime import session
from beeray.runtime.session import check_placement, grown, ray_session
from beeray.runtime.sweep.resources import room_for_trials

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize(
    "cluster",
    [
        {"num_workers": 2},  # half a CPU each, and one left for data
        {"num_workers": 1, "cpus_per_worker": 1},
        {"num_workers": 500, "cpus_per_worker": 0},
    ],
)
def test_workers_that_fit_beside_the_data_stream_are_accepted(cluster: dict[str, Any]) -> None:
    check_placement(ClusterConfig(**cluster))


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (
            {"num_workers": 3},
            "cluster.num_workers is 3: the cluster can place 2 of them (0.5 CPU each, 1 CPU left for streaming data) "
            "and lacks 1; it offers 2 CPU and 0 GPU on 1 node; "
            "lower cluster.num_workers or cluster.cpus_per_worker, or add nodes",
        ),
        ({"num_workers": 2, "cpus_per_worker": 1}, "can place 1 of them (1 CPU each, 1 CPU left"),
        ({"num_workers": 1, "cpus_per_worker": 1.5}, "can place 0 of them (1.5 CPU each"),
        ({"use_gpu": True}, "can place 0 of them (0.5 CPU + 1 GPU each"),
        ({"use_gpu": True, "gpus_per_worker": 0.25, "cpus_per_worker": 0}, "can place 0 of them (0 CPU + 0.25 GPU"),
    ],
)
def test_what_does_not_fit_is_refused_at_once_with_what_is_missing(cluster: dict[str, Any], expected: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        check_placement(ClusterConfig(**cluster))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 1.0


def test_a_joined_cluster_gets_its_time_to_grow_before_it_is_refused() -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match="lacks 1"):
        check_placement(ClusterConfig(num_workers=3, address="auto", placement_timeout_s=1.5))
    assert 1.5 <= time.monotonic() - started < 10
    check_placement(ClusterConfig(num_workers=2, address="auto", placement_timeout_s=1.5))


def test_an_autoscaler_is_told_what_is_waited_for_and_then_that_nothing_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles))
    with pytest.raises(ClusterError, match="lacks 1"):
        check_placement(ClusterConfig(num_workers=3, address="auto", placement_timeout_s=0.1))
    assert asked == [[{"CPU": 1}] * 3 + [{"CPU": 1}], []]
    check_placement(ClusterConfig(num_workers=2, address="auto", placement_timeout_s=0.1))
    assert len(asked) == 2, "nothing is asked for where there is enough"
    with grown(ClusterConfig(num_workers=3, address="auto", placement_timeout_s=0.1)) as lacking:
        assert "lacks 1" in lacking
        assert len(asked) == 3, "what has come is wanted for as long as it is looked at"
    assert asked[3:] == [[]]


def test_a_sweep_has_a_cluster_grow_to_the_trials_that_it_may_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles))
    said = io.StringIO()
    with room_for_trials(sweep_config(max_concurrent=3), 8, Console(io.StringIO(), said)) as nodes:
        assert asked == [[{"CPU": 1}] * 3 + [{"CPU": 1}]], "wanted until trials have their workers"
        assert [node["CPU"] for node in nodes] == [2]
    assert asked[1:] == [[]]
    assert said.getvalue() == "waiting up to 0.1 s for the cluster to hold 3 trials at once\n"
    for enough, left in ((sweep_config(max_concurrent=2), 8), (sweep_config(), 8), (sweep_config(max_concurrent=9), 2)):
        with room_for_trials(enough, left, Console(io.StringIO(), said)):
            assert len(asked) == 2
    assert len(said.getvalue().splitlines()) == 1


def test_an_autoscaler_is_asked_again_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(session, "ASKED_AGAIN_S", 0.5)
    with grown(ClusterConfig(num_workers=3, address="auto", placement_timeout_s=1.5)):
        pass
    assert len(asked) >= 3 and asked[-1] == [] and asked[-2] == asked[0]


def sweep_config(**tune: int) -> Config:
    cluster = {"address": "auto", "placement_timeout_s": 0.1}
    tree = {"name": "a", "data": {"source": "shop"}, "cluster": cluster, "tune": {"num_trials": 100} | tune}
    return validate_config(tree)


def test_a_ray_that_was_there_already_is_used_and_goes_on_even_after_an_error() -> None:
    node = ray.get_runtime_context().get_node_id()
    with pytest.raises(KeyError, match="mine"), ray_session(ClusterConfig()):
        assert ray.get_runtime_context().get_node_id() == node
        raise KeyError("mine")
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 2


def test_a_ray_of_our_own_is_as_small_as_asked_for() -> None:
    (node,) = ray.nodes()
    assert node["Resources"]["object_store_memory"] == 256 * 2**20
    assert node["Resources"]["CPU"] == 2


def test_nothing_of_a_ray_that_is_started_here_can_be_reached_from_other_machines() -> None:
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())  # a worker listens, too
    listening = {
        (process.name(), connection.laddr.ip)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert {address.removeprefix("::ffff:") for _, address in listening} == {"127.0.0.1"}
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
