"""What filesystems tell of a file's content beside its size and `mtime`, the only time that pyarrow asks fsspec for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

UNPACKED = "working_dir_files"
"""Folder under which Ray unpacks what submitted jobs bring along, each in a `_ray_pkg_<hash>`."""
TELLING = {
    *("etag", "contentmd5", "md5hash", "md5", "crc32c", "digest", "checksum", "sha", "blobid", "generation"),
    *("created", "lastmodified", "modified", "updated", "lastcommit"),
}
"""Of what fsspec's filesystems say of a file, what changes with its content; in small letters, without signs."""
ASKED_AT_ONCE = 16


@dataclass(frozen=True)
class FileStat:
    """A file (path or URI) and what tells whether it changed: of an object store or a server its ETag or the like, too.

    S3's times are whole seconds, and of what fsspec reads pyarrow knows no time but `mtime`.
    """

    path: str
    size: int
    modified_ns: int
    etag: str = ""


def etags_of(filesystem: fs.FileSystem, paths: Sequence[str], *, ask: bool) -> list[str]:
    """Of each path what its filesystem tells of its content, as one text; empty where it has nothing.

    Of S3 that is the ETag, as it was listed; of what else fsspec reads whatever `info` has of `TELLING`.

    Args:
        ask: also what takes a request a file.
    """
    handler = getattr(filesystem, "handler", None)
    known = getattr(handler, "etags", None)
    if known is not None:
        return [str(known.get(path, "")) for path in paths]
    if handler is None or not ask:
        return [""] * len(paths)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return [_telling(info) for info in pool.map(handler.fs.info, paths)]


def _telling(info: dict[str, Any]) -> str:
    return "|".join(
        f"{name}={value}"
        for name, value in sorted(info.items())
        if name.lower().replace("-", "").replace("_", "") in TELLING
    )
