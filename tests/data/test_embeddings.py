"""Opening a publication: what is whole opens, what is not says which file, and an opened version stays readable."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from published import VERSION, clustered, sha256, write_publication

from beeray.data.embeddings import Embeddings, open_embeddings, read_latest
from beeray.data.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from beeray.data.publishing import clean_up
from beeray.errors import DataError, EmbeddingsError

IDS = [f"sku-{number:02d}" for number in range(30)]
VECTORS = clustered(30, 8)
LATER = "20260103T000000Z-1"
HOW: list[Any] = ["checksums", "sizes", "none"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_publication(tmp_path / "published", IDS, VECTORS)


def folder(path: Path) -> Path:
    return path / "versions" / VERSION


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest, and the pointer with it."""
    file = folder(path) / MANIFEST
    record = json.loads(file.read_bytes())
    change(record)
    file.write_text(json.dumps(record))
    (path / "latest").write_text(json.dumps({"version": VERSION, "manifest_sha256": sha256(file)}))


def refused(path: Path | str, *pieces: str, **options: Any) -> None:
    with pytest.raises(EmbeddingsError) as caught:
        open_embeddings(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    for piece in pieces:
        assert piece in message


def test_a_publication_opens_with_all_that_was_written(path: Path) -> None:
    published = open_embeddings(str(path))
    assert (published.version, published.num_rows, published.dim) == (VERSION, 30, 8)
    table = published.table()
    assert table["item_id"].to_pylist() == IDS
    np.testing.assert_array_equal(published.vectors(table), VECTORS)
    assert [batch.num_rows for batch in published.iter_batches(4)] == [4, 4, 4, 3] * 2
    assert published.table(["item_id"]).column_names == ["item_id"]
    assert pickle.loads(pickle.dumps(published)).table().equals(table)


def test_nothing_published_is_said_with_the_remedy(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path}: nothing is published there (no file 'latest'); run beeray.embed")
    refused(tmp_path / "nowhere", "nothing is published there")
    assert read_latest(str(tmp_path)) is None


def test_versions_that_no_pointer_names_are_not_the_current_one(path: Path) -> None:
    (path / "latest").unlink()
    refused(path, "nothing is published there")
    assert open_embeddings(str(path), version=VERSION).num_rows == 30


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b'{"version": "x"}',
        b"\xff\xfe",
        b'{"version": "a"',
        b"\0" * 90,
    ],
)
def test_a_damaged_pointer_is_said(path: Path, content: bytes) -> None:
    (path / "latest").write_bytes(content)
    refused(path, f"{path}/latest: is damaged (", "publish again")
    assert open_embeddings(str(path), version=VERSION).num_rows == 30


def test_a_pointer_to_a_version_that_is_not_there_names_it(path: Path) -> None:
    (path / "latest").write_text('{"version": "gone", "manifest_sha256": "0"}')
    refused(path, "versions/gone/_manifest.json: is not there, so version 'gone' is not published")


def test_a_manifest_that_the_pointer_does_not_name_is_refused_unless_trusted(path: Path) -> None:
    with open(folder(path) / MANIFEST, "ab") as file:
        file.write(b" ")
    for how in ("checksums", "sizes"):
        refused(path, "is not the manifest that 'latest' names", verify=how)
    assert open_embeddings(str(path), verify="none").num_rows == 30


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"schema_version": 1}', b'{"schema_version": "x"}', b"\xff"]
)
def test_a_damaged_manifest_is_said(path: Path, content: bytes) -> None:
    (folder(path) / MANIFEST).write_bytes(content)
    refused(path, "_manifest.json: the manifest is damaged (", version=VERSION)


def test_a_manifest_cut_anywhere_is_damaged_or_not_the_one_that_was_named(path: Path) -> None:
    whole = (folder(path) / MANIFEST).read_bytes()
    for length in range(0, len(whole), 37):
        (folder(path) / MANIFEST).write_bytes(whole[:length])
        refused(path, "_manifest.json: is not the manifest that 'latest' names")
        refused(path, "_manifest.json: the manifest is damaged (", version=VERSION)


def test_a_newer_schema_is_refused_with_the_remedy(path: Path) -> None:
    rewrite_manifest(path, lambda record: record.update(schema_version=SCHEMA_VERSION + 1, files="another form"))
    refused(path, f"schema_version is {SCHEMA_VERSION + 1}, this beeray reads up to {SCHEMA_VERSION}; update beeray")


def test_fields_that_a_later_beeray_added_are_passed_over(path: Path) -> None:
    def add(record: dict[str, Any]) -> None:
        record["added"] = {"a": 1}
        record["format"]["added"] = 1
        for file in record["files"]:
            file["added"] = "x"

    before = open_embeddings(str(path)).manifest
    rewrite_manifest(path, add)
    assert open_embeddings(str(path)).manifest == before


