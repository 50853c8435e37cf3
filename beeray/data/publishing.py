"""Publishing embeddings: a job's own folder while it works, then one pointer that is replaced in one go.

Below the path of the publication:

    work/<digest>/job.json      what the job is; the folder goes when something is published
    work/<digest>/…             dealt texts, errors, reports, Ray Data's checkpoint
    versions/<version>/         parquet files are written here from the start; without `_manifest.json`
                                the folder is no publication
    latest                      replaced last (local: a rename; object store: one PUT)

A job is identified by what it computes from what, so the same command after a kill finds its folder and goes
on. What a job that will never be finished has encoded (its catalog has changed since) is reused by the next
one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beeray.config.credentials import shown_uri
from beeray.data.dealing import DEALT, ERRORS, SCATTERED
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import INDEXES, LATEST, THREADS, VERSIONS, Embeddings, read_latest
from beeray.data.manifest import MANIFEST, SCHEMA_VERSION, Manifest, PublishedFile, part_name
from beeray.data.reuse import EarlierRows
from beeray.data.storage import (
    delete_file,
    exists,
    join,
    list_dir,
    list_files,
    make_dir,
    read_bytes,
    remove_tree,
    write_bytes,
    write_json,
)
from beeray.data.tagged_file import read_tagged, write_tagged
from beeray.errors import ConfigError, EmbeddingsError, RunError

WORK, JOB, REPORTS, CHECKPOINT, PLAN = "work", "job.json", "reports", "checkpoint", "plan"
DIGEST_NAME, VERSION_NAME = re.compile(r"[0-9a-f]{16}"), re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}(\.\d+-[0-9a-f]{8})?")
"""What the folders of jobs and of versions are called."""
KEPT_UNFINISHED = 2


@dataclass(frozen=True)
class JobState:
    """What `job.json` says.

    Attributes:
        digest: of everything that decides what the job publishes.
        version: name of the publication to be.
        num_ranges: ranges of id hashes, and so files.
        num_groups: groups that the catalog is dealt to first.
        encoding_digest: what vectors of this job can be reused for.
        format: of the vectors; an int8 scale may be missing at first.
        dealt: what the finished dealing counted (`Dealt`); None until then.
    """

    digest: str
    version: str
    num_ranges: int
    num_groups: int
    encoding_digest: str
    format: EmbeddingFormat
    dealt: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION


class JobFolder:
    """The folders of one job.

    Args:
        path: of the publication.
        digest: of the job.
    """

    def __init__(self, path: str, digest: str) -> None:
        self.path, self.digest = path, digest
        self.work = join(path, WORK, digest)

    def state(self) -> JobState | None:
        """The state of a job that was begun before; None for a new one, or one that this beeray cannot read."""
        return _read_state(self.work)

    def save(self, state: JobState) -> None:
        """Keep the state, whole or not at all."""
        write_json(join(self.work, JOB), dataclasses.asdict(state))

    def target(self, version: str) -> str:
        """Folder of the parquet files."""
        return join(self.path, VERSIONS, version)

    def reports(self) -> list[dict[str, Any]]:
        """Reports of the finished units, one each, in the order of their ranges.

        A report that a loss of power left damaged is removed, and Ray Data's checkpoint with it, which would pass
        over its unit: what is not reported is done again, to the same file.
        """
        found: dict[int, dict[str, Any]] = {}
        files = sorted(list_files(join(self.work, REPORTS), may_be_empty=True), key=lambda one: one.modified_ns)
        with ThreadPoolExecutor(THREADS) as pool:
            for file, rows in zip(files, pool.map(_read_report, (file.path for file in files)), strict=True):
                if rows is None:
                    delete_file(file.path)
                    self.forget_checkpoint()
                else:
                    found.update({one["range"]: one for one in rows})  # of one that was done twice the last counts
        return [found[number] for number in sorted(found)]

    def forget_checkpoint(self) -> None:
        """Remove what Ray Data remembers of finished units; the reports remember them too."""
        remove_tree(join(self.work, CHECKPOINT))

    def unfinished(self) -> list[JobState]:
        """States of other jobs that stopped on the way."""
        states = [_read_state(join(self.path, WORK, name)) for name in list_dir(join(self.path, WORK))]
        return [state for state in states if state is not None and state.digest != self.digest]

    def earlier_rows(self, state: JobState) -> EarlierRows:
        """What a job that stopped has left, as it is now."""
        target = self.target(state.version)
        there = {file.path.rpartition("/")[2] for file in list_files(target, may_be_empty=True)}
        names = (part_name(number) for number in range(state.num_ranges))
        return EarlierRows(tuple(join(target, name) if name in there else None for name in names), published=False)

    def trim(self, unfinished: list[JobState]) -> list[JobState]:
        """Of jobs that stopped keep only vectors, and only of the last few; returns those."""
        published = set(published_versions(self.path))
        stopped = [state for state in unfinished if state.version not in published]
        kept = sorted(stopped, key=lambda state: state.version)[-KEPT_UNFINISHED:]
        for state in unfinished:
            work = join(self.path, WORK, state.digest)
            if state not in kept:
                if state in stopped:  # one that did publish was only killed before it cleaned up
                    remove_tree(self.target(state.version))
                remove_tree(work)  # last: without it nobody knows whose the other folder was
                continue
            for name in (DEALT, SCATTERED, REPORTS, CHECKPOINT, PLAN):
                remove_tree(join(work, name))
        return kept


def _read_report(path: str) -> list[dict[str, Any]] | None:
    data = read_bytes(path)
    try:
        return list(pq.read_table(pa.BufferReader(data)).to_pylist())
    except (pa.ArrowException, OSError):
        return None


def _read_state(work: str) -> JobState | None:
    marker = join(work, JOB)
    if not exists(marker):
        return None
    data = read_bytes(marker)
    try:
        record = json.loads(data)
        if record.get("schema_version") != SCHEMA_VERSION:
            return None
        record["format"] = EmbeddingFormat(**record["format"])
        return JobState(**record)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def publish_errors(work: str, target: str) -> list[PublishedFile]:
    """Copy a job's refused rows beside what it publishes."""
    files = list_files(join(work, ERRORS), may_be_empty=True)
    if files:
        make_dir(join(target, ERRORS))
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda file: _copy_errors(file.path, target), files))


