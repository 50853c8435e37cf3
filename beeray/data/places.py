"""Where what is written may be put: not into a folder that is read, and a store only into a folder of its own.

A store takes the place of what is there, and what lies in a table's folder is read as table.
"""

from __future__ import annotations

import os

from beeray.config.credentials import shown_uri
from beeray.data.domains import Domain
from beeray.data.storage import entries, is_hidden, is_local, resolve
from beeray.data.store import META
from beeray.errors import ConfigError

CONTENTS = {META, "catalog", "users", "tokens", "known_tokens", "scratch"}
"""What lies in a store, its token stores included."""


def lies_inside(written: str, read: str) -> bool:
    """Whether a path is a folder that is read, or lies in it where `list_files` looks; links are followed."""
    outer, inner = (_real_path(path) for path in (read, written))
    return inner == outer or (inner.startswith(f"{outer}/") and not is_hidden(inner[len(outer) :]))


def _real_path(path: str) -> str:
    inside = resolve(path)[1].rstrip("/")
    return os.path.realpath(inside) if is_local(path) else f"{path.partition('://')[0]}://{inside}"


def check_place(path: str) -> None:
    """Refuse to put a store in the place of what is none: it would be removed.

    Raises:
        ConfigError: the folder holds something else.
    """
    others = [name for name in entries(path) if name not in CONTENTS and not name.startswith(".")]
    if others:
        raise ConfigError(
            f"data.store: {shown_uri(path)} holds {others[0]!r}, which is no part of a store, and a store takes the "
            "place of what is there; give a folder of its own"
        )


def refuse_reading_itself(path: str, domain: Domain) -> None:
    """Refuse a store in a folder that a table is read from: what is being written would be read as table.

    Raises:
        ConfigError: it is there.
    """
    for table in (domain.raw.catalog, domain.raw.interactions):
        if isinstance(table.source, str) and lies_inside(path, table.source):
            raise ConfigError(
                f"data.store: {shown_uri(path)} lies inside {shown_uri(table.source)}, which is read as {table.label}; "
                "give a folder beside it, or name the table's files with a glob"
            )
