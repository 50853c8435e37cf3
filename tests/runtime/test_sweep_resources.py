"""How many trials a cluster runs at once: shares of cards, CPUs left to stream data, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from beeray.config import Config, validate_config
from beeray.errors import ClusterError, ConfigError
from beeray.runtime.sweep.resources import check_sharing, shortage, threads_each, trials_at_once

LAPTOP = [{"CPU": 2.0}]
ONE_CARD = [{"CPU": 16.0, "GPU": 1.0}]
TWO_NODES = [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}]


def a_config(tune: dict[str, Any] | None = None, **cluster: Any) -> Config:
    tree = {"name": "a", "data": {"source": "shop"}, "cluster": cluster, "train": {"batch_size": 24}}
    return validate_config(tree | {"tune": {"num_trials": 100} | (tune or {})})


@pytest.mark.parametrize(
    ("nodes", "cluster", "expected"),
    [
        (LAPTOP, {}, 2),  # half a CPU each, one CPU left to Ray Data
        (LAPTOP, {"cpus_per_worker": 0.25}, 4),
        (LAPTOP, {"num_workers": 2}, 1),
        (ONE_CARD, {"use_gpu": True}, 1),
        (ONE_CARD, {"use_gpu": True, "gpus_per_worker": 0.25}, 4),
        (ONE_CARD, {"use_gpu": True, "gpus_per_worker": 0.1}, 10),
        (ONE_CARD, {"use_gpu": True, "gpus_per_worker": 0.1, "cpus_per_worker": 3}, 5),  # the CPUs are what is short
        (TWO_NODES, {"use_gpu": True, "gpus_per_worker": 0.6}, 8),  # a share is of one card: 0.6 fits each card once
        (TWO_NODES, {"use_gpu": True, "gpus_per_worker": 0.5}, 16),
        (TWO_NODES, {"use_gpu": True, "gpus_per_worker": 2}, 4),
        (TWO_NODES, {"use_gpu": True, "num_workers": 3}, 2),
        (TWO_NODES, {}, 126),
    ],
)
def test_as_many_trials_run_at_once_as_workers_fit(
    nodes: list[dict[str, float]], cluster: dict[str, Any], expected: int
) -> None:
    assert trials_at_once(nodes, a_config({"num_trials": 1000}, **cluster)) == expected


def test_concurrency_is_bounded_by_the_config_and_by_the_trials_there_are() -> None:
    sharing = {"use_gpu": True, "gpus_per_worker": 0.1}
    assert trials_at_once(ONE_CARD, a_config({"max_concurrent": 3}, **sharing)) == 3
    assert trials_at_once(ONE_CARD, a_config({"num_trials": 2}, **sharing)) == 2


def test_a_cluster_that_holds_no_trial_is_told_so() -> None:
    with pytest.raises(ClusterError, match=r"cluster\.num_workers is 3: the cluster can place 1 workers"):
        trials_at_once(ONE_CARD, a_config(use_gpu=True, num_workers=3))


def test_workers_of_one_trial_do_not_share_a_card() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.gpus_per_worker is 0\.5 and cluster\.num_workers 2"):
        check_sharing(a_config(use_gpu=True, gpus_per_worker=0.5, num_workers=2).cluster)
    check_sharing(a_config(use_gpu=True, gpus_per_worker=0.5).cluster)
    check_sharing(a_config(use_gpu=True, gpus_per_worker=0.6, num_workers=2).cluster)
    check_sharing(a_config(gpus_per_worker=0.5, num_workers=2).cluster)


@pytest.mark.parametrize(
    ("cluster", "at_once", "expected"),
    [({}, 2, 1), ({}, 1, 2), ({"num_workers": 2}, 1, 1), ({}, 4, 1), ({"threads_per_worker": 7}, 2, 7)],
)
def test_the_cores_are_shared_out(cluster: dict[str, Any], at_once: int, expected: int) -> None:
    assert threads_each(LAPTOP, a_config(**cluster), at_once) == expected


def test_threads_of_gpu_workers_are_left_alone() -> None:
    assert threads_each(ONE_CARD, a_config(use_gpu=True), 1) is None


def test_a_sweep_says_where_the_cluster_holds_fewer_trials_than_were_asked_for() -> None:
    asked = a_config({"max_concurrent": 4, "num_trials": 8})
    assert shortage(1, asked) == " (tune.max_concurrent is 4: the cluster holds no more now)"
    assert shortage(4, asked) == shortage(1, a_config({"num_trials": 8})) == ""
    assert shortage(2, a_config({"max_concurrent": 4, "num_trials": 2})) == ""
