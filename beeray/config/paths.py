"""Paths as they are typed: where relative ones begin, and what looks like a place elsewhere and would be a folder."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from beeray.errors import ConfigError

URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")
"""How a URI begins, also one that lacks a slash."""


def mistyped(path: str) -> str:
    """What is wrong with a local path, and what to give; empty when nothing is."""
    scheme = None if "://" in path else URI.match(path)
    if scheme:
        return f"a URI has two slashes after its scheme; give {scheme[1]}://…"
    return "~ is not expanded; give the whole path" if path.startswith("~") else ""


ROOT = "BEERAY_ROOT"
"""Names a disk that all nodes mount, on every node of a cluster: a submitted job works in a copy of the checkout, which
goes with it, so `runs_dir: runs` would not outlive the job there."""


def root() -> Path:
    """The folder of `BEERAY_ROOT`; without it the working folder, as a relative path.

    Raises:
        ConfigError: the variable names no absolute path.
    """
    value = os.environ.get(ROOT, "")
    if value and not Path(value).is_absolute():
        raise ConfigError(
            f"{ROOT} is {value!r} in the environment: it must be an absolute path, the same on every node"
        )
    return Path(value)


def in_working_folder(path: str) -> str:
    """A path or URI that a command is to write to, as it was typed there: of no run, so `BEERAY_ROOT` has no say."""
    return path if "://" in path else str(Path(path).absolute())


def from_root(path: str | Path) -> Path:
    """A local path, absolute: a relative one begins at the folder of `BEERAY_ROOT`, else at the working folder.

    Raises:
        ConfigError: as `root`.
    """
    return (root() / path).absolute()


def placed(path: str) -> str:
    """A path or URI that a config has written to: a URI as it is, else as `from_root`."""
    return path if "://" in path else str(from_root(path))


def found(path: str | Path) -> Path:
    """The same for what is read: what is in the working folder comes first, as tables that a job brings along."""
    here, there = Path(path).absolute(), from_root(path)
    try:
        return here if here == there or here.exists() or _matches(str(here)) else there
    except OSError:  # as where this user may not look: whoever opens it says so
        return here


def _matches(pattern: str) -> bool:
    """Whether a path is a pattern of files that are there."""
    return glob.has_magic(pattern) and next(glob.iglob(pattern, recursive=True), None) is not None  # noqa: PTH207
