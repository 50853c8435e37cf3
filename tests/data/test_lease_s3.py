"""A lease on S3, where nothing is written over what another has written since it was read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from lease_holders import BEAT_S, LOST, Stalled, followed, ignore
from published import VERSION, clustered, write_publication
from s3_server import S3Server

from beeray.config import StorageConfig
from beeray.data.embeddings import open_embeddings
from beeray.data.lease import LEASE, leased
from beeray.data.manifest import MANIFEST, Manifest
from beeray.data.publishing import pointer_digest, publish
from beeray.data.s3 import S3FileSystem
from beeray.data.storage import exists, storage_options
from beeray.data.tagged_file import read_tagged, write_tagged
from beeray.errors import DataError, RunError


@pytest.fixture(autouse=True)
def inside(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process with credentials and the endpoint."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with storage_options(StorageConfig(endpoint_url=server.url)):
        yield


def test_a_file_that_changed_is_left_as_it_is(server: S3Server) -> None:
    path = server.path("tagged", "file")
    assert read_tagged(path) is None
    write_tagged(path, b"one", "of no file")
    assert read_tagged(path) is None
    write_tagged(path, b"one", None)
    write_tagged(path, b"two", None)
    found = read_tagged(path)
    assert found is not None and found[0] == b"one"
    write_tagged(path, b"three", found[1])
    write_tagged(path, b"four", found[1])
    assert server.get("tagged/file") == b"three"
    with pytest.raises(DataError, match="no such bucket"):
        write_tagged("s3://of-nobody/file", b"x", None)


@pytest.mark.parametrize("before", [None, b"yesterday's"])
def test_a_pointer_that_another_job_moved_is_not_written_over(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    """Between the last look at it and its writing, as by a job whose lease this one took."""
    here = write_publication(tmp_path / "p", ["a", "b"], clustered(2, 8))
    manifest = Manifest.from_json((here / "versions" / VERSION / MANIFEST).read_bytes(), "x")
    path = server.path("moved")
    for file in (here / "versions" / VERSION).iterdir():
        server.put(f"moved/versions/{VERSION}/{file.name}", file.read_bytes())
    if before is not None:
        server.put("moved/latest", before)
    follows = pointer_digest(path)

    def write(place: str, data: bytes) -> None:
        server.put("moved/latest", b"another's")

    with monkeypatch.context() as patch:
        patch.setattr("beeray.data.publishing.write_bytes", write)
        with pytest.raises(RunError, match="latest: is not what it was when this job was planned"):
            publish(path, manifest, follows)
    assert server.get("moved/latest") == b"another's"
    publish(path, manifest, pointer_digest(path))
    assert open_embeddings(path).version == VERSION


def test_a_server_without_conditional_writes_is_written_to(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original = S3FileSystem.pipe_file

    def refused(self: S3FileSystem, path: str, data: bytes, **condition: Any) -> None:
        if condition:
            raise OSError("not implemented") from ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
        original(self, path, data)

    monkeypatch.setattr(S3FileSystem, "pipe_file", refused)
    write_tagged(server.path("plain", "file"), b"one", None)
    assert server.get("plain/file") == b"one"


def test_a_renewal_that_comes_late_leaves_the_others_lease(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = server.path("late")
    with ExitStack() as stack:
        first, second = followed(folder, Stalled(monkeypatch, "write_tagged"), stack)
        with pytest.raises(RunError, match=LOST.format(r"process \d+ on south")):
            first.check()
        second.check()
    assert not exists(f"{folder}/{LEASE}")


def test_who_took_over_keeps_the_lease_when_the_first_leaves(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = server.path("left")
    with ExitStack() as of_first, ExitStack() as of_second:
        first = of_first.enter_context(leased(folder, ignore, beat_s=BEAT_S, host="north"))
        stalled = Stalled(monkeypatch, "write_tagged")
        stalled.stall()
        second = of_second.enter_context(leased(folder, ignore, beat_s=BEAT_S, host="south"))
        stalled.holds.clear()
        of_first.close()
        assert json.loads(server.get(f"left/{LEASE}"))["token"] == second.claim.token != first.claim.token
        second.check()


def test_a_living_holder_is_seen_however_often_it_writes(server: S3Server) -> None:
    """Reading while it is written anew is no error, and not taken for a lease that is gone."""
    folder = server.path("busy")
    with leased(folder, ignore, beat_s=0.01, host="north"):
        for _ in range(3):
            with (
                pytest.raises(RunError, match="is being worked on by another command"),
                leased(folder, ignore, beat_s=0.5, host="north"),
            ):
                raise AssertionError("both at work")
            time.sleep(0.05)
