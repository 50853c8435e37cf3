"""Paths on any filesystem, and folders that appear whole or not at all.

A path is local, or a URI that pyarrow or fsspec reads (`s3://`, `gs://`, `abfs://` …).
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from beeray.errors import DataError


@dataclass(frozen=True)
class FileStat:
    """A file (path or URI) and what tells whether it changed."""

    path: str
    size: int
    modified_ns: int


def is_local(path: str) -> bool:
    """Whether a path is on this machine's disk."""
    return "://" not in path or path.startswith("file://")


def resolve(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path, and the path inside it.

    Raises:
        DataError: no filesystem for that kind of URI is installed.
    """
    if is_local(path):
        return fs.LocalFileSystem(), str(Path(path.removeprefix("file://")).absolute())
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


def join(path: str, *names: str) -> str:
    """A path below another."""
    return "/".join([path.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inside = resolve(path)
    return bool(filesystem.get_file_info(inside).type != fs.FileType.NotFound)


def list_files(pattern: str, *, may_be_empty: bool = False) -> list[FileStat]:
    """Files of a path: itself, everything below a folder, or what a glob matches; sorted by path.

    Names that begin with `_` or `.` are passed over inside folders.

    Raises:
        DataError: nothing is there.
    """
    filesystem, inside = resolve(pattern)
    literal = filesystem.get_file_info(inside).type != fs.FileType.NotFound
    if not literal and any(sign in inside for sign in "*?["):
        if isinstance(filesystem, fs.LocalFileSystem):
            found = [filesystem.get_file_info(name) for name in sorted(glob.glob(inside, recursive=True))]  # noqa: PTH207
        else:
            parent = inside[: min(inside.index(sign) for sign in "*?[" if sign in inside)].rpartition("/")[0]
            below = filesystem.get_file_info(fs.FileSelector(parent, recursive=True))
            found = [info for info in below if Path(info.path).match(inside)]
    else:
        info = filesystem.get_file_info(inside)
        if info.type == fs.FileType.Directory:
            below = filesystem.get_file_info(fs.FileSelector(inside, recursive=True))
            found = [one for one in below if not _is_hidden(one.path[len(inside) :])]
        else:
            found = [] if info.type == fs.FileType.NotFound else [info]
    files = [
        FileStat(_uri(pattern, inside, one.path), one.size, one.mtime_ns or 0)
        for one in found
        if one.type == fs.FileType.File
    ]
    if not files and not may_be_empty:
        raise DataError(f"{pattern}: no such file, folder or match; check the path")
    return sorted(files, key=lambda file: file.path)


def _uri(pattern: str, inside: str, path: str) -> str:
    """The URI of a path inside the filesystem of a pattern; what comes before the path in the URI is kept."""
    if is_local(pattern):
        return path
    inside = inside.rstrip("/")
    if path.startswith(inside):
        return pattern.rstrip("/") + path[len(inside) :]
    return pattern.partition("://")[0] + "://" + path  # of a glob


def read_json(path: str) -> Any:
    """A JSON file."""
    filesystem, inside = resolve(path)
    with filesystem.open_input_stream(inside) as stream:
        return json.loads(stream.read())


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, indented."""
    filesystem, inside = resolve(path)
    with filesystem.open_output_stream(inside) as stream:
        stream.write(json.dumps(value, indent=2, default=str).encode())


def make_dir(path: str) -> None:
    """Create a folder and its parents."""
    filesystem, inside = resolve(path)
    filesystem.create_dir(inside, recursive=True)


def remove_tree(path: str) -> None:
    """Remove a folder and all below it, if it is there."""
    filesystem, inside = resolve(path)
    if filesystem.get_file_info(inside).type == fs.FileType.Directory:
        filesystem.delete_dir(inside)


class Staging:
    """A folder written beside its final name and put there when whole; removed on error.

    On a local disk it is renamed. Object stores have no rename: there its files are copied, `marker`,
    without which readers take the folder for missing, last.

    Args:
        final: the folder's final path.
        marker: file that makes the folder whole.
    """

    def __init__(self, final: str, marker: str = "meta.json") -> None:
        self.final = final
        self.marker = marker
        self.local = is_local(final)
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self.path = f"{final.rstrip('/')}.partial-{self._owner}-{uuid4().hex[:8]}"
        if self.local:
            self._final = Path(resolve(final)[1])
            self.path = str(self._final.with_name(self.path.rstrip("/").rpartition("/")[2]))

    def __enter__(self) -> Staging:
        if self.local:
            self._sweep()
        make_dir(self.path)
        return self

    def publish(self) -> None:
        """Give the folder its final name in place of an older one of that name."""
        if not self.local:
            self._copy()
            return
        replaced = self._final.with_name(f"{self._final.name}.replaced-{self._owner}-{uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            self._final.rename(replaced)
        Path(self.path).rename(self._final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _copy(self) -> None:
        filesystem, source = resolve(self.path)
        _, target = resolve(self.final)
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{target}/{self.marker}")
        remove_tree(self.final)
        names = [resolve(file.path)[1][len(source) + 1 :] for file in list_files(self.path)]
        for name in sorted(names, key=lambda name: name == self.marker):
            filesystem.create_dir(f"{target}/{name}".rpartition("/")[0], recursive=True)
            filesystem.copy_file(f"{source}/{name}", f"{target}/{name}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.local:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            remove_tree(self.path)

    def _sweep(self) -> None:
        """Remove what processes of this host that are gone left behind."""
        host = socket.gethostname()
        for kind in ("partial", "replaced"):
            for left in self._final.parent.glob(f"{self._final.name}.{kind}-{host}-*"):
                pid = left.name.removeprefix(f"{self._final.name}.{kind}-{host}-").partition("-")[0]
                if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                    if kind == "replaced" and not self._final.exists():
                        left.rename(self._final)  # it died between its two renames: the old one is still whole
                    else:
                        shutil.rmtree(left, ignore_errors=True)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.strip("/").split("/"))
