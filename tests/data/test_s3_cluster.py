"""Verbs and workers on `s3://` paths: Rays of their own, in processes whose environment is all they know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from s3_server import KEY, SECRET, S3Server

from beeray.config import StorageConfig
from beeray.data.storage import storage_options
from beeray.data.store import Store

pytestmark = pytest.mark.long

LIMIT_S = 600
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outside(server: S3Server, ray_dir: Path) -> dict[str, str]:
    """The environment of a process on a machine that has no credentials."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_", "RAY_"))}
    without = {name: value for name, value in server.environment.items() if "KEY" not in name}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}  # as a cluster and those who join it must
    return {**kept, **without, "RAY_TMPDIR": str(ray_dir), **token, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def inside(server: S3Server, outside: dict[str, str]) -> dict[str, str]:
    """The same with credentials."""
    return {**outside, **server.environment}


@pytest.fixture(scope="module")
def tables(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten items and twelve users with five each: in the bucket, and in a local folder."""
    folder = tmp_path_factory.mktemp("tables")
    pq.write_table(
        pa.table({"item_id": range(10), "text": [f"item {i}" for i in range(10)]}), folder / "catalog.parquet"
    )
    users, items = zip(*[(user, (user + step) % 10) for user in range(12) for step in range(5)], strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items}), folder / "interactions.parquet")
    for name in ("catalog", "interactions"):
        server.put(f"raw/{name}/part-0.parquet", (folder / f"{name}.parquet").read_bytes())
    return folder


def a_config(server: S3Server, folder: Path, store: str, **storage: Any) -> None:
    """Write a config whose tables and store are in the bucket."""
    config = {
        "name": "remote",
        "runs_dir": str(folder / "runs"),
        "storage": {"endpoint_url": server.url, **storage},
        "data": {
            "source": "tables",
            "catalog": {"path": server.path("raw", "catalog", "*.parquet")},
            "interactions": {"path": server.path("raw", "interactions")},
            "store": server.path(store),
            "min_value": None,
            "num_buckets": 2,
        },
        "split": {"validation": 1, "test": 1},
        "cluster": {"object_store_mib": 100},
    }
    (folder / "remote.yaml").write_text(yaml.safe_dump(config))


def prepare(folder: Path, environment: dict[str, str], *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "beeray.prepare", "--config", str(folder / "remote.yaml"), *overrides]
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def files_with(text: str, *folders: Path) -> list[str]:
    """Files below some folders that hold a text."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def prepared(
    server: S3Server, tables: Path, inside: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a config, and the command that prepared its store."""
    folder = tmp_path_factory.mktemp("prepared")
    a_config(server, folder, "store")
    done = prepare(folder, inside)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_store_is_prepared_from_the_bucket_into_the_bucket(
    server: S3Server,
    prepared: tuple[Path, subprocess.CompletedProcess[str]],
    inside: dict[str, str],
    ray_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, done = prepared
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["prepared"], record["items"], record["users"], record["interactions"]) == (True, 10, 12, 60)
    keys = server.list_keys("store")
    assert [key for key in keys if not key.startswith(("store/catalog/part-", "store/users/part-"))] == [
        "store/meta.json"
    ]
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with storage_options(StorageConfig(endpoint_url=server.url)):
        store = Store.open(server.path("store"))
        assert store.catalog(["text"])["text"].to_pylist() == [f"item {i}" for i in range(10)]
    again = prepare(folder, inside)
    assert json.loads(again.stdout.splitlines()[-1])["prepared"] is False
    assert server.list_keys("store") == keys
    assert files_with(server.url.removeprefix("http://"), ray_dir)  # Ray's logs do tell the workers' settings …
    assert files_with(SECRET, ray_dir, folder) == []
    assert SECRET not in done.stdout + done.stderr


WORKERS = """
import json, os, sys
import fsspec.config, ray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from beeray.config import load_config
from beeray.data.storage import list_dir, join
from beeray.data.store import Store
from beeray.data.tokens import TokenStore, ensure_tokens
from beeray.runtime.session import ray_session

config, cache = load_config(sys.argv[1]), sys.argv[2]
words = ["[PAD]", "[CLS]", "[SEP]", "item", *map(str, range(10))]
backend = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[PAD]"))
backend.pre_tokenizer = Whitespace()
backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
class tokenizer: backend_tokenizer, pad_token_id = backend, 0

with ray_session(config.cluster, config.storage):
    @ray.remote(num_cpus=0.5)
    def gather(path):
        tokens = TokenStore.open(path, cache)
        ids, lengths = tokens.gather(__import__("numpy").arange(3, dtype="int32"), 8)
        return ids.tolist(), tokens.path, {k: v for k, v in fsspec.config.conf.get("s3", {}).items()}
    path = ensure_tokens(Store.open(config.store_path), tokenizer, "", 8, lambda *_: None)
    results = ray.get([gather.remote(path) for _ in range(2)])
    sent = ray.get_runtime_context().runtime_env.to_dict()
print(json.dumps({"path": path, "results": results, "sent": sent, "after": fsspec.config.conf.get("s3")}))
"""


def test_tokens_are_made_in_the_bucket_and_brought_over_to_workers_that_got_the_settings(
    server: S3Server,
    prepared: tuple[Path, subprocess.CompletedProcess[str]],
    inside: dict[str, str],
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(prepared[0] / "remote.yaml"), str(tmp_path / "cache")],
        cwd=PROJECT,
        env=inside,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["path"].startswith(server.path("store", "tokens"))
    name = told["path"].rpartition("/")[2]
    for ids, path, settings in told["results"]:
        assert ids == [1, 3, 4, 2, 1, 3, 5, 2, 1, 3, 6, 2]
        assert path == str(tmp_path / "cache" / name)
        assert settings == {"endpoint_url": server.url}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    assert told["sent"] == {"env_vars": {"FSSPEC_S3_ENDPOINT_URL": json.dumps(server.url)}}
    assert told["after"] is None


CLUSTER = """
import sys, ray
from beeray.runtime.session import init_ray, ray_init_arguments
init_ray(ray_init_arguments(2, 100))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(outside: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a Ray whose nodes have no credentials, and the AWS config file that they look into."""
    config = tmp_path_factory.mktemp("node") / "config"
    config.write_text("")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        cwd=PROJECT,
        env={**outside, "AWS_CONFIG_FILE": str(config)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the cluster did not start"
    yield address, config
    process.communicate(timeout=LIMIT_S)


def test_credentials_of_the_command_are_not_sent_to_a_cluster_that_is_joined_but_settings_are(
    server: S3Server, tables: Path, inside: dict[str, str], cluster: tuple[str, Path], ray_dir: Path, tmp_path: Path
) -> None:
    address, config = cluster
    a_config(server, tmp_path, "store-joined")
    refused = prepare(tmp_path, inside, f"cluster.address={address}")
    assert refused.returncode == 2, refused.stderr
    assert "no usable credentials" in refused.stderr.splitlines()[-1]
    assert server.list_keys("store-joined") == []
    assert files_with(SECRET, ray_dir, tmp_path) == []

    lines = ["[profile nightly]", f"aws_access_key_id = {KEY}", f"aws_secret_access_key = {SECRET}"]
    config.write_text("\n".join(lines))
    a_config(server, tmp_path, "store-joined", profile="nightly", region="us-east-1")
    done = prepare(tmp_path, {**inside, "AWS_CONFIG_FILE": str(config)}, f"cluster.address={address}")
    assert done.returncode == 0, done.stderr
    assert "store-joined/meta.json" in server.list_keys("store-joined")
    assert files_with(SECRET, ray_dir, tmp_path) == []
