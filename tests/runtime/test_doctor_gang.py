"""Two real workers on a small Ray: what the cluster offers, collectives, DeepSpeed, the gradient and its faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny_encoder import build_tiny_encoder

from beeray.config import ClusterConfig, Config, validate_config
from beeray.runtime.doctor.gang import Gang, gang_size
from beeray.runtime.doctor.gradient import BOUND, FAULTS
from beeray.runtime.doctor.resources import judge_resources

LIMIT_S = 500.0


def a_config(encoder: Path, **changes: Any) -> Config:
    return validate_config(
        {
            "name": "examined",
            "data": {"source": "shop"},
            "encoder": {"name": str(encoder), "max_seq_length": 16},
            "cluster": {"num_workers": 2},
            "deepspeed": {"stage": 2},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def gang(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    """Two workers whose process group is up."""
    encoder = build_tiny_encoder(tmp_path_factory.mktemp("gang") / "encoder", dropout=0.1)
    gang = Gang(a_config(encoder), 2, whole=True)
    try:
        started = gang.start(LIMIT_S)
        assert started.status == "ok", started.said
        assert started.said.startswith("2 workers on 1 node: CPU, torch ")
        met = gang.collectives(LIMIT_S)
        assert met.status == "ok", met.said
        assert "gloo between 2 workers: right answers" in met.said
        yield gang
    finally:
        gang.stop()


@pytest.mark.parametrize(
    ("num_workers", "num_nodes", "placeable", "expected"),
    [(1, 1, 1, 1), (2, 1, 2, 2), (16, 1, 16, 2), (16, 4, 16, 4), (64, 32, 64, 8), (4, 4, 1, 1), (4, 1, 0, 1)],
)
def test_few_workers_stand_for_many(num_workers: int, num_nodes: int, placeable: int, expected: int) -> None:
    assert gang_size(ClusterConfig(num_workers=num_workers), num_nodes, placeable) == expected


@pytest.mark.usefixtures("ray_session")
def test_resources_that_are_missing_or_taken_are_told() -> None:
    everything = {"CPU": 2.0}
    assert judge_resources(ClusterConfig(num_workers=2), everything, joined=False).status == "ok"
    finding = judge_resources(ClusterConfig(num_workers=9), everything, joined=False)
    assert finding.status == "FAILED"
    assert finding.said.startswith("cluster.num_workers is 9: the cluster can place 2 of them (0.5 CPU each, ")
    assert finding.said.endswith("lower cluster.num_workers or cluster.cpus_per_worker, or add nodes")
    assert finding.measured == {"asked": 9, "placeable": 2}
    taken = judge_resources(ClusterConfig(num_workers=2), {"CPU": 0.5}, joined=True)
    assert taken.status == "warning"
    assert taken.said == (
        "cluster.num_workers is 2, which takes 1 CPU: there are 2 CPU, but 0.5 CPU free now; training would wait for "
        "other work to end (ray status)"
    )


def test_the_gradient_of_two_workers_is_exact_to_a_hundredth_of_what_a_fault_makes_of_it(gang: Gang) -> None:
    assert gang.deepspeed().said.endswith("on cpu: an engine of ZeRO-2 steps")
    exact = gang.gradient()
    assert exact.status == "ok", exact.said
    assert exact.measured["largest_relative_difference"] < BOUND / 5
    assert exact.measured["workers"] == 2
    for fault in FAULTS:
        broken = gang.gradient(fault)
        assert broken.status == "FAILED", fault
        assert "is not the exact one" in broken.said and "constraints.txt" in broken.said
        assert broken.measured["largest_relative_difference"] > 100 * BOUND
    again = gang.gradient()
    assert again.status == "ok", "a fault leaves nothing behind"


def test_every_zero_stage_gives_the_exact_gradient(gang: Gang) -> None:
    for stage in (0, 1, 3):
        finding = gang.everywhere(lambda rank, stage=stage: rank.actor.gradient.remote(stage))
        assert finding.status == "ok", finding.said
        assert f"under ZeRO-{stage}" in finding.said


def test_an_encoder_that_is_none_is_refused_and_the_right_one_embeds(gang: Gang, tmp_path: Path) -> None:
    fine = gang.encoder(gang.config.encoder.name)
    assert fine.status == "ok", fine.said
    assert fine.measured["dim"] == 32
    assert fine.measured["trained_parameters"] == fine.measured["parameters"] > 10_000
    wrong = gang.encoder(str(tmp_path))
    assert wrong.status == "FAILED"
    assert wrong.said.endswith(
        f"encoder.name {str(tmp_path)!r}: the folder holds neither modules.json nor config.json, so it is no encoder; "
        "give a folder written by SentenceTransformer.save"
    )


@pytest.mark.usefixtures("ray_session")
def test_workers_that_are_stopped_give_their_place_back() -> None:
    def free() -> float:
        return float(ray.available_resources().get("CPU", 0.0))

    before = free()
    other = Gang(validate_config({"name": "brief", "data": {"source": "shop"}}), 1, whole=True)
    other._place(LIMIT_S)
    wait_until(lambda: free() == before - 0.5)
    other.stop()
    wait_until(lambda: free() == before)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"cpus_per_worker": 64}, "with less CPU than cluster.cpus_per_worker, since none could be placed"),
        ({"use_gpu": True}, "without the GPUs that cluster.use_gpu asks for, since none could be placed"),
    ],
)
def test_where_no_worker_finds_a_place_one_with_less_is_examined(cluster: dict[str, Any], said: str) -> None:
    lacking = Gang(validate_config({"name": "brief", "data": {"source": "shop"}, "cluster": cluster}), 1, whole=False)
    try:
        started = lacking.start(LIMIT_S)
        assert started.status == "warning" and said in started.said, started.said
    finally:
        lacking.stop()
