"""Storage from where the work is done: a probe file of every node, read by all the others, and removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from beeray.config import Config
from beeray.config.paths import from_root
from beeray.data.storage import delete_file, exists, is_local, join, local_path, read_bytes, write_bytes
from beeray.data.store import META
from beeray.errors import BeerayError
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding
from beeray.runtime.job_folder import what_goes_with_the_job
from beeray.runtime.locks import locked_file

PROBE = ".beeray-doctor"
"""What the names of probe files begin with."""
LOGS = "logs"
"""Folder in `runs_dir` where runs have their locks (`runtime/run_folder.py`)."""


@dataclass(frozen=True)
class Place:
    """A folder that a run writes to.

    Attributes:
        key: of the config.
        path: as configured, absolute.
        folder: where probes are written: itself, or of a local path the nearest parent that is there, so that no folder
            needs to be made.
        must_be_written: an error when it cannot be; otherwise a warning.
        locks: folder of the files that the command locks, so that no two work on one run (or again the nearest parent
            that is there); empty where it locks none.
    """

    key: str
    path: str
    folder: str
    must_be_written: bool = True
    locks: str = ""


class Reach(Protocol):
    """A process that reads and writes: this one, or one on a node."""

    @property
    def name(self) -> str:
        """As errors call it."""
        ...

    def call(self, work: Callable[..., str], *arguments: str) -> Callable[[], str]:
        """Begin some work there; the result waits for it, and is an error of one line or empty."""
        ...


def places_of(config: Config) -> list[Place]:
    """Where a run of this config writes: its folder, the store, and embeddings if they have a path of their own.

    Without interactions there is no store: such a config is for embedding alone.
    """
    runs = str(from_root(config.runs_dir))
    places = [Place("runs_dir", runs, nearest_folder(runs), locks=nearest_folder(join(runs, LOGS)))]
    if config.data.source != "tables" or config.data.interactions is not None:
        prepared = exists(join(config.store_path, META))
        nearest = nearest_folder(config.store_path)
        places.append(Place("data.store", config.store_path, nearest, must_be_written=not prepared))
    if config.embed.path is not None:
        path = config.embeddings_path
        places.append(Place("embed.path", path, nearest_folder(path), must_be_written=False))
    return places


def nearest_folder(path: str) -> str:
    """Of a local path the nearest folder that is there; any other path itself: object stores need none made."""
    if not is_local(path):
        return path
    folder = local_path(path)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return str(folder)


def free_bytes(folder: str) -> int:
    """Free bytes of the disk of a local folder."""
    return shutil.disk_usage(folder).free


def write_probe(folder: str, name: str) -> str:
    """Write a probe and read it back; returns what went wrong, or nothing."""
    path = join(folder, name)
    if is_local(folder) and not Path(folder).is_dir():
        return f"{folder} is not there"
    try:
        write_bytes(path, name.encode())
        return "" if read_bytes(path) == name.encode() else f"{path} reads back otherwise than it was written"
    except (BeerayError, OSError) as error:
        return str(error)


def read_probes(folder: str, *names: str) -> str:
    """Read the others' probes; returns which cannot be seen, or nothing."""
    missing: list[str] = []
    for name in names:
        try:
            if read_bytes(join(folder, name)) != name.encode():
                missing.append(name)
        except (BeerayError, OSError):
            missing.append(name)
    return ",".join(missing)


def lock_probe(folder: str, name: str) -> str:
    """Lock a probe as a run locks its file, and give it free; returns what went wrong, or nothing."""
    try:
        with locked_file(Path(folder) / name, f"{name} is locked by another", "try again"):
            return ""
    except (BeerayError, OSError) as error:
        return str(error)


def remove_probe(folder: str, name: str) -> str:
    """Remove a probe, if it is there."""
    with suppress(BeerayError, OSError):
        delete_file(join(folder, name))
    return ""


def check_places(config: Config, reaches: Sequence[Reach]) -> Finding:
    """Whether all that a run of this config writes outlives the job that it is, if it is one; then `check_storage`."""
    places = places_of(config)
    trouble = what_goes_with_the_job(config, *(place.key for place in places))
    return Finding(FAILED, trouble) if trouble else check_storage(places, reaches)


def check_storage(places: Sequence[Place], reaches: Sequence[Reach]) -> Finding:
    """Have every process write a probe to every place; the first reads them all, and all others read the first's.

    The first, which is the command, also takes a lock where a run does.

    Args:
        reaches: this process and one on each node.
    """
    token = f"{PROBE}-{os.getpid()}-{uuid4().hex[:8]}"
    warnings: list[str] = []
    for place in places:
        probes = {f"{token}-{number}": reach for number, reach in enumerate(reaches)}
        try:
            trouble = _probe(place, probes) or _lock(place, reaches[0], token)
        finally:
            for removed in [reach.call(remove_probe, place.folder, name) for name, reach in probes.items()]:
                removed()
        if trouble and place.must_be_written:
            return Finding(FAILED, trouble, {"key": place.key})
        if trouble:
            warnings.append(trouble)
    if warnings:
        return Finding(WARNING, "; ".join(warnings))
    told = ", ".join(f"{place.key} {place.path}" for place in places)
    by = f"{len(reaches) - 1} nodes" if len(reaches) > 2 else "the command and a worker"
    return Finding(OK, f"written and read by {by}: {told}")


def _probe(place: Place, probes: Mapping[str, Reach]) -> str:
    """What is wrong with a place, with what to do; empty when nothing is."""
    written = {name: reach.call(write_probe, place.folder, name) for name, reach in probes.items()}
    for name, result in written.items():
        error = result()
        if error:
            return _cannot_write(place, probes[name].name, error)
    first, *others = probes.items()
    readings = [(first[1], first[1].call(read_probes, place.folder, *probes))]
    readings += [(reach, reach.call(read_probes, place.folder, first[0])) for _, reach in others]
    for reach, result in readings:
        unseen = result()
        if unseen:
            other = probes[unseen.split(",")[0]].name
            return (
                f"{place.key} {place.path!r}: what {other} writes there is not seen by {reach.name}, so the folder is "
                f"not shared; give {place.key} a folder on a disk that all nodes mount"
                + (" (or an s3:// path)" if place.key != "runs_dir" else "")
            )
    return ""


def _lock(place: Place, reach: Reach, token: str) -> str:
    """Why files cannot be locked where the command does so; empty when they can or none are."""
    if not place.locks:
        return ""
    name = f"{token}-lock"
    try:
        error = reach.call(lock_probe, place.locks, name)()
    finally:
        reach.call(remove_probe, place.locks, name)()
    return error and f"{place.key} {place.path!r}: {error}"


def _cannot_write(place: Place, who: str, error: str) -> str:
    remedy = f"give {who} the right to write there, or set {place.key} to a folder that every node can write to"
    if not place.must_be_written and place.key == "data.store":
        remedy = "it can be read, but tokens of another encoder cannot be added; give the right to write for that"
    return f"{place.key} {place.path!r}: {who} cannot write there ({error}); {remedy}"
