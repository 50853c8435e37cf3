"""Copies of token stores on a node's disk: brought over once, removed when nobody has opened them for some time.

A folder's time of change says when it was last opened; a lock on its marker says that it is open now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from pyarrow import fs

from beeray.data.storage import resolve, storage_errors

UNUSED_DAYS = 14
COPY = re.compile(r"[0-9a-f]{16}(\.partial-\d+-[0-9a-f]{8})?")
"""Names of copies, whole and unfinished: nothing else in the folder is touched."""


def bring_over(path: str, marker: str, cache: Path) -> tuple[str, BinaryIO]:
    """The copy of a folder on this machine's disk, made unless it is there.

    Copies that are not open and have not been opened for `UNUSED_DAYS` are removed first.

    Args:
        path: of the folder; the last part names the copy.
        marker: file without which it is not whole.
        cache: where copies are.

    Returns:
        the copy's path, and a file that keeps it from being removed while it is open.

    Raises:
        DataError: it cannot be read, or not written here.
    """
    name = path.rstrip("/").rpartition("/")[2]
    final = cache / name
    with storage_errors(str(cache)):
        cache.mkdir(parents=True, exist_ok=True)
    with _held(cache):  # workers of a node that come meanwhile find the first one's copy
        _remove_unused(cache, marker, but=name)
        if not (final / marker).is_file():
            _copy(path, final)
        with storage_errors(str(cache)):
            os.utime(final)
            in_use = (final / marker).open("rb")
            fcntl.flock(in_use, fcntl.LOCK_SH)
    return str(final), in_use


def _copy(path: str, final: Path) -> None:
    """Bring a copy over; the caller holds the folder, and there is no whole copy."""
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}-{uuid4().hex[:8]}")
    filesystem, inside = resolve(path)
    local = fs.LocalFileSystem()
    try:
        with storage_errors(str(partial)):
            shutil.rmtree(final, ignore_errors=True)  # what a kill left of one that was being removed
            partial.mkdir()
        with storage_errors(path):
            fs.copy_files(inside, str(partial), source_filesystem=filesystem, destination_filesystem=local)
        with storage_errors(str(final)):
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_unused(cache: Path, marker: str, but: str) -> None:
    """Remove what is old and not open; the caller holds the folder, so nobody opens or makes a copy meanwhile."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for copy in cache.iterdir():
        if copy.name == but or not COPY.fullmatch(copy.name) or copy.stat().st_mtime >= oldest:
            continue
        if not _is_open(copy / marker):
            shutil.rmtree(copy, ignore_errors=True)


def _is_open(marker: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), marker.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes of this node that ask for the same folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