def _copy_errors(path: str, target: str) -> PublishedFile:
    data = read_bytes(path)
    name = join(ERRORS, path.rpartition("/")[2])
    write_bytes(join(target, name), data)
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    return PublishedFile(name, rows, len(data), hashlib.sha256(data).hexdigest())


def published_versions(path: str) -> list[str]:
    """Versions that readers have seen and that are still there, newest first: `latest` and what it followed.

    A version may have a manifest and be none of them: its job was killed just before it moved the pointer.
    """
    found: list[str] = []
    version = pointed_version(path)
    try:
        while version is not None and version not in found and exists(join(path, VERSIONS, version, MANIFEST)):
            found.append(version)
            manifest = join(path, VERSIONS, version, MANIFEST)
            version = Manifest.from_json(read_bytes(manifest), manifest).previous
    except EmbeddingsError:  # a damaged link: what came before it cannot be told
        pass
    return found


def pointed_version(path: str) -> str | None:
    """The version that `latest` names; None: nothing is published, or the pointer is damaged."""
    try:
        pointed = read_latest(path)
    except EmbeddingsError:
        return None
    return pointed["version"] if pointed else None


def pointer_digest(path: str) -> str | None:
    """What tells whether `latest` is still the one that it was, damaged or not; None: there is none."""
    return _digest(read_tagged(join(path, LATEST)))


def _digest(found: tuple[bytes, str] | None) -> str | None:
    return hashlib.sha256(found[0]).hexdigest() if found is not None else None


def publish(path: str, manifest: Manifest, follows: str | None) -> None:
    """Make a whole version the current one: its manifest, then the pointer.

    Args:
        follows: `pointer_digest` when the job was planned.

    Raises:
        EmbeddingsError: a file of the version is not there.
        RunError: another job published since this one was planned.
    """
    Embeddings(path, manifest).verify("sizes")
    place = join(path, LATEST)
    meanwhile = RunError(
        f"{place}: is not what it was when this job was planned, to follow {manifest.previous}; another job published "
        "meanwhile; run the same command again"
    )
    found = read_tagged(place)
    if _digest(found) != follows:
        raise meanwhile
    folder = join(path, VERSIONS, manifest.version)
    for file in list_files(folder, may_be_empty=True, hidden=True):
        if ".partial-" in file.path.rpartition("/")[2]:  # of a machine that went away while it wrote
            delete_file(file.path)
    data = manifest.to_json()
    write_bytes(join(folder, MANIFEST), data)
    pointer = {"version": manifest.version, "manifest_sha256": hashlib.sha256(data).hexdigest()}
    content = json.dumps(pointer).encode()
    write_tagged(place, content, None if found is None else found[1])
    if read_bytes(place) != content:
        raise meanwhile


def check_place(path: str) -> None:
    """Refuse a first publication where `work` or `versions` are somebody's own: jobs clean up in them.

    Raises:
        ConfigError: they hold what no job has made.
    """
    if exists(join(path, LATEST)):
        return
    for folder, ours in ((WORK, DIGEST_NAME), (VERSIONS, VERSION_NAME)):
        others = [name for name in list_dir(join(path, folder)) if not ours.fullmatch(name)]
        if others:
            raise ConfigError(
                f"embed.path: {shown_uri(path)} has {folder}/{others[0]}, which no embedding job has made, and jobs "
                f"clean up in {folder}/; give a folder of its own"
            )


def clean_up(path: str, keep_versions: int, jobs: Sequence[JobState]) -> None:
    """Remove what jobs left, and all but the newest publications with their indexes.

    What belongs to no publication and to no job goes too: a kill between two removals leaves it. So does a whole
    version of a job that was killed before it moved the pointer, since no reader has seen it.

    Args:
        jobs: the one that published, and those that had stopped when it began; others may be at work.
    """
    published = published_versions(path)
    for job in jobs:
        if job.version not in published:
            remove_tree(join(path, VERSIONS, job.version))
        remove_tree(join(path, WORK, job.digest))
    at_work: set[str] = set()
    for name in list_dir(join(path, WORK)):
        state = _read_state(join(path, WORK, name))
        if state is None:
            remove_tree(join(path, WORK, name))
        else:
            at_work.add(state.version)
    if not list_dir(join(path, WORK)):
        remove_tree(join(path, WORK))
    names = sorted(set(list_dir(join(path, VERSIONS))) - at_work)
    whole = [name for name in names if exists(join(path, VERSIONS, name, MANIFEST))]
    gone = set(names) - set(whole[-keep_versions:]) - set(published[:1])
    for name in list_dir(join(path, INDEXES)):
        if any(name.startswith(f"{version}-") for version in gone):  # others are somebody's own
            remove_tree(join(path, INDEXES, name))
    for name in gone:
        remove_tree(join(path, VERSIONS, name))
