"""The config's `storage` section: what it takes, what it never shows, and how it reaches other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import fsspec.config
import pytest

from beeray.config import Config, StorageConfig, validate_config
from beeray.data.storage import storage_environment, storage_options
from beeray.errors import ClusterError, ConfigError
from beeray.runtime.session import JOB_CONFIG, _worker_variables


def a_config(**storage: Any) -> Config:
    return validate_config({"name": "x", "data": {"source": "shop"}, "storage": storage})


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9000", "https://s3.example.org", "https://s3.example.org/", "http://[::1]:9000", "https://h/s3"],
)
def test_an_address_is_taken_as_it_is(url: str) -> None:
    assert a_config(endpoint_url=url).storage.endpoint_url == url


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({"endpoint_url": "minio:9000"}, "storage.endpoint_url must be http://host[:port] or https://host[:port]"),
        ({"endpoint_url": "s3://bucket"}, "it is 's3://bucket'"),
        ({"endpoint_url": "http://"}, "it is 'http://'"),
        ({"endpoint_url": "http://me:hunter2@host"}, "credentials come from the environment"),
        ({"endpoint_url": "http://hunter2@host"}, "credentials come from the environment"),
        ({"endpoint_url": "http://host/?token=hunter2"}, "credentials come from the environment"),
        ({"endpoint_url": "http://host:hunter2"}, "it cannot be read as an address"),
        ({"endpoint_url": "http://[hunter2"}, "it cannot be read as an address"),
        ({"anonymous": True, "profile": "p"}, "storage.anonymous and storage.profile exclude each other"),
        ({"profile": ""}, "storage.profile"),
        ({"secret_key": "hunter2"}, "unknown key 'storage.secret_key'"),
        ({"key": "hunter2"}, "unknown key 'storage.key'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line_that_shows_no_secret(storage: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_config(**storage)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_where_data_lies_decides_no_result() -> None:
    here, there = a_config(), a_config(endpoint_url="http://127.0.0.1:9000", profile="p", region="eu-west-1")
    assert here.result_digest() == there.result_digest()
    assert not [key for key in there.result_keys() if key.startswith("storage")]


SETTINGS = [
    StorageConfig(),
    StorageConfig(endpoint_url="http://127.0.0.1:9000", region="eu-west-1"),
    StorageConfig(profile="2024"),  # not the number
    StorageConfig(profile="true"),
    StorageConfig(endpoint_url="https://h", anonymous=True),
]


@pytest.mark.parametrize("storage", SETTINGS)
def test_a_process_that_starts_with_the_variables_has_the_settings_of_this_one(storage: StorageConfig) -> None:
    there: dict[str, dict[str, Any]] = {}
    fsspec.config.set_conf_env(there, storage_environment(storage))
    before = fsspec.config.conf.get("s3")
    with storage_options(storage):
        assert there.get("s3", {}) == fsspec.config.conf["s3"]
    assert fsspec.config.conf.get("s3") == before


def test_the_settings_win_over_those_of_the_user_and_leave_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"FSSPEC_S3": '{"requester_pays": true, "endpoint_url": "http://a"}', "FSSPEC_S3_ENDPOINT_URL": "http://b"}
    there: dict[str, dict[str, Any]] = {}
    fsspec.config.set_conf_env(there, {**theirs, **storage_environment(StorageConfig(endpoint_url="http://c"))})
    assert there["s3"] == {"requester_pays": True, "endpoint_url": "http://c"}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"requester_pays": True, "endpoint_url": "http://a"})
    with storage_options(StorageConfig(endpoint_url="http://c")), storage_options(StorageConfig(region="r")):
        assert fsspec.config.conf["s3"] == {**there["s3"], "client_kwargs": {"region_name": "r"}}
    assert fsspec.config.conf["s3"] == {"requester_pays": True, "endpoint_url": "http://a"}


def test_what_a_submitted_job_sets_alike_is_not_sent_twice_and_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = StorageConfig(endpoint_url="http://a", anonymous=True)
    of_job = {"FSSPEC_S3_ENDPOINT_URL": "http://a", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": of_job}}))
    assert _worker_variables(storage) == {"FSSPEC_S3_ANON": "true"}
    with pytest.raises(ClusterError, match="runtime_env sets FSSPEC_S3_ENDPOINT_URL") as caught:
        _worker_variables(StorageConfig(endpoint_url="http://b"))
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(JOB_CONFIG, "{}")
    assert len(_worker_variables(storage)) == 2


def test_the_config_is_read_without_what_reads_data() -> None:
    code = "import sys, beeray.config; print([m for m in ('fsspec', 's3fs', 'pyarrow', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
