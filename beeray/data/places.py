"""Where what is written may be put: not into a folder that is read, and a store only into a folder of its own.

A store takes the place of what is there, tables in it included, and what lies in a table's folder is read as table.
"""

from __future__ import annotations

import os
import re
from typing import Any

from beeray.config.credentials import shown_uri
from beeray.data.domains import Domain
from beeray.data.storage import WILDCARDS, entries, exists, is_hidden, is_local, join, list_dir, resolve
from beeray.data.store import META
from beeray.errors import ConfigError

CONTENTS = {META, "catalog", "users", "tokens", "known_tokens", "scratch"}
"""What lies in a store, its token stores included."""
PARTS = re.compile(r"part-[^/]+\.parquet")
"""What lies in a store's `catalog` and `users`."""
HARMLESS = re.compile(r"\.nfs.*|\.DS_Store|\._.*|\.gitignore|\.gitkeep|\.beeray-doctor-.*")
"""Hidden files that systems, and the doctor's probes, leave in any folder."""


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
    found, folders = entries(path), set(list_dir(path))
    others = [name for name in found if name not in CONTENTS and (name in folders or not HARMLESS.fullmatch(name))]
    for name in {"catalog", "users"}.intersection(found) if META not in found else ():
        others += [f"{name}/{one}" for one in entries(join(path, name)) if not _is_part(one)]
    if others:
        raise ConfigError(
            f"data.store: {shown_uri(path)} holds {others[0]!r}, which is no part of a store, and a store takes the "
            "place of what is there; give a folder of its own"
        )


def _is_part(name: str) -> bool:
    return bool(PARTS.fullmatch(name) or HARMLESS.fullmatch(name))


def refuse_replacing(path: str, source: Any, label: str) -> None:
    """Refuse a store in the place of a folder that a table lies in: it would be removed.

    Args:
        source: of the table, a path or glob; what is no path lies nowhere.
        label: how errors call the table.

    Raises:
        ConfigError: it lies there.
    """
    if not isinstance(source, str):
        return
    inner = _fixed_beginning(source)
    outer, real = _real_path(path), _real_path(inner) if inner else ""
    if real == outer or real.startswith(f"{outer}/"):
        raise ConfigError(
            f"data.store: {shown_uri(path)} is the folder that {shown_uri(source)} lies in, which is read as {label}, "
            "and a store takes the place of what is there; give a folder of its own"
        )


def _fixed_beginning(source: str) -> str:
    """A path, or the folder in which all that a glob matches lies."""
    signs = [source.index(sign) for sign in WILDCARDS if sign in source]
    return source[: min(signs)].rpartition("/")[0] if signs and not exists(source) else source


def refuse_reading_itself(path: str, domain: Domain) -> None:
    """Refuse a store in a folder that a table is read from: what is being written would be read as table.

    Raises:
        ConfigError: it is there, or a table lies in the store's own folder.
    """
    for table in (domain.raw.catalog, domain.raw.interactions):
        if isinstance(table.source, str) and lies_inside(path, table.source):
            raise ConfigError(
                f"data.store: {shown_uri(path)} lies inside {shown_uri(table.source)}, which is read as {table.label}; "
                "give a folder beside it, or name the table's files with a glob"
            )
        refuse_replacing(path, table.source, table.label)
