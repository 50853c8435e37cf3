"""Paths on any filesystem: what is there, small files, and which settings reach it.

A path is local, an `s3://` URI (through s3fs, see `s3.py`), or another that pyarrow or fsspec reads
(`gs://`, `abfs://` …). What the filesystem refuses is a `DataError` of one line. An object store shows
what others wrote at once and has no folders: one is there as soon as something is in it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from fsspec.config import conf as fsspec_config
from fsspec.utils import glob_translate
from pyarrow import fs

from beeray.config import StorageConfig
from beeray.config.credentials import holds_password, redact_uri
from beeray.config.paths import found, mistyped
from beeray.data.file_tags import FileStat, etags_of
from beeray.errors import DataError

WILDCARDS = "*?["
COPY_BYTES = 16 << 20


@contextlib.contextmanager
def storage_options(storage: StorageConfig) -> Iterator[None]:
    """Reach `s3://` paths as the config says, in this process and until the context ends.

    For work outside a Ray session, which does the same (`runtime/session.py`).
    """
    s3 = sys.modules.get("beeray.data.s3")
    if s3 is not None:
        s3.S3FileSystem.clear_instance_cache()  # credentials may have changed since
    before = fsspec_config.get("s3")
    fsspec_config["s3"] = {**(before or {}), **_s3_settings(storage)}
    try:
        yield
    finally:
        if before is None:
            fsspec_config.pop("s3", None)
        else:
            fsspec_config["s3"] = before


def storage_environment(storage: StorageConfig) -> dict[str, str]:
    """The same settings as environment variables, which fsspec reads in a process that starts with them.

    No credentials are among them, so they may be seen by anyone who sees the cluster.
    """
    return {f"FSSPEC_S3_{key.upper()}": json.dumps(value) for key, value in _s3_settings(storage).items()}


def _s3_settings(storage: StorageConfig) -> dict[str, Any]:
    """Arguments of s3fs."""
    settings: dict[str, Any] = {}
    if storage.endpoint_url:
        settings["endpoint_url"] = storage.endpoint_url
    if storage.profile:
        settings["profile"] = storage.profile
    if storage.anonymous:
        settings["anon"] = True
    if storage.region:
        settings["client_kwargs"] = {"region_name": storage.region}
    return settings


def is_local(path: str) -> bool:
    """Whether a path is on this machine's disk."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str) -> Path:
    """The path of a `file://` URI or of the disk itself, absolute (see `config.paths.found`); errors as `resolve`."""
    return found(_local(path))


