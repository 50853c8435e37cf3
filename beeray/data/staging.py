"""Folders, and files on a disk, that appear whole or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from beeray.data.process_identity import TAG, is_tag_of_gone, tag_of_this_process
from beeray.data.storage import (
    delete_file,
    is_local,
    join,
    list_dir,
    list_files,
    make_dir,
    remove_tree,
    resolve,
    storage_errors,
)
from beeray.errors import DataError

COPIES_AT_ONCE = 8
MAX_LINKS = 40
LEFT_FOR_S = 7 * 24 * 3600
"""How long what another machine writes to an object store may lie untouched before it counts as left behind."""


class Staging:
    """A folder written beside its final name and put there when whole; removed on error.

    On a local disk it is renamed. Object stores have no rename: there its files are copied, `marker`,
    without which readers take the folder for missing, last.

    Args:
        final: the folder's final path.
        marker: file that makes the folder whole.

    Raises:
        DataError: the filesystem refuses something.
    """

    def __init__(self, final: str, marker: str = "meta.json") -> None:
        self.final = final
        self.marker = marker
        self.local = is_local(final)
        if self.local:
            with storage_errors(final):
                self._final = _followed(Path(resolve(final)[1]))
        self.path = _beside(str(self._final) if self.local else final.rstrip("/"), "partial")

    def __enter__(self) -> Staging:
        if self.local:
            with storage_errors(self.final):
                _sweep(self._final)
        else:
            _sweep_store(self.final.rstrip("/"))
        make_dir(self.path)
        return self

    def publish(self) -> None:
        """Give the folder its final name in place of an older one of that name."""
        if not self.local:
            self._copy()
            return
        replaced = Path(_beside(str(self._final), "replaced"))
        with storage_errors(self.final):
            with contextlib.suppress(FileNotFoundError):
                self._final.rename(replaced)
            Path(self.path).rename(self._final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _copy(self) -> None:
        filesystem, source = resolve(self.path)
        _, target = resolve(self.final)
        delete_file(join(self.final, self.marker))
        remove_tree(self.final)
        files = list_files(self.path, may_be_empty=True, hidden=True)
        names = {resolve(file.path)[1][len(source) + 1 :] for file in files}

        def copy(name: str) -> None:
            filesystem.create_dir(f"{target}/{name}".rpartition("/")[0], recursive=True)
            filesystem.copy_file(f"{source}/{name}", f"{target}/{name}")

        with storage_errors(self.final):
            with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
                list(pool.map(copy, sorted(names - {self.marker})))
            if self.marker in names:
                copy(self.marker)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.local:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        try:
            remove_tree(self.path)
        except Exception:
            if error is None:
                raise  # otherwise what stopped the writer is what counts


@contextlib.contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A name beside a file's final one, to write it under; it gets the final one when the context ends well.

    Nobody else has that name: of two that write the same file at once, each leaves a whole one, and the later stays. On
    an error nothing is left. What the filesystem refuses is an `OSError`, as of any file.
    """
    _sweep(final)
    partial = Path(_beside(str(final), "partial"))
    try:
        yield partial
        partial.rename(final)
    finally:
        partial.unlink(missing_ok=True)


def _followed(path: Path) -> Path:
    """What a path names if it is a link; folders above keep their names, which may be all that other nodes know."""
    for _ in range(MAX_LINKS):
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return path


def _beside(final: str, kind: str) -> str:
    return f"{final}.{kind}-{tag_of_this_process()}-{uuid4().hex[:8]}"


def _sweep_store(final: str) -> None:
    """Remove what was left half-written beside a folder of an object store: provably, or nothing was added for days.

    What cannot be listed or removed is left, and so is what has no time: it is not what this command is for.
    """
    parent, _, name = final.rpartition("/")
    theirs = re.compile(rf"{re.escape(name)}\.partial-({TAG})-[0-9a-f]{{8}}")
    with contextlib.suppress(DataError):
        for left, match in [(one, match) for one in list_dir(parent) if (match := theirs.fullmatch(one))]:
            files = list_files(join(parent, left), may_be_empty=True, hidden=True)
            times = [file.modified_ns / 1e9 for file in files]
            untouched = bool(times) and all(times) and time.time() - max(times) > LEFT_FOR_S
            if untouched or is_tag_of_gone(match[1]):
                remove_tree(join(parent, left))


def _sweep(final: Path) -> None:
    """Remove what processes of this machine that are gone left beside a folder or file."""
    theirs = re.compile(rf"{re.escape(final.name)}\.(partial|replaced)-({TAG})-[0-9a-f]{{8}}")
    beside = final.parent.iterdir() if final.parent.is_dir() else []
    for left, match in [(one, match) for one in sorted(beside) if (match := theirs.fullmatch(one.name))]:
        kind, writer = match.groups()
        if not is_tag_of_gone(writer):
            continue
        if kind == "replaced" and not final.exists():
            left.rename(final)  # it died between its two renames: the old one is still whole
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
