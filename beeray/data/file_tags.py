"""What filesystems tell of a file's content beside its size and `mtime`, the only time that pyarrow asks fsspec for."""

from __future__ import annotations

from collections.abc import Callable

from pyarrow import fs

UNPACKED = "working_dir_files"
"""Folder under which Ray unpacks what submitted jobs bring along, each in a `_ray_pkg_<hash>`."""
TELLING = {
    *("etag", "contentmd5", "md5hash", "md5", "crc32c", "digest", "checksum", "sha", "blobid", "generation"),
    *("created", "lastmodified", "modified", "updated", "lastcommit"),
}
"""Of what fsspec's filesystems say of a file, what changes with its content; in small letters, without signs."""


def etags_of(filesystem: fs.FileSystem) -> Callable[[str], str]:
    """Gives of a path what a filesystem tells of its content, as one text; empty where it has nothing.

    Of S3 that is the ETag, as it was listed; of what else fsspec reads whatever `info` has of `TELLING`.
    """
    handler = getattr(filesystem, "handler", None)
    if handler is None:
        return lambda path: ""
    known = getattr(handler, "etags", None)
    if known is not None:
        return lambda path: str(known.get(path, ""))
    return lambda path: "|".join(
        f"{name}={value}"
        for name, value in sorted(handler.fs.info(path).items())
        if name.lower().replace("-", "").replace("_", "") in TELLING
    )
