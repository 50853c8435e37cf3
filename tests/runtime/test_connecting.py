"""A cluster that cannot be joined is one line with a remedy, whatever the type of Ray's own error."""

from __future__ import annotations

import argparse
import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from beeray.config import ClusterConfig, validate_config
from beeray.console import Console
from beeray.errors import ClusterError
from beeray.runtime.session import ray_session
from beeray.verbs import doctor

OTHER = {"ray_version": "2.9.0", "python_version": "3.9.7"}


@pytest.fixture(autouse=True)
def not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def said(address: str | None) -> str:
    with pytest.raises(ClusterError) as caught, ray_session(ClusterConfig(address=address)):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_address_of_a_dashboard_is_told_as_one_and_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("http://127.0.0.1:8265").startswith("cluster.address 'http://127.0.0.1:8265': that is a dashboard")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    line = said(None)
    assert line.startswith("RAY_ADDRESS 'http://127.0.0.1:8265': that is a dashboard, which ray job submits to")
    assert line.endswith("(HOST:6379) or leave it unset, and tell ray job the other in RAY_API_SERVER_ADDRESS")


@pytest.mark.parametrize("address", ["grpc://127.0.0.1:6379", "nomodule://here", "head"])
def test_an_address_of_another_kind_is_told_with_those_that_there_are(address: str) -> None:
    line = said(address)
    assert line.startswith(f"cluster.address {address!r}: cannot be joined (")
    assert line.endswith("give HOST:6379 of a cluster, ray://HOST:10001, or leave it unset")


def of_other_versions() -> None:
    check_version_info(OTHER, "node 10.0.0.7:0")


def without_a_token() -> None:
    raise AuthenticationError("Token authentication is enabled but no authentication token was found")


def with_another_token() -> None:
    try:
        raise RuntimeError("AuthenticationError: InvalidAuthToken")
    except RuntimeError as error:
        raise ConnectionError("Failed to connect to Ray cluster") from error


def gone() -> None:
    raise ConnectionError("Failed to connect to Ray cluster")


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (
            of_other_versions,
            f"the cluster has Ray 2.9.0 on Python 3.9.7, this command Ray {ray.__version__} on Python ",
        ),
        (
            without_a_token,
            "RAY_AUTH_MODE is token and this command has none; set RAY_AUTH_TOKEN or ",
        ),
        (with_another_token, "the cluster refuses this command's token; set RAY_AUTH_MODE and the token alike"),
        (gone, "no Ray cluster answers there; start one (ray start --head) or leave it unset"),
    ],
)
def test_a_cluster_that_does_not_let_a_command_in_is_told_with_what_to_do(
    refusal: Callable[[], None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: refusal())
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert said(address).startswith(f"cluster.address {address!r}: {expected}")


def test_a_cluster_that_listens_on_loopback_alone_is_none_that_ray_would_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes the machine's outer address for it, and would try that for minutes."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was tried"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "no Ray cluster answers there" in said(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_client_at_the_near_end_of_a_tunnel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client connects to the host that it is given."""
    tried: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **arguments: tried.append(arguments["address"]) or gone())
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://localhost:{server.getsockname()[1]}"
        said(address)
    assert tried == [address]


def test_what_is_no_mistake_of_the_users_stays_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise KeyError("gcs")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(KeyError), ray_session(ClusterConfig(address="auto")):
        pass


def test_the_doctor_tells_whatever_connecting_raises_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: Any) -> None:
        raise KeyError("gcs")

    monkeypatch.setattr(ray, "init", broken)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = validate_config({"name": "x", "runs_dir": str(tmp_path), "data": {"source": "shop"}})
    told = io.StringIO()
    record = doctor.execute(config, argparse.Namespace(timeout_s=60.0), Console(told, told))
    statuses = {check["name"]: check["status"] for check in record["checks"]}
    assert record["failed"] == ["ray"] and statuses["mlflow"] == "ok", told.getvalue()
    assert {statuses[name] for name in doctor.ON_CLUSTER} == {"skipped"}
    assert "KeyError: 'gcs'; see cluster.address and ray status" in told.getvalue()