def test_fields_that_may_be_missing_are_not_asked_for(path: Path) -> None:
    optional = [one.name for one in dataclasses.fields(Manifest) if one.name in ("errors", "error_files", "drift")]
    rewrite_manifest(path, lambda record: [record.pop(name) for name in optional])
    assert open_embeddings(str(path)).manifest.error_files == []
    rewrite_manifest(path, lambda record: record.pop("files"))
    refused(path, "the manifest is damaged ('files')")


def test_an_unknown_dtype_is_no_crash(path: Path) -> None:
    rewrite_manifest(path, lambda record: record["format"].update(dtype="int4"))
    refused(path, "the manifest is damaged", "'int4'", "update beeray")


def test_a_manifest_comes_back_as_it_was_written(path: Path) -> None:
    manifest = open_embeddings(str(path)).manifest
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


@pytest.mark.parametrize("how", HOW)
def test_a_missing_file_is_named(path: Path, how: Any) -> None:
    (folder(path) / "part-00001.parquet").unlink()
    if how == "none":
        opened = open_embeddings(str(path), verify=how)
        with pytest.raises(DataError, match=r"part-00001\.parquet: no such file"):
            opened.table()
    else:
        refused(path, "part-00001.parquet: is missing, the manifest lists it; publish again", verify=how)


@pytest.mark.parametrize("how", HOW)
def test_a_truncated_file_is_named(path: Path, how: Any) -> None:
    file = folder(path) / "part-00000.parquet"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    if how == "none":
        assert open_embeddings(str(path), verify=how).num_rows == 30
    else:
        refused(path, f"part-00000.parquet: has {size - 1} bytes, the manifest says {size}", verify=how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", [4, -5, 0.5])
def test_a_flipped_bit_is_seen_by_checksums_alone(path: Path, how: Any, place: float) -> None:
    file = folder(path) / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[int(place * len(data)) if 0 < place < 1 else int(place)] ^= 1
    file.write_bytes(data)
    if how == "checksums":
        refused(path, "part-00001.parquet: its SHA-256 is not the manifest's: it has changed", verify=how)
    else:
        assert open_embeddings(str(path), verify=how).num_rows == 30


def test_a_folder_where_a_file_must_be_is_an_error_of_one_line(path: Path) -> None:
    file = folder(path) / "part-00000.parquet"
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"part-00000\.parquet: no such file"):
        open_embeddings(str(path))


def test_an_opened_version_is_read_on_after_a_new_one_is_published(path: Path) -> None:
    reader = open_embeddings(str(path))
    batches = reader.iter_batches(4)
    first = next(batches)
    write_publication(path, ["other"], VECTORS[:1], version=LATER)
    assert open_embeddings(str(path)).version == LATER
    assert open_embeddings(str(path)).table()["item_id"].to_pylist() == ["other"]
    ids = [item for batch in [first, *batches] for item in batch["item_id"].to_pylist()]
    assert ids == IDS
    assert open_embeddings(str(path), version=VERSION).table()["item_id"].to_pylist() == IDS


def test_a_reader_whose_version_was_removed_is_told(path: Path) -> None:
    reader = open_embeddings(str(path))
    for version in (LATER, f"{LATER}2"):
        write_publication(path, ["other"], VECTORS[:1], version=version)
    clean_up(str(path), 2, [])
    with pytest.raises(DataError, match=rf"{VERSION}/part-00000\.parquet: no such file or folder; check the path"):
        reader.table()
    refused(path, f"so version {VERSION!r} is not published", version=VERSION)


def test_a_publication_without_items_opens_and_has_an_empty_table(tmp_path: Path) -> None:
    published = open_embeddings(str(write_publication(tmp_path, [], VECTORS[:0])))
    table = published.table()
    assert (published.num_rows, table.num_rows) == (0, 0)
    assert published.vectors(table).shape == (0, 8)
    assert table.column_names == ["item_id", "embedding", "content_hash"]


@pytest.mark.parametrize("spelling", ["published", "./published/", "file://{}"])
def test_relative_paths_and_file_uris_are_paths(path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    monkeypatch.chdir(path.parent)
    published = open_embeddings(spelling.format(path))
    assert published.table()["item_id"].to_pylist() == IDS
    assert all(one.endswith(".parquet") for one in published.paths)


@pytest.mark.parametrize("how", HOW)
def test_a_publication_in_another_filesystem_is_read_and_proved(path: Path, how: Any) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/published", recursive=True)
    try:
        published: Embeddings = open_embeddings("memory://bucket/published", verify=how)
        assert published.table()["item_id"].to_pylist() == IDS
        name = f"/bucket/published/versions/{VERSION}/part-00000.parquet"
        memory.pipe(name, memory.cat(name)[:-1])
        if how != "none":
            refused("memory://bucket/published", "part-00000.parquet: has ", verify=how)
        memory.rm(name)
        with pytest.raises(DataError, match=r"part-00000\.parquet: no such file"):
            published.table()
        refused("memory://bucket/elsewhere", "memory://bucket/elsewhere: nothing is published there")
    finally:
        memory.rm("/bucket", recursive=True)
