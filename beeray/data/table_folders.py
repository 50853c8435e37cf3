"""Folders that are no plain table, though all that is read of them is: parts that are missing, parts that are dead."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from beeray.config.credentials import shown_uri
from beeray.data.storage import WILDCARDS, exists, is_folder, is_hidden, is_local, join, local_path
from beeray.errors import DataError

LOGS = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}
"""What lies in a folder of which only the log knows which files still count."""


def check_folder(source: str, label: str) -> None:
    """Refuse what would be read without some of its rows, or with rows that are long gone.

    Args:
        source: path of a table: a file, a folder or a glob.
        label: how errors call the table.

    Raises:
        DataError: a link leads nowhere, so a part would be left out; or the folder is of a format whose log tells which
            of its files still count.
    """
    for name, kind in LOGS.items() if is_folder(source) else ():
        if exists(join(source, name)):
            raise DataError(
                f"{shown_uri(source)}: {label} is {kind} ({name}), of which files that were replaced lie there, too; "
                "export what it holds now as parquet, and name that"
            )
    broken = next(iter(sorted(_broken_links(str(local_path(source))))), None) if is_local(source) else None
    if broken is not None:
        raise DataError(
            f"{broken}: is a link to {os.readlink(broken)}, which is not there, so {label} would lack a part; fetch or "  # noqa: PTH115
            "mount what it links to, or remove the link"
        )


def _broken_links(path: str) -> list[str]:
    if Path(path).is_dir():
        return _below(path.rstrip("/"))
    found = glob.glob(path, recursive=True) if any(sign in path for sign in WILDCARDS) else []  # noqa: PTH207
    below = [link for one in found if Path(one).is_dir() for link in _below(one.rstrip("/"))]
    return [*filter(_is_broken, found), *below]


def _below(folder: str) -> list[str]:
    """Broken links anywhere below a folder, but for hidden names, which are passed over."""
    return [
        link
        for parent, _, names in os.walk(folder)
        if not is_hidden(parent[len(folder) :])
        for name in names
        if not is_hidden(f"/{name}") and _is_broken(link := f"{parent}/{name}")
    ]


def _is_broken(path: str) -> bool:
    return Path(path).is_symlink() and not Path(path).exists()
