"""Small files and folders on a disk: replaced in one go, and refused in one line."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

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
    write_bytes,
    write_json,
)
from beeray.errors import DataError


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that is not there yet, on a disk and on a filesystem that only fsspec knows."""
    yield str(tmp_path / "new") if request.param == "disk" else "memory://bucket/new"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_file_is_written_with_its_folder_replaced_measured_and_removed(folder: str) -> None:
    path = join(folder, "deep", "latest")
    write_bytes(path, b"old")
    write_bytes(path, b"newer")
    assert (read_bytes(path), file_size(path)) == (b"newer", 5)
    assert [file.path.rpartition("/")[2] for file in list_files(folder, hidden=True)] == ["latest"]
    delete_file(path)
    delete_file(path)
    assert not exists(path)
    for does in (read_bytes, read_json, file_size):
        with pytest.raises(DataError, match="latest: no such file"):
            does(path)


def test_folders_directly_below_are_listed_and_files_are_not(folder: str) -> None:
    assert list_dir(folder) == []
    for name in ("b/x", "a/deep/x", "_c/x", "file"):
        write_bytes(join(folder, name), b"")
    assert list_dir(folder) == ["_c", "a", "b"]
    assert list_dir(folder + "/") == ["_c", "a", "b"]


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    path, sizes, stop = tmp_path / "latest.json", set(), threading.Event()
    write_bytes(str(path), b"0" * 1_000_000)

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            sizes.add((len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for round_number in range(40):
        write_bytes(str(path), bytes([48 + round_number % 10]) * 1_000_000)
    stop.set()
    reader.join()
    assert sizes == {(1_000_000, 1)}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    write_json(str(path), {"old": 1})
    with pytest.raises(TypeError):
        write_bytes(str(path), "a text")  # type: ignore[arg-type]
    assert [one.name for one in tmp_path.iterdir()] == ["latest.json"]
    assert read_json(str(path)) == {"old": 1}


def test_hidden_files_of_a_staged_folder_are_published_where_there_is_no_rename() -> None:
    final = "memory://staged/embeddings"
    with Staging(final, "_manifest.json") as staging:
        write_bytes(join(staging.path, "part-0"), b"x")
        write_json(join(staging.path, "_manifest.json"), {})
        staging.publish()
    names = [file.path.removeprefix(final + "/") for file in list_files(final, hidden=True)]
    fsspec.filesystem("memory").rm("/staged", recursive=True)
    assert names == ["_manifest.json", "part-0"]


def test_a_file_that_only_fsspec_knows_is_told_from_another_of_its_size(tmp_path: Path) -> None:
    """pyarrow knows no time of it but `mtime`, which few of fsspec's filesystems have."""
    path = "memory://bucket/titles.csv"
    try:
        write_bytes(path, b"A4")
        (before,) = list_files(path, tagged=True)
        write_bytes(path, b"A5")
        (after,) = list_files(path, tagged=True)
        (untagged,) = list_files(path)
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert (before.size, before.modified_ns) == (after.size, after.modified_ns) == (2, 0)
    assert before.etag != after.etag and untagged.etag == ""


def test_what_has_no_time_beside_a_folder_of_an_object_store_is_left(tmp_path: Path) -> None:
    """Another machine may be writing it now."""
    left = "memory://staged/store.partial-0123456789ab-17-1-01234567/scratch/x"
    try:
        write_bytes(left, b"x")
        with Staging("memory://staged/store", "meta.json") as staging:
            write_json(join(staging.path, "meta.json"), {})
            staging.publish()
        assert exists(left) and exists("memory://staged/store/meta.json")
    finally:
        fsspec.filesystem("memory").rm("/staged", recursive=True)


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file, which the user may not enter; root becomes nobody for the while."""
    folder = tmp_path / "forbidden"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


@pytest.mark.parametrize(
    "does",
    [
        exists,
        file_size,
        read_json,
        read_bytes,
        list_files,
        delete_file,
        remove_tree,
        lambda path: write_bytes(path, b"x"),
        lambda path: make_dir(path + "/b"),
        lambda path: list_dir(path.rpartition("/")[0]),
        lambda path: Staging(path).__enter__(),
    ],
)
def test_what_this_user_may_not_do_is_told_in_one_line(forbidden: Path, does: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match="access denied") as caught:
        does(str(forbidden / "a.json"))
    assert str(caught.value).startswith(str(forbidden))
    assert "Permission denied" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "does", [lambda path: write_bytes(path, b"x"), make_dir, lambda path: Staging(path).__enter__()]
)
def test_a_file_where_a_folder_must_be_is_told_in_one_line(tmp_path: Path, does: Callable[[str], Any]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="check the path") as caught:
        does(str(tmp_path / "file" / "below" / "it"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("file:///tmp/a%20b/x.csv", "/tmp/a b/x.csv"),
        ("file://localhost/tmp/x.csv", "/tmp/x.csv"),
        ("/tmp/a%20b", "/tmp/a%20b"),
        ("/tmp/a:b/c", "/tmp/a:b/c"),
    ],
)
def test_local_paths_mean_what_they_say(uri: str, inside: str) -> None:
    assert resolve(uri)[1] == inside


@pytest.mark.parametrize("path", ["s3:/bucket/x", "file:/tmp/x", "~/x", "file://tmp/x"])
def test_what_would_become_a_folder_called_like_a_uri_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="give "):
        resolve(path)
