"""What a run's folder keeps, read, written and copied whole or not at all, with one line where that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from beeray.data.storage import storage_errors, write_bytes
from beeray.errors import RunError


def read_record(path: Path, run: str) -> dict[str, Any] | None:
    """What a JSON file of a run says; None where it is not there.

    Raises:
        RunError: it is damaged.
        DataError: it cannot be read.
    """
    if not path.is_file():
        return None
    with storage_errors(str(path)):
        data = path.read_bytes()
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, run, str(error) if data else "empty") from None
    if not isinstance(record, dict):
        raise damaged(path, run, "no JSON object")
    return record


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all, also where another process writes the same one.

    Raises:
        DataError: the disk is full, or the folder may not be written.
    """
    write_bytes(str(path), text.encode())


def damaged(path: Path, run: str, reason: str) -> RunError:
    """The error of a run's file that does not say what it must."""
    return RunError(
        f"run {run!r}: {path} is damaged ({reason}); bring it back from a backup, choose another name=… or start over "
        "with --fresh"
    )


def copy_whole(source: Path, final: Path) -> None:
    """Copy a folder in place of one of that name, whole or not at all.

    Raises:
        DataError: the disk is full, or something else refuses it.
    """
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a crash
    try:
        with storage_errors(str(final)):
            _copy(source, partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:  # a list of every file, and why
        _, _, reason = error.args[0][0]
        raise OSError(reason) from error
