"""A small file that is written only where nobody else has written it since it was read.

S3 does so by ETag (`If-Match`, `If-None-Match`: AWS, MinIO, Ceph, R2). Other filesystems, and servers that do not know
these conditions, write whatever is there.
"""

from __future__ import annotations

import contextlib

from beeray.data.storage import exists, read_bytes, resolve, storage_errors, write_bytes


def read_tagged(path: str) -> tuple[bytes, str] | None:
    """What a file holds and its ETag, empty where the filesystem has none; None: there is no file."""
    filesystem, inside = resolve(path)
    handler = getattr(filesystem, "handler", None)
    if handler is not None and hasattr(handler, "read_tagged"):
        with storage_errors(path), contextlib.suppress(FileNotFoundError):
            content, etag = handler.read_tagged(inside)
            return bytes(content), str(etag)
        return None
    return (read_bytes(path), "") if exists(path) else None


def write_tagged(path: str, data: bytes, etag: str | None) -> None:
    """Write a file as `storage.write_bytes` does, or leave it where it has changed; reading it again tells which.

    Args:
        etag: as it was read; None: there was no file.
    """
    filesystem, inside = resolve(path)
    handler = getattr(filesystem, "handler", None)
    if handler is not None and hasattr(handler, "put_tagged"):
        with storage_errors(path):
            handler.put_tagged(inside, data, etag)
    else:
        write_bytes(path, data)
