"""The nightly job from a bucket into a bucket: two nights, a refusal, and no secret anywhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from embedding_jobs import PREFIX, TEMPLATE, Ended, Jobs, furthest, hash_of, rows_of, texts_of
from s3_server import KEY, SECRET, S3Server

from beeray.config import StorageConfig
from beeray.data.embeddings import open_embeddings
from beeray.data.generated_catalog import GeneratedCatalog
from beeray.data.storage import storage_options

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NUM_ITEMS, NUM_BAD, LIMIT_S = 600, 6, 900.0
SHARES = {"changed": 0.1, "deleted": 0.05, "added": 0.1}
FIRST = GeneratedCatalog(NUM_ITEMS, 2, 0, mean_tokens=16, **SHARES)
SECOND = GeneratedCatalog(NUM_ITEMS, 2, 1, bad=NUM_BAD, mean_tokens=16, **SHARES)
STRICT = "embed.max_error_fraction=0.001"


@dataclass(frozen=True)
class Nights:
    """The first night, the second while it is refused, the second when it is let through.

    Attributes:
        pointers: content of `latest` after each command.
        own: what the refused job kept in the bucket, by key.
    """

    jobs: Jobs
    ended: list[Ended]
    pointers: list[bytes]
    own: dict[str, bytes]


def environment(server: S3Server, ray_dir: Path) -> dict[str, str]:
    """All variables of a job's process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_", "RAY_"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}
    return {**kept, **server.environment, **token, "RAY_TMPDIR": str(ray_dir)}


@pytest.fixture(scope="module")
def nights(server: S3Server, ray_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    folder = tmp_path_factory.mktemp("bucket")
    for catalog, name in ((FIRST, "first"), (SECOND, "second")):
        catalog.write(folder / name, num_files=2)
        for file in (folder / name).iterdir():
            server.put(f"raw/{name}/{file.name}", file.read_bytes())
    sections = {
        "storage": {"endpoint_url": server.url},
        "data": {"catalog": {"path": server.path("raw", "first"), "template": TEMPLATE}},
        "embed": {"path": server.path("out", "vectors"), "rows_per_file": 200},
    }
    jobs = Jobs(folder, sections)
    second = f"data.catalog.path={server.path('raw', 'second')}"
    nights = Nights(jobs, [], [], {})
    for arguments in ((), (second, STRICT), (second, "embed.max_error_fraction=0.02")):
        process = jobs.start(*arguments, environment=environment(server, ray_dir))
        out, err = process.communicate(timeout=LIMIT_S)
        nights.ended.append(Ended(process.returncode, out, err))
        assert process.returncode == (2 if STRICT in arguments else 0), err[-3000:]
        nights.pointers.append(server.get("out/vectors/latest"))
        if process.returncode == 2:
            nights.own.update({key: server.get(key) for key in server.list_keys("out/vectors/work")})
    return nights


@pytest.fixture
def inside(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process with credentials and the endpoint."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with storage_options(StorageConfig(endpoint_url=server.url)):
        yield


def test_two_nights_in_a_bucket_hold_what_encode_gives(server: S3Server, nights: Nights, inside: None) -> None:
    first, _, second = nights.ended
    assert first.record["path"] == server.path("out", "vectors")
    published = open_embeddings(server.path("out", "vectors"))
    assert published.version == second.record["version"]
    counts = published.manifest.counts
    assert (counts["encoded"], counts["reused"], counts["deleted"]) == (60 + 60, NUM_ITEMS - 60 - 30, 30)
    assert counts["errors"] == NUM_BAD
    good = GeneratedCatalog(NUM_ITEMS, 2, 1, mean_tokens=16, **SHARES)
    texts = texts_of(next(good.batches()))
    rows = rows_of(published)
    assert rows.ids == list(texts)
    assert rows.hashes == [hash_of(text) for text in texts.values()]
    assert furthest(rows.vectors, nights.jobs.encode(list(texts.values()))) < 1e-5
    assert furthest(rows.vectors, nights.jobs.encode(list(texts.values()), prompt="")) > 0.01


def test_the_version_before_can_still_be_read(server: S3Server, nights: Nights, inside: None) -> None:
    before = open_embeddings(server.path("out", "vectors"), version=nights.ended[0].record["version"])
    assert rows_of(before).ids == list(texts_of(next(FIRST.batches())))


def test_a_refused_night_leaves_the_pointer_and_is_let_through_without_encoding(
    server: S3Server, nights: Nights
) -> None:
    _, refused, allowed = nights.ended
    assert "embed.max_error_fraction allows 0.10%; nothing is published" in refused.complaint
    assert nights.pointers[1] == nights.pointers[0] != nights.pointers[2]
    files = allowed.record["files"]
    assert f"{files} of {files} files are there already" in allowed.err


def test_nothing_but_two_versions_and_the_pointer_is_left_in_the_bucket(server: S3Server, nights: Nights) -> None:
    keys = [key.removeprefix("out/vectors/") for key in server.list_keys("out")]
    versions = {f"versions/{nights.ended[place].record['version']}" for place in (0, 2)}
    assert {key.rpartition("/")[0].removesuffix("/errors") for key in keys} == {"", *versions}
    assert [key for key in keys if not key.startswith("versions/")] == ["latest"]


def test_credentials_are_nowhere(server: S3Server, nights: Nights, ray_dir: Path) -> None:
    jobs = [data for key, data in nights.own.items() if key.endswith("/job.json")]
    assert len(jobs) == 1 and json.loads(jobs[0])["digest"]
    places = {key: server.get(key) for key in server.list_keys()} | nights.own
    for folder in (ray_dir, nights.jobs.folder):
        places |= {str(one): one.read_bytes() for one in folder.rglob("*") if one.is_file() and not one.is_symlink()}
    for number, ended in enumerate(nights.ended):
        places[f"console {number}"] = (ended.out + ended.err).encode()
    assert [name for name, data in places.items() if SECRET.encode() in data or KEY.encode() in data] == []
    told = [name for name, data in places.items() if server.url.encode() in data]
    assert any(name.endswith("mlflow.db") for name in told), (
        "settings without secrets are looked for in the right places"
    )
    (run,) = nights.jobs.tracked(nights.ended[2].record["version"])
    assert run.data.params["storage.endpoint_url"] == server.url
    assert run.data.params["encoder.prefix"] == PREFIX


def test_a_job_that_was_superseded_publishes_nothing_and_leaves_all_as_it_is(
    server: S3Server, nights: Nights, ray_dir: Path
) -> None:
    """Another takes over while it works, and has the same folder."""
    pointer = server.get("out/vectors/latest")
    catalog = f"data.catalog.path={server.path('raw', 'first')}"
    process = nights.jobs.start(catalog, environment=environment(server, ray_dir))
    deadline = time.monotonic() + LIMIT_S
    while not any(key.endswith("/job.json") for key in server.list_keys("out/vectors/work")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    theirs = json.dumps({"host": "south", "pid": 7, "token": "theirs"}).encode()
    server.put("out/vectors/.lease", theirs)
    out, err = process.communicate(timeout=LIMIT_S)
    complaint = Ended(process.returncode, out, err).complaint
    assert "could not renew its lease there in time, and process 7 on south has it now" in complaint
    assert server.get("out/vectors/.lease") == theirs and server.get("out/vectors/latest") == pointer
    assert any(key.endswith("/job.json") for key in server.list_keys("out/vectors/work"))