def resolve(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path, and the path inside it.

    Raises:
        DataError: no filesystem for that kind of URI is installed, or the URI holds settings or a password.
    """
    if is_local(path):
        return fs.LocalFileSystem(), str(local_path(path))
    if path.startswith(("s3://", "s3a://")):
        return _resolve_s3(path)
    _refuse_password(path)
    try:
        filesystem, inside = fs.FileSystem.from_uri(path)
        return filesystem, inside
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    import fsspec

    try:
        filesystem, inside = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise DataError(f"{path}: no filesystem for this kind of path ({error}); install its fsspec package") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), inside


def _local(path: str) -> Path:
    """The path of a `file://` URI or of the disk itself.

    Raises:
        DataError: what looks like a URI or a home folder and would become a folder of that name here.
    """
    if path.startswith("file://"):
        inside = path.removeprefix("file://").removeprefix("localhost")
        if not inside.startswith("/"):
            raise DataError(f"{path}: a file URI names an absolute path; give file:///<path>, or the path alone")
        return Path(unquote(inside))
    trouble = mistyped(path)
    if trouble:
        raise DataError(f"{path}: {trouble}")
    return Path(path)


def _refuse_password(path: str) -> None:
    if holds_password(path):
        raise DataError(
            f"{redact_uri(path)}: credentials do not stand in a path; they come from the environment, "
            "the filesystem's own config files or the node's role"
        )


def _resolve_s3(path: str) -> tuple[fs.FileSystem, str]:
    scheme, _, inside = path.partition("://")
    bucket = inside.partition("/")[0]
    if "@" in bucket:
        raise DataError(
            f"{scheme}://…@{bucket.rpartition('@')[2]}: credentials do not stand in a path; "
            "they come from the environment, storage.profile or the node's role"
        )
    setting = re.search(r"\?(\w+)=", inside)
    if setting:
        raise DataError(
            f"{scheme}://{inside[: setting.start()]}: the path has a query ({setting[1]}=…); "
            "set storage.endpoint_url, storage.region or storage.anonymous in its place"
        )
    _refuse_password(path)
    if not bucket or any(sign in bucket for sign in WILDCARDS):
        raise DataError(f"{path}: the bucket must be named; give {scheme}://<bucket>/<path>")
    try:
        from beeray.data.s3 import s3_filesystem
    except ImportError as error:
        raise DataError(f"{path}: s3fs is not installed; pip install 'beeray[s3]'") from error
    return s3_filesystem(), inside.rstrip("/")


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Tell what a filesystem raises in one line.

    Raises:
        DataError: missing, access denied, disk full, no answer …
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder; check the path") from error
    except PermissionError as error:
        raise DataError(f"{path}: access denied ({_reason(error)}); give this user the right to it") from error
    except NotADirectoryError as error:
        raise DataError(f"{path}: a file stands where a folder must be; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read or written ({_reason(error)}); check the path and its disk") from error


def _reason(error: OSError) -> str:
    said = error.strerror or str(error) or type(error).__name__
    return said.splitlines()[0].rpartition("Detail: ")[2][:200]


def join(path: str, *names: str) -> str:
    """A path below another."""
    return "/".join([path.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    return _info(path).type != fs.FileType.NotFound


def is_folder(path: str) -> bool:
    """Whether a folder is there."""
    return _info(path).type == fs.FileType.Directory


def file_size(path: str) -> int:
    """Bytes of a file."""
    info = _info(path)
    if info.type != fs.FileType.File:
        raise DataError(f"{path}: no such file; check the path")
    return int(info.size)


def _info(path: str) -> fs.FileInfo:
    filesystem, inside = resolve(path)
    with storage_errors(path):
        return filesystem.get_file_info(inside)


def list_files(
    pattern: str, *, may_be_empty: bool = False, hidden: bool = False, tagged: bool = False
) -> list[FileStat]:
    """Files of a path: itself, everything below a folder, or what a glob matches; sorted by path, each once.

    In a glob `*` stays within a folder and `**` stands for any number of them. Of a folder that it matches
    everything below counts, as of a folder that is named.

    Args:
        may_be_empty: nothing there is no error.
        hidden: also names that begin with `_` or `.`; they are passed over inside folders otherwise.
        tagged: with ETags, also where each takes a request.

    Raises:
        DataError: nothing is there, or it may not be read.
    """
    filesystem, inside = resolve(pattern)
    with storage_errors(pattern):
        info = filesystem.get_file_info(inside)
        if info.type == fs.FileType.Directory:
            found = _below(filesystem, inside, hidden)
        elif info.type == fs.FileType.NotFound:
            found = _glob(filesystem, inside) if any(sign in inside for sign in WILDCARDS) else []
            found += [one for folder in _folders(found, inside) for one in _below(filesystem, folder, hidden)]
            found = list({one.path: one for one in found}.values())
        else:
            found = [info]
        found = [one for one in found if one.type == fs.FileType.File]
        etags = etags_of(filesystem, [one.path for one in found], ask=tagged)
    files = [
        FileStat(_uri(pattern, inside, one.path), one.size, one.mtime_ns or 0, etag)
        for one, etag in zip(found, etags, strict=True)
    ]
    if not files and not may_be_empty:
        raise DataError(f"{pattern}: no such file, folder or match; check the path")
    return sorted(files, key=lambda file: file.path)


def _below(filesystem: fs.FileSystem, folder: str, hidden: bool) -> list[fs.FileInfo]:
    below = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    return [one for one in below if hidden or not is_hidden(one.path[len(folder) :])]


def _folders(found: list[fs.FileInfo], pattern: str) -> list[str]:
    """Folders that a glob matches; hidden ones only where it spells the first letter of their names."""
    any_name = pattern.rstrip("/").rpartition("/")[2].startswith(tuple(WILDCARDS))
    folders = [one.path.rstrip("/") for one in found if one.type == fs.FileType.Directory]
    return [path for path in folders if not (any_name and is_hidden(path.rpartition("/")[2]))]


def _glob(filesystem: fs.FileSystem, pattern: str) -> list[fs.FileInfo]:
    if isinstance(filesystem, fs.LocalFileSystem):
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        return list(filesystem.get_file_info(names))
    parent = pattern[: min(pattern.index(sign) for sign in WILDCARDS if sign in pattern)].rpartition("/")[0]
    rest = pattern[len(parent) + 1 :]
    deep = "/" in rest or "**" in rest
    below = filesystem.get_file_info(fs.FileSelector(parent, recursive=deep, allow_not_found=True))
    matches = re.compile(glob_translate(pattern)).match
    return [one for one in below if matches(one.path) and "/." not in one.path[len(parent) :]]


def _uri(pattern: str, inside: str, path: str) -> str:
    """The URI of a path inside the filesystem of a pattern; what comes before the path in the URI is kept."""
    if is_local(pattern):
        return path
    inside = inside.rstrip("/")
    if path.startswith(inside):
        return pattern.rstrip("/") + path[len(inside) :]
    return pattern.partition("://")[0] + "://" + path  # of a glob


def entries(path: str) -> list[str]:
    """Names of what lies directly below a folder, sorted; none if it is not there."""
    return sorted(one.base_name for one in _directly_below(path))


def list_dir(path: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none if it is not there."""
    return sorted(one.base_name for one in _directly_below(path) if one.type == fs.FileType.Directory)


def _directly_below(path: str) -> list[fs.FileInfo]:
    filesystem, inside = resolve(path)
    with storage_errors(path):
        return list(filesystem.get_file_info(fs.FileSelector(inside, recursive=False, allow_not_found=True)))


def read_bytes(path: str) -> bytes:
    """A whole file."""
    filesystem, inside = resolve(path)
    with storage_errors(path), filesystem.open_input_stream(inside) as stream:
        return bytes(stream.read())


def write_bytes(path: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part; its folder is made.

    A local file is written beside its name, brought to disk and renamed; object stores do as much by themselves.
    """
    filesystem, inside = resolve(path)
    with storage_errors(path):
        if isinstance(filesystem, fs.LocalFileSystem):
            _replace(Path(inside), data)
        elif hasattr(getattr(filesystem, "handler", None), "put_object"):
            filesystem.handler.put_object(inside, bytes(data))  # an Arrow buffer is no body for botocore
        else:
            with filesystem.open_output_stream(inside) as stream:
                stream.write(data)


def write_file(path: str, local: str) -> None:
    """Write what a local file holds, as `write_bytes` does, without holding it in memory."""
    filesystem, inside = resolve(path)
    handler = getattr(filesystem, "handler", None)
    with storage_errors(path), pa.memory_map(local) as source:
        if handler is not None and hasattr(handler, "put_file"):
            handler.put_file(inside, local)
        elif isinstance(filesystem, fs.LocalFileSystem):
            _replace(Path(inside), source.read_buffer())
        else:
            with filesystem.open_output_stream(inside) as stream:
                while piece := source.read_buffer(COPY_BYTES):
                    stream.write(piece)


def _replace(final: Path, data: bytes | pa.Buffer) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.with_name(f".{final.name}.partial-{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(final)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a loss of power
    finally:
        os.close(folder)


def read_json(path: str) -> Any:
    """A JSON file."""
    return json.loads(read_bytes(path))


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, indented, as `write_bytes` does."""
    write_bytes(path, json.dumps(value, indent=2, default=str).encode())


def make_dir(path: str) -> None:
    """Create a folder and its parents; object stores have none to create."""
    filesystem, inside = resolve(path)
    with storage_errors(path):
        filesystem.create_dir(inside, recursive=True)


def delete_file(path: str) -> None:
    """Remove a file, if it is there."""
    filesystem, inside = resolve(path)
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inside)


def remove_tree(path: str) -> None:
    """Remove a folder and all below it, if it is there."""
    filesystem, inside = resolve(path)
    with storage_errors(path):
        if filesystem.get_file_info(inside).type == fs.FileType.Directory:
            filesystem.delete_dir(inside)


def is_hidden(relative: str) -> bool:
    """Whether `list_files` passes over a path below the folder that it lists."""
    return any(part.startswith(("_", ".")) for part in relative.strip("/").split("/"))
