"""`s3://` paths against a real S3 API on loopback: what is found, read, written, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import s3fs
from s3_server import KEY, SECRET, S3Server, free_port

from beeray.config import StorageConfig
from beeray.data.file_tags import FileStat
from beeray.data.parts import read_part, write_part
from beeray.data.process_identity import tag_of_this_process
from beeray.data.staging import Staging
from beeray.data.storage import (
    delete_file,
    exists,
    file_size,
    join,
    list_dir,
    list_files,
    make_dir,
    read_bytes,
    read_json,
    remove_tree,
    resolve,
    storage_options,
    write_bytes,
    write_file,
    write_json,
)
from beeray.data.tables import Table
from beeray.errors import DataError


@pytest.fixture(autouse=True)
def clean(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials of the server in the environment, an empty bucket, and the server as the endpoint."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with storage_options(StorageConfig(endpoint_url=server.url)):
        yield
    server.client().delete_bucket_policy(Bucket=server.bucket)
    for key in server.list_keys():
        server.client().delete_object(Bucket=server.bucket, Key=key)


def complaint(does: Callable[[], Any]) -> str:
    """The one line of what goes wrong; no secret is in it."""
    with pytest.raises(DataError) as caught:
        does()
    told = str(caught.value)
    assert "\n" not in told
    assert SECRET not in told
    return told


def found(server: S3Server, pattern: str) -> list[str]:
    return [file.path.removeprefix(server.path() + "/") for file in list_files(server.path(pattern), may_be_empty=True)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("raw/a.csv", ["raw/a.csv"]),
        ("raw", ["raw/a.csv", "raw/b.parquet", "raw/x/c.csv", "raw/x/y/d.csv"]),
        ("raw/", ["raw/a.csv", "raw/b.parquet", "raw/x/c.csv", "raw/x/y/d.csv"]),
        ("raw/*.csv", ["raw/a.csv"]),
        ("raw/?.*", ["raw/a.csv", "raw/b.parquet"]),
        ("raw/*/*.csv", ["raw/_old/e.csv", "raw/x/c.csv"]),
        ("raw/**/*.csv", ["raw/_old/e.csv", "raw/a.csv", "raw/x/c.csv", "raw/x/y/d.csv"]),
        ("raw/x/**", ["raw/x/c.csv", "raw/x/y/d.csv"]),
        ("**/d.csv", ["raw/x/y/d.csv"]),
        ("raw/[!a].*", ["raw/b.parquet"]),
        ("raw/x[1]", ["raw/x[1]/f.csv"]),
        ("raw/x*", ["raw/x/c.csv", "raw/x/y/d.csv"]),
        ("raw/*/y", ["raw/x/y/d.csv"]),
        ("raw/*", ["raw/a.csv", "raw/b.parquet", "raw/x/c.csv", "raw/x/y/d.csv"]),
        ("raw/_o*", ["raw/_old/e.csv"]),
        ("ra", []),
        ("raw/*.txt", []),
        ("nothing/*.csv", []),
    ],
)
def test_files_folders_and_globs_are_listed_as_on_a_disk(
    server: S3Server, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    keys = ["raw/a.csv", "raw/b.parquet", "raw/x/c.csv", "raw/x/y/d.csv", "raw/_old/e.csv", "raw/.tmp/g.csv"]
    keys += ["raw/x[1]/f.csv"] if "[1]" in pattern else []
    for key in keys:
        server.put(key)
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"x")
    assert found(server, pattern) == expected
    here = [file.path for file in list_files(f"{tmp_path}/{pattern}", may_be_empty=True)]
    assert [Path(path).relative_to(tmp_path).as_posix() for path in here] == expected


def test_markers_of_empty_folders_are_no_files(server: S3Server) -> None:
    for key in ("raw/", "raw/empty/", "raw/part_$folder$", "raw/part/a.csv"):
        server.put(key, b"")
    assert found(server, "raw") == ["raw/part/a.csv"]
    assert found(server, "raw/**") == ["raw/part/a.csv"]
    assert list_dir(server.path("raw")) == ["empty", "part"]
    assert exists(server.path("raw", "empty"))
    remove_tree(server.path("raw"))
    assert server.list_keys() == []


@pytest.mark.parametrize("name", ["shop[eu]", "shop-v?", "shop*"])
def test_a_folder_with_a_glob_in_its_name_is_removed_and_nothing_beside_it(server: S3Server, name: str) -> None:
    for key in (f"{name}/a", f"{name}/deep/b", "shop-v1/c", "shope/d", "shop/e"):
        server.put(key)
    remove_tree(server.path(name))
    assert server.list_keys() == ["shop-v1/c", "shop/e", "shope/d"]


def test_what_was_left_half_written_beside_a_folder_is_removed_in_time(server: S3Server) -> None:
    """By a process of this machine that is gone, or a week ago; not what may be being written."""
    gone, elsewhere = f"{tag_of_this_process().rsplit('-', 1)[0]}-1", "0123456789ab-17-1"
    for left in (f"i.partial-{gone}-01234567", f"i.partial-{elsewhere}-01234567", f"other.partial-{gone}-01234567"):
        server.put(f"stores/{left}/scratch/x")

    def replaced() -> list[str]:
        with Staging(server.path("stores", "i"), "meta.json") as staging:
            write_json(f"{staging.path}/meta.json", {})
            staging.publish()
        return server.list_keys()

    others = [f"stores/other.partial-{gone}-01234567/scratch/x"]
    assert replaced() == ["stores/i.partial-0123456789ab-17-1-01234567/scratch/x", "stores/i/meta.json", *others]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beeray.data.staging.LEFT_FOR_S", -3600)
        assert replaced() == ["stores/i/meta.json", *others]


def test_a_folder_is_there_when_something_is_in_it_and_making_one_makes_no_bucket(server: S3Server) -> None:
    make_dir(server.path("runs", "a"))
    assert not exists(server.path("runs"))
    write_json(server.path("runs", "a", "meta.json"), {"é": 1})
    assert exists(server.path("runs"))
    assert exists(server.path("runs", "a") + "/")
    assert not exists(server.path("run"))
    assert read_json(server.path("runs", "a", "meta.json")) == {"é": 1}
    assert [list_dir(server.path(*names)) for names in ([], ["runs"], ["no"])] == [["runs"], ["a"], []]
    make_dir("s3://mistyped/runs")
    assert [bucket["Name"] for bucket in server.client().list_buckets()["Buckets"]] == [server.bucket]


def test_small_files_are_written_replaced_measured_and_removed(server: S3Server) -> None:
    path = server.path("latest")
    write_bytes(path, b"old")
    write_bytes(path, b"newer")
    assert (read_bytes(path), file_size(path), server.get("latest")) == (b"newer", 5, b"newer")
    delete_file(path)
    delete_file(path)
    assert not exists(path)
    assert "latest: no such file" in complaint(lambda: file_size(path))
    assert "latest: no such file or folder; check the path" in complaint(lambda: read_bytes(path))
    server.put("folder/x")
    assert "no such file" in complaint(lambda: file_size(server.path("folder")))
    assert "no such file" in complaint(lambda: read_bytes(server.path("folder")))


def test_what_another_process_writes_is_seen_at_once(server: S3Server) -> None:
    cached = s3fs.S3FileSystem(endpoint_url=server.url, skip_instance_cache=True)
    server.put("shared/a")
    assert found(server, "shared") == ["shared/a"]
    assert cached.find(f"{server.bucket}/shared") == cached.ls(f"{server.bucket}/shared", detail=False)
    server.put("shared/b")
    assert found(server, "shared") == ["shared/a", "shared/b"]
    assert [Path(path).name for path in cached.ls(f"{server.bucket}/shared", detail=False)] == ["a"]  # as s3fs comes
    server.client().delete_object(Bucket=server.bucket, Key="shared/a")
    assert found(server, "shared") == ["shared/b"]
    assert not exists(server.path("shared", "a"))


def test_a_file_that_was_written_again_has_another_stat(server: S3Server) -> None:
    server.put("a.csv", b"one")
    before = list_files(server.path("a.csv"))
    assert abs(before[0].modified_ns / 1e9 - time.time()) < 60
    assert before == list_files(server.path("*.csv"))  # one time, however it was found
    time.sleep(1.1)
    server.put("a.csv", b"two")
    assert list_files(server.path("a.csv")) != before


def test_a_file_of_the_same_size_and_second_is_another_file_however_it_was_found(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_one_time(pattern: str, tagged: bool = False) -> list[FileStat]:
        return [dataclasses.replace(one, modified_ns=0) for one in list_files(pattern, tagged=tagged)]

    monkeypatch.setattr("beeray.data.tables.list_files", at_one_time)
    table = Table(server.path("catalog"), {"item_id": "item_id"})
    fingerprints, stats = [], []
    for text in (b"item_id\n1\n", b"item_id\n2\n", b"item_id\n1\n"):
        server.put("catalog/a.csv", text)
        for pattern in ("catalog", "catalog/a.csv", "catalog/*.csv"):
            stats += at_one_time(server.path(pattern))
        fingerprints.append(table.fingerprint())
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    assert len(stats) == 9 and len(set(stats[:3])) == len(set(stats[3:6])) == 1
    assert stats[:3] == stats[6:] and stats[0] != stats[3] and stats[0].size == stats[3].size


def test_a_local_file_is_written_to_it_whole(server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"rows" * 100)
    write_file(server.path("work", "group.arrow"), str(tmp_path / "local"))
    assert read_bytes(server.path("work", "group.arrow")) == b"rows" * 100
    write_file(str(tmp_path / "deep" / "copy"), str(tmp_path / "local"))
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == ["copy"]
    assert (tmp_path / "deep" / "copy").read_bytes() == b"rows" * 100


def test_tables_in_every_format_are_read_through_it(server: S3Server) -> None:
    table = pa.table({"asin": ["007", "8"], "title": ["a", "b"]})
    for name, write in (
        ("t.parquet", pq.write_table),
        ("t.csv", pyarrow.csv.write_csv),
        ("t.feather", pyarrow.feather.write_feather),
    ):
        sink = io.BytesIO()
        write(table, sink)
        server.put(f"raw/{name}/part-0/{name}", sink.getvalue())
        read = Table(server.path("raw", name), {"item_id": "asin", "title": "title"})
        rows = [row for fragment in read.fragments() for batch in fragment.read() for row in batch.to_pylist()]
        assert [(row["item_id"], row["title"]) for row in rows] == [("007", "a"), ("8", "b")], name
        before = read.fingerprint()
        server.put(f"raw/{name}/part-1/{name}", sink.getvalue())
        assert read.fingerprint() != before


def test_a_damaged_table_names_its_file(server: S3Server) -> None:
    server.put("raw/broken.parquet", b"PAR1 no PAR1")
    assert "raw/broken.parquet: cannot be read" in complaint(lambda: Table(server.path("raw"), {"a": "a"}).check())


def test_a_part_is_written_and_read(server: S3Server) -> None:
    table = pa.table({"item_index": pa.array(range(10_000), pa.int32()), "text": ["x" * 9] * 10_000})
    write_part(table, server.path("store", "part-0.parquet"))
    assert read_part(server.path("store", "part-0.parquet"), ["item_index"]).equals(table.select(["item_index"]))


def test_a_staged_folder_is_published_whole_hidden_files_too_and_the_marker_last(server: S3Server) -> None:
    server.put("store/users/part-7", b"old")
    server.put("store/_manifest.json", b"old")
    with pytest.raises(RuntimeError), Staging(server.path("store"), "_manifest.json") as staging:
        write_bytes(join(staging.path, "x"), b"new")
        raise RuntimeError("half-way")
    assert server.list_keys() == ["store/_manifest.json", "store/users/part-7"]
    with Staging(server.path("store"), "_manifest.json") as staging:
        write_bytes(join(staging.path, "users", "part-0"), b"new")
        write_bytes(join(staging.path, "_manifest.json"), b"new")
        assert server.get("store/_manifest.json") == b"old"
        staging.publish()
    assert server.list_keys() == ["store/_manifest.json", "store/users/part-0"]
    marker, part = (server.client().head_object(Bucket=server.bucket, Key=key) for key in server.list_keys())
    assert marker["LastModified"] >= part["LastModified"]
    assert server.get("store/users/part-0") == b"new"


def test_a_whole_bucket_is_never_removed(server: S3Server) -> None:
    server.put("precious")
    assert "is a whole bucket, which is never removed" in complaint(lambda: remove_tree(server.path()))
    assert server.list_keys() == ["precious"]


@pytest.mark.parametrize(
    "does",
    [
        exists,
        list_files,
        lambda path: list_files(path + "/*.csv"),
        list_dir,
        read_bytes,
        lambda path: write_bytes(path, b"x"),
        lambda path: write_part(pa.table({"a": [1]}), path),
        remove_tree,
        delete_file,
    ],
)
def test_a_bucket_that_is_not_there_is_named_and_not_made(server: S3Server, does: Callable[[str], Any]) -> None:
    told = complaint(lambda: does("s3://mistyped/raw"))
    assert told.startswith("s3://mistyped/raw")
    assert "no such bucket 'mistyped'; check its name, storage.endpoint_url" in told
    assert len(server.client().list_buckets()["Buckets"]) == 1


def deny(server: S3Server, action: str) -> None:
    statement = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{server.bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    server.client().put_bucket_policy(Bucket=server.bucket, Policy=policy)


@pytest.mark.parametrize(
    ("action", "does"),
    [
        ("s3:PutObject", lambda path: write_bytes(path, b"x")),
        ("s3:PutObject", lambda path: write_part(pa.table({"a": [1]}), path)),
        ("s3:GetObject", read_bytes),
        ("s3:GetObject", lambda path: Table(path, {"item_id": "item_id"}).check()),
        ("s3:DeleteObject", delete_file),
        ("s3:DeleteObject", lambda path: remove_tree(path.rpartition("/")[0])),
    ],
)
def test_what_the_bucket_does_not_allow_says_so(server: S3Server, action: str, does: Callable[[str], Any]) -> None:
    server.put("raw/a.csv", b"item_id\n1\n")
    path = server.path("raw", "a.csv")
    deny(server, action)
    told = complaint(lambda: does(path))
    assert told.startswith(f"{path}: access denied")
    assert "storage.profile, AWS_* variables, the node's role" in told
    assert server.get("raw/a.csv") == b"item_id\n1\n" if action != "s3:GetObject" else True


def test_a_public_bucket_is_read_without_credentials_and_a_private_key_is_not(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client().put_object(Bucket=server.bucket, Key="open/a.csv", Body=b"item_id\n1\n", ACL="public-read")
    server.put("closed.csv")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with storage_options(StorageConfig(endpoint_url=server.url)):
        assert "no usable credentials" in complaint(lambda: exists(server.path("open", "a.csv")))
    with storage_options(StorageConfig(endpoint_url=server.url, anonymous=True)):
        assert Table(server.path("open"), {"item_id": "item_id"}).check().names == ["item_id"]
        assert "access denied" in complaint(lambda: read_bytes(server.path("closed.csv")))


def test_a_profile_of_the_config_files_gives_credentials_and_endpoint(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("a", b"mine")
    profile = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "endpoint_url": server.url}
    lines = ["[profile 2024]", *(f"{name} = {value}" for name, value in profile.items())]
    (tmp_path / "config").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.config.conf["s3"].clear()
    with storage_options(StorageConfig(profile="2024")):
        assert read_bytes(server.path("a")) == b"mine"
    with storage_options(StorageConfig(profile="2025", endpoint_url=server.url)):
        told = complaint(lambda: read_bytes(server.path("a")))
    assert "profile (2025) could not be found; check storage.profile and the AWS config files" in told


def test_an_endpoint_where_nobody_listens_is_given_up_soon() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with storage_options(StorageConfig(endpoint_url=url)):
        told = complaint(lambda: exists("s3://warehouse/a"))
    assert f"s3://warehouse/a: {url} does not answer" in told
    assert "check storage.endpoint_url" in told
    assert time.monotonic() - started < 20


def test_an_endpoint_that_takes_connections_and_says_nothing_is_given_up_and_patience_can_be_set() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(50)
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        with storage_options(StorageConfig(endpoint_url=url)):
            fsspec.config.conf["s3"]["config_kwargs"] = {"read_timeout": 0.2, "retries": {"max_attempts": 0}}
            told = complaint(lambda: list_files("s3://warehouse/a"))
    assert f"{url} does not answer (ReadTimeoutError)" in told
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"s3://{KEY}:hunter2@warehouse/a", "s3://…@warehouse: credentials do not stand in a path"),
        ("s3://warehouse/a?endpoint_override=http://me:hunter2@host", "set storage.endpoint_url"),
        ("s3a://warehouse/a?secret_key=hunter2", "s3a://warehouse/a: the path has a query (secret_key=…)"),
        ("s3://*/raw", "the bucket must be named"),
        ("s3:///raw", "the bucket must be named"),
        ("s3://No_Bucket!/raw", "Invalid bucket name"),
    ],
)
def test_a_uri_that_cannot_be_meant_is_refused_and_its_secrets_are_not_shown(path: str, expected: str) -> None:
    told = complaint(lambda: exists(path))
    assert expected in told
    assert "hunter2" not in told


def test_the_older_scheme_is_read_alike(server: S3Server) -> None:
    server.put("raw/a.csv")
    assert [file.path for file in list_files(f"s3a://{server.bucket}/raw")] == [f"s3a://{server.bucket}/raw/a.csv"]


def test_without_s3fs_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "beeray.data.s3")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert complaint(lambda: exists("s3://b/x")) == "s3://b/x: s3fs is not installed; pip install 'beeray[s3]'"


def test_settings_end_with_their_context(server: S3Server) -> None:
    before = dict(fsspec.config.conf["s3"])
    with pytest.raises(KeyError), storage_options(StorageConfig(endpoint_url="http://127.0.0.1:9", region="eu-west-1")):
        assert fsspec.config.conf["s3"]["client_kwargs"] == {"region_name": "eu-west-1"}
        raise KeyError
    assert fsspec.config.conf["s3"] == before
    assert resolve(server.path("a"))[0].handler.fs.endpoint_url == server.url
    assert os.environ.get("FSSPEC_S3_ENDPOINT_URL") is None
