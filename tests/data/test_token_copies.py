"""Copies of token stores on a node's disk: which are kept, and which go."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from beeray.data.token_copies import UNUSED_DAYS, bring_over
from beeray.errors import DataError

MARKER = "meta.json"
OLD, NEW = "0" * 16, "f" * 16


@pytest.fixture
def remote() -> Iterator[str]:
    """A folder of token stores that is not on this machine's disk."""
    memory = fsspec.filesystem("memory")
    for name in (OLD, NEW):
        memory.pipe_file(f"/bucket/{name}/{MARKER}", b"{}")
        memory.pipe_file(f"/bucket/{name}/ids.bin", b"ids")
    yield "memory://bucket"
    with contextlib.suppress(FileNotFoundError):
        memory.rm("/bucket", recursive=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def let_pass(days: float, *copies: Path) -> None:
    for copy in copies:
        os.utime(copy, (time.time() - days * 86_400,) * 2)


def test_a_copy_that_nobody_opened_for_long_is_removed_when_another_is_brought_over(
    remote: str, tmp_path: Path
) -> None:
    path, in_use = bring_over(f"{remote}/{OLD}", MARKER, tmp_path)
    in_use.close()
    let_pass(UNUSED_DAYS - 1, Path(path))
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [OLD, NEW]
    let_pass(UNUSED_DAYS + 1, Path(path))
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [NEW]
    assert names(tmp_path / NEW) == ["ids.bin", MARKER]


def test_opening_a_copy_keeps_it_for_as_long_again(remote: str, tmp_path: Path) -> None:
    path, in_use = bring_over(f"{remote}/{OLD}", MARKER, tmp_path)
    in_use.close()
    let_pass(UNUSED_DAYS + 1, Path(path))
    bring_over(f"{remote}/{OLD}", MARKER, tmp_path)[1].close()
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [OLD, NEW]


def test_a_copy_that_is_open_is_kept_however_old_it_is(remote: str, tmp_path: Path) -> None:
    path, in_use = bring_over(f"{remote}/{OLD}", MARKER, tmp_path)
    let_pass(UNUSED_DAYS + 1, Path(path))
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [OLD, NEW]
    in_use.close()
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [NEW]


def test_what_a_killed_copy_left_goes_with_time_and_what_is_no_copy_stays(remote: str, tmp_path: Path) -> None:
    left, fresh = tmp_path / f"{OLD}.partial-7-aaaaaaaa", tmp_path / f"{OLD}.partial-8-bbbbbbbb"
    for folder in (left, fresh, tmp_path / "photos"):
        folder.mkdir()
    let_pass(UNUSED_DAYS + 1, left, tmp_path / "photos")
    bring_over(f"{remote}/{NEW}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == sorted([fresh.name, NEW, "photos"])


def test_what_a_kill_left_of_a_copy_that_was_being_removed_is_brought_over_again(remote: str, tmp_path: Path) -> None:
    path, in_use = bring_over(f"{remote}/{OLD}", MARKER, tmp_path)
    in_use.close()
    (Path(path) / MARKER).unlink()
    (Path(path) / "offsets.bin").write_bytes(b"of an earlier version")
    bring_over(f"{remote}/{OLD}", MARKER, tmp_path)[1].close()
    assert names(tmp_path) == [OLD]
    assert names(Path(path)) == ["ids.bin", MARKER]


def test_a_copy_that_cannot_be_put_in_place_is_told_by_its_place(remote: str, tmp_path: Path) -> None:
    (tmp_path / OLD).write_bytes(b"a file")
    with pytest.raises(DataError, match=rf"^{tmp_path}/{OLD}: "):
        bring_over(f"{remote}/{OLD}", MARKER, tmp_path)
    assert names(tmp_path) == [OLD]
