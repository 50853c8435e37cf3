"""Publishing in one go, a job's folder between two attempts, and what is left afterwards."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import VERSION, clustered, sha256, write_publication

from beeray.data import publishing
from beeray.data.dealing import DEALT, ERRORS, SCATTERED
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import open_embeddings, read_latest
from beeray.data.manifest import MANIFEST, Manifest, part_name
from beeray.data.parts import write_part
from beeray.data.publishing import (
    CHECKPOINT,
    JOB,
    PLAN,
    REPORTS,
    WORK,
    JobFolder,
    JobState,
    check_place,
    clean_up,
    pointer_digest,
    publish,
    publish_errors,
)
from beeray.data.quarantine import ERROR_SCHEMA
from beeray.errors import ConfigError, DataError, EmbeddingsError, RunError
from beeray.runtime.embedding_plan import _next_name

IDS = ["a", "b", "c", "d"]
VECTORS = clustered(4, 8)
LATER = "20260103T000000Z-1"
STATE = JobState(
    digest="d1",
    version=LATER,
    num_ranges=3,
    num_groups=2,
    encoding_digest="e1",
    format=EmbeddingFormat("int8", 8, True, 0.0123456789),
    dealt={
        "rows": 10,
        "errors": {"null_text": 2},
        "range_rows": [8, 0, 0],
        "item_id_type": "string",
        "group_bytes": [9, 0],
    },
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_publication(tmp_path / "published", IDS, VECTORS)


def unpublished(path: Path, tmp_path: Path, version: str = LATER, previous: str | None = VERSION) -> Manifest:
    """A whole version beside the current one, but for its manifest; returns that, as one that follows `previous`."""
    other = write_publication(tmp_path / f"other-{version}", ["x", "y"], VECTORS[:2], version=version)
    (other / "versions" / version / MANIFEST).rename(other / "manifest")
    (other / "versions" / version).rename(path / "versions" / version)
    return dataclasses.replace(Manifest.from_json((other / "manifest").read_bytes(), "x"), previous=previous)


def current(path: Path) -> list[str]:
    return open_embeddings(str(path)).table()["item_id"].to_pylist()


def versions(path: Path) -> list[str]:
    return sorted(one.name for one in (path / "versions").iterdir())


def test_readers_see_the_new_version_as_soon_as_it_is_published(path: Path, tmp_path: Path) -> None:
    manifest = unpublished(path, tmp_path)
    (path / "versions" / LATER / ".part-00001.parquet.partial-7-ab").write_bytes(b"x")  # of a machine that went away
    assert current(path) == IDS
    publish(str(path), manifest, pointer_digest(str(path)))
    assert current(path) == ["x", "y"]
    assert read_latest(str(path)) == {
        "version": LATER,
        "manifest_sha256": sha256(path / "versions" / LATER / MANIFEST),
    }
    assert open_embeddings(str(path), version=VERSION).table()["item_id"].to_pylist() == IDS
    assert [one for one in path.rglob("*") if "partial" in one.name] == []


@pytest.mark.parametrize("stranger", ["work/thesis", "versions/2024"])
def test_a_first_publication_is_not_put_where_cleaning_up_would_remove_what_is_somebodys(
    path: Path, tmp_path: Path, stranger: str
) -> None:
    ours = tmp_path / "new"
    for name in (
        "work/0123456789abcdef",
        "versions/20250101T000000Z-01234567",
        f"versions/{_next_name('20250101T000000Z-89abcdef', '01234567' * 2)}",
    ):
        (ours / name).mkdir(parents=True)
    check_place(str(ours))
    (ours / stranger).mkdir()
    with pytest.raises(ConfigError, match=rf"^embed\.path: .*/new has {stranger}, which no embedding job has made"):
        check_place(str(ours))
    (path / stranger).mkdir(parents=True)
    check_place(str(path))  # where something was published, jobs have cleaned up already


def test_a_first_version_is_published_where_there_was_none(tmp_path: Path) -> None:
    (tmp_path / "new" / "versions").mkdir(parents=True)
    publish(str(tmp_path / "new"), unpublished(tmp_path / "new", tmp_path, previous=None), follows=None)
    assert current(tmp_path / "new") == ["x", "y"]


def test_when_the_manifest_cannot_be_written_readers_still_see_the_old_version(path: Path, tmp_path: Path) -> None:
    manifest = unpublished(path, tmp_path)
    pointer = (path / "latest").read_bytes()
    blocked = path / "versions" / LATER / MANIFEST
    blocked.mkdir()  # no file can be put there
    with pytest.raises(DataError, match="cannot be read or written"):
        publish(str(path), manifest, pointer_digest(str(path)))
    assert (path / "latest").read_bytes() == pointer
    assert current(path) == IDS
    blocked.rmdir()
    publish(str(path), manifest, pointer_digest(str(path)))
    assert current(path) == ["x", "y"]


def test_a_version_whose_pointer_was_not_written_is_whole_but_not_current(path: Path, tmp_path: Path) -> None:
    manifest = unpublished(path, tmp_path)
    pointer = (path / "latest").read_bytes()
    publish(str(path), manifest, pointer_digest(str(path)))
    (path / "latest").write_bytes(pointer)  # what a kill between manifest and pointer leaves
    assert current(path) == IDS
    assert open_embeddings(str(path), version=LATER).num_rows == 2
    publish(str(path), manifest, pointer_digest(str(path)))
    assert current(path) == ["x", "y"]


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "emptied"])
def test_a_version_whose_files_are_not_as_they_were_reported_is_not_published(
    path: Path, tmp_path: Path, change: str
) -> None:
    manifest = unpublished(path, tmp_path)
    file = path / "versions" / LATER / manifest.files[-1].path
    data = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes({"shorter": data[:-1], "longer": data + b"x", "emptied": b""}[change])
    with pytest.raises(EmbeddingsError, match=r"the manifest (lists it|says)"):
        publish(str(path), manifest, pointer_digest(str(path)))
    assert current(path) == IDS
    assert not (path / "versions" / LATER / MANIFEST).exists()
    file.write_bytes(data)
    publish(str(path), manifest, pointer_digest(str(path)))
    assert current(path) == ["x", "y"]


@pytest.mark.parametrize("follows", [None, "0" * 64])
def test_what_another_job_published_meanwhile_is_not_passed_over(
    path: Path, tmp_path: Path, follows: str | None
) -> None:
    manifest = unpublished(path, tmp_path)
    pointer = (path / "latest").read_bytes()
    with pytest.raises(RunError, match=f"to follow {VERSION}; another job published meanwhile; run the same"):
        publish(str(path), manifest, follows)
    assert (path / "latest").read_bytes() == pointer


def test_of_two_jobs_that_follow_the_same_version_the_second_is_refused(path: Path, tmp_path: Path) -> None:
    first, second = unpublished(path, tmp_path), unpublished(path, tmp_path, "20260104T000000Z-1")
    follows = pointer_digest(str(path))
    publish(str(path), second, follows)
    with pytest.raises(RunError, match="another job published meanwhile"):
        publish(str(path), first, follows)
    assert open_embeddings(str(path)).version == second.version
    (path / "latest").unlink()
    with pytest.raises(RunError, match="another job published meanwhile"):
        publish(str(path), first, follows)


@pytest.mark.parametrize("pointer", [b"", b"{", b"\xff\xfe", b'{"version": "gone", "manifest_sha256": "0"}'])
def test_a_damaged_pointer_is_published_over(path: Path, tmp_path: Path, pointer: bytes) -> None:
    (path / "latest").write_bytes(pointer)
    follows = pointer_digest(str(path))
    publish(str(path), unpublished(path, tmp_path), follows)
    assert current(path) == ["x", "y"]
    clean_up(str(path), 2, [])
    assert versions(path) == [VERSION, LATER]


def add_versions(path: Path, *names: str) -> None:
    for name in names:
        write_publication(path, IDS, VECTORS, version=name)


def test_as_many_versions_are_kept_as_asked_for_the_newest_ones(path: Path) -> None:
    clean_up(str(path), 3, [])
    assert versions(path) == [VERSION]
    add_versions(path, "20260103", "20260104", "20260105")
    for _ in range(2):
        clean_up(str(path), 3, [])
        assert versions(path) == ["20260103", "20260104", "20260105"]
    (path / "versions" / "20260109").mkdir()  # half-written and nobody's: goes, does not count
    clean_up(str(path), 2, [])
    assert versions(path) == ["20260104", "20260105"]
    assert current(path) == IDS


def test_what_the_pointer_names_is_kept_though_newer_ones_are_there(path: Path) -> None:
    pointer = (path / "latest").read_bytes()
    add_versions(path, "20260103", "20260104", "20260105")
    (path / "latest").write_bytes(pointer)  # someone has gone back to the first
    clean_up(str(path), 2, [])
    assert versions(path) == [VERSION, "20260104", "20260105"]
    assert open_embeddings(str(path)).version == VERSION


def job(path: Path, digest: str, version: str) -> JobState:
    """A job that has stopped after its second unit."""
    state = dataclasses.replace(STATE, digest=digest, version=version)
    folder = JobFolder(str(path), digest)
    folder.save(state)
    for name in (DEALT, SCATTERED, REPORTS, CHECKPOINT, PLAN, ERRORS):
        (Path(folder.work) / name).mkdir()
        (Path(folder.work) / name / "file").write_bytes(b"x")
    Path(folder.target(version)).mkdir(parents=True)
    for number in range(2):
        (Path(folder.target(version)) / part_name(number)).write_bytes(b"x")
    return state


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_jobs_that_are_named_go_and_others_at_work_are_left_alone(path: Path) -> None:
    done = dataclasses.replace(STATE, digest="done", version=VERSION)
    JobFolder(str(path), "done").save(done)
    before = tree(path / "versions" / VERSION)
    stopped, at_work = job(path, "stopped", "20260103"), job(path, "at-work", "20260104")
    (path / "versions" / "20260110").mkdir()  # of a job that nobody knows
    others = tree(path / WORK / "at-work"), tree(path / "versions" / at_work.version)
    clean_up(str(path), 1, [done, stopped])
    assert [one.name for one in (path / WORK).iterdir()] == ["at-work"]
    assert versions(path) == [VERSION, "20260104"]
    assert (tree(path / WORK / "at-work"), tree(path / "versions" / "20260104")) == others
    assert tree(path / "versions" / VERSION) == before
    clean_up(str(path), 1, [at_work])
    assert versions(path) == [VERSION]
    assert current(path) == IDS


def test_indexes_go_with_their_versions_and_other_folders_stay(path: Path) -> None:
    add_versions(path, "20260103T000000Z-1", "20260104T000000Z-1")
    names = [f"{VERSION}-flat", "20260103T000000Z-1-ivf_pq", "20260104T000000Z-1-hnsw", "mine", "20260103T000000Z-old"]
    for name in names:
        (path / "indexes" / name).mkdir(parents=True)
        (path / "indexes" / name / "index.faiss").write_bytes(b"x")
    clean_up(str(path), 2, [])
    assert tree(path / "indexes").keys() == {f"{name}/index.faiss" for name in names[1:]}
    clean_up(str(path), 1, [])
    assert tree(path / "indexes").keys() == {f"{name}/index.faiss" for name in names[2:]}


def test_of_stopped_jobs_only_the_newest_two_are_kept_and_only_their_vectors(path: Path) -> None:
    states = [job(path, digest, f"2026010{number}") for digest, number in (("a", 5), ("b", 3), ("c", 6), ("d", 4))]
    me = job(path, "me", "20260107")
    folder = JobFolder(str(path), "me")
    mine = tree(path / WORK / "me")
    assert folder.unfinished() == states
    assert folder.trim(folder.unfinished()) == [states[0], states[2]]
    assert versions(path) == [VERSION, "20260105", "20260106", me.version]
    for state in (states[0], states[2]):
        assert tree(path / WORK / state.digest).keys() == {JOB, f"{ERRORS}/file"}
        target = path / "versions" / state.version
        assert folder.earlier_rows(state).paths == (str(target / part_name(0)), str(target / part_name(1)), None)
    assert tree(path / WORK / "me") == mine
    assert current(path) == IDS


def test_a_version_that_was_published_is_never_trimmed(path: Path) -> None:
    """A job may be killed after its pointer and before its own folder is gone; more may stop after it."""
    done = dataclasses.replace(STATE, digest="done", version=VERSION)
    JobFolder(str(path), "done").save(done)
    later = [job(path, digest, f"2026010{number}") for number, digest in enumerate("abc", start=3)]
    folder = JobFolder(str(path), "me")
    assert folder.trim([done, *later]) == later[1:]
    assert current(path) == IDS


def test_cleaning_up_where_nothing_is_published_is_no_error(tmp_path: Path) -> None:
    clean_up(str(tmp_path / "nowhere"), 2, [STATE])
    left = job(tmp_path / "path", "left", "20260103")
    clean_up(str(tmp_path / "path"), 2, [left])
    assert versions(tmp_path / "path") == []


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        dataclasses.replace(STATE, dealt=None),
        dataclasses.replace(STATE, format=EmbeddingFormat("int8", 8, False)),
        dataclasses.replace(STATE, format=EmbeddingFormat("binary", 16, False)),
    ],
)
def test_a_job_finds_its_state_again_and_no_other_s(tmp_path: Path, state: JobState) -> None:
    folder = JobFolder(str(tmp_path), state.digest)
    assert folder.state() is None
    folder.save(state)
    assert JobFolder(str(tmp_path), state.digest).state() == state
    assert JobFolder(str(tmp_path), "d2").state() is None
    folder.save(dataclasses.replace(state, num_ranges=9))
    assert folder.state() == dataclasses.replace(state, num_ranges=9)


def change(**changes: Any) -> bytes:
    return json.dumps(dataclasses.asdict(STATE) | changes).encode()


DAMAGED = [
    *(b"", b"{", b"[]", b"null", b"7", b"{}", b"\xff\xfe", b"\0" * 64, change()[:-9]),
    *(change(schema_version=2), change(added="by a later one"), change(format=None)),
    *(change(format={"dtype": "float32"}), change(format={"dtype": "int4", "dim": 8, "normalize": False})),
    change(format={"dtype": "binary", "dim": 9, "normalize": False}),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_state_is_a_job_that_begins_anew(tmp_path: Path, content: bytes) -> None:
    folder = JobFolder(str(tmp_path), "d1")
    folder.save(STATE)
    (tmp_path / WORK / "d1" / JOB).write_bytes(content)
    assert folder.state() is None
    assert JobFolder(str(tmp_path), "d2").unfinished() == []
    folder.save(STATE)
    assert folder.state() == STATE


def test_other_jobs_that_stopped_are_found_and_oneself_is_not_among_them(tmp_path: Path) -> None:
    assert JobFolder(str(tmp_path), "d1").unfinished() == []
    states = [dataclasses.replace(STATE, digest=digest, version=f"v-{digest}") for digest in ("d1", "d2", "d3")]
    for state in states:
        JobFolder(str(tmp_path), state.digest).save(state)
    (tmp_path / WORK / "no-job").mkdir()
    assert JobFolder(str(tmp_path), "d2").unfinished() == [states[0], states[2]]
    assert JobFolder(str(tmp_path), "d9").unfinished() == states


def test_what_a_stopped_job_left_is_read_where_it_is_there(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path), "d1")
    target = Path(folder.target(STATE.version))
    target.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a"], "content_hash": ["h"]}), target / part_name(1))
    rows = folder.earlier_rows(STATE)
    assert rows.paths == (None, str(target / part_name(1)), None)
    assert not rows.published
    found = [rows.read(number, 1, ["content_hash"]) for number in range(1)]
    assert [one.num_rows for one in found if one is not None] == [1]


def write_reports(folder: JobFolder, name: str, *reports: dict[str, Any]) -> None:
    (Path(folder.work) / REPORTS).mkdir(parents=True, exist_ok=True)
    write_part(pa.Table.from_pylist(list(reports)), f"{folder.work}/{REPORTS}/{name}.parquet")


def report(number: int, digest: str = "x") -> dict[str, Any]:
    return {"range": number, "path": part_name(number), "rows": number, "bytes": 1, "sha256": digest, "counts": "{}"}


def test_reports_come_once_each_in_the_order_of_their_ranges(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path), "d1")
    assert folder.reports() == []
    write_reports(folder, "b", report(0), report(5))
    write_reports(folder, "a", report(3))
    write_reports(folder, "c", report(3), report(1))  # done twice: the first attempt's report came through, too
    assert folder.reports() == [report(number) for number in (0, 1, 3, 5)]


DAMAGES = {
    "emptied": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "nothing but zeros": lambda data: bytes(len(data)),
    "pages of zeros": lambda data: data[:4] + bytes(len(data) // 4) + data[4 + len(data) // 4 :],
    "end of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 8) + data[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_goes_and_the_checkpoint_with_it(tmp_path: Path, damage: str) -> None:
    folder = JobFolder(str(tmp_path), "d1")
    write_reports(folder, "a", report(0))
    write_reports(folder, "b", report(1), report(2))
    (tmp_path / WORK / "d1" / CHECKPOINT).mkdir()
    assert folder.reports() == [report(0), report(1), report(2)]
    damaged = tmp_path / WORK / "d1" / REPORTS / "b.parquet"
    damaged.write_bytes(DAMAGES[damage](damaged.read_bytes()))
    assert folder.reports() == [report(0)]
    assert not damaged.exists()
    assert not (tmp_path / WORK / "d1" / CHECKPOINT).exists()


def test_of_a_unit_that_was_done_twice_the_later_report_counts(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path), "d1")
    write_reports(folder, "z", report(3, "before"))
    write_reports(folder, "a", report(3, "after"))
    for name, second in (("z", 1_700_000_000), ("a", 1_700_000_001)):
        os.utime(f"{folder.work}/{REPORTS}/{name}.parquet", (second, second))
    assert folder.reports() == [report(3, "after")]


def test_refused_rows_are_published_with_what_proves_them(path: Path) -> None:
    folder = JobFolder(str(path), "d1")
    target = folder.target(VERSION)
    assert publish_errors(folder.work, target) == []
    assert not (Path(target) / "errors").exists()
    (Path(folder.work) / "errors").mkdir(parents=True)
    for name, rows in (("b", 3), ("a", 1)):
        one = {"item_id": "i", "fragment": 0, "row": 7, "reason": "null_text", "text_start": ""}
        write_part(pa.Table.from_pylist([one] * rows, ERROR_SCHEMA), f"{folder.work}/errors/{name}.parquet")
    files = publish_errors(folder.work, target)
    assert [(file.path, file.rows) for file in files] == [("errors/a.parquet", 1), ("errors/b.parquet", 3)]
    for file in files:
        copied = Path(target) / file.path
        assert (copied.stat().st_size, sha256(copied)) == (file.bytes, file.sha256)
        assert pq.read_table(copied).schema == ERROR_SCHEMA
    assert publish_errors(folder.work, target) == files


class Killed(BaseException):
    """What SIGKILL is to a process, for a function."""


def dying_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill whoever makes the `number`-th change to storage from here on, before it is made."""
    left = [number]

    def counted(change: Any) -> Any:
        def changed(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*arguments)

        return changed

    for name in ("write_bytes", "remove_tree", "make_dir"):
        monkeypatch.setattr(publishing, name, counted(getattr(publishing, name)))


def last_steps(path: Path, manifest: Manifest, state: JobState, stopped: list[JobState], follows: str | None) -> None:
    """What a job does after its last unit."""
    folder = JobFolder(str(path), state.digest)
    stopped = folder.trim(stopped)
    publish_errors(folder.work, folder.target(state.version))
    if pointer_digest(str(path)) == follows:
        publish(str(path), manifest, follows)
    clean_up(str(path), 2, [state, *stopped])


def test_killed_at_any_change_the_same_command_ends_in_the_same_publication_and_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at each change after the last unit, then the next night: with a changed catalog, or the same job."""
    draws = [(moment, again) for moment in range(12) for again in (True, False)]
    for moment, again in draws:
        here = tmp_path / f"{moment}-{again}"
        shutil.copytree(path, here)
        follows = pointer_digest(str(here))
        manifest = unpublished(here, tmp_path / f"made-{moment}-{again}")
        state = dataclasses.replace(STATE, digest="killed", version=LATER)
        JobFolder(str(here), "killed").save(state)
        (here / WORK / "killed" / ERRORS).mkdir()
        write_part(pa.Table.from_pylist([], schema=ERROR_SCHEMA), str(here / WORK / "killed" / ERRORS / "e.parquet"))
        left = job(here, "stopped", "20260102T999999Z-1")
        with monkeypatch.context() as patched:
            dying_at(moment, patched)
            try:
                last_steps(here, manifest, state, [left], follows)
                killed = False
            except Killed:
                killed = True
        assert killed or moment > 6, moment
        seen = open_embeddings(str(here))  # a reader sees the old or the new one, whole
        assert seen.version in (VERSION, LATER)
        follows = pointer_digest(str(here))
        if again and seen.version == VERSION:
            last_steps(here, manifest, state, JobFolder(str(here), "killed").unfinished(), follows)
            assert open_embeddings(str(here)).version == LATER
        other = dataclasses.replace(STATE, digest="next", version="20260105T000000Z-1")
        JobFolder(str(here), "next").save(other)
        before = open_embeddings(str(here))
        made = unpublished(here, tmp_path / f"next-{moment}-{again}", other.version, previous=before.version)
        last_steps(here, made, other, JobFolder(str(here), "next").unfinished(), pointer_digest(str(here)))
        assert open_embeddings(str(here)).version == other.version
        assert before.table().num_rows == before.num_rows, moment  # it was current until now, so it is kept
        assert versions(here) == [before.version, other.version]
        assert not (here / WORK).exists()


def test_what_nobody_knows_any_more_goes(path: Path) -> None:
    orphan = path / "versions" / "20250101T000000Z-dead"
    orphan.mkdir()
    (orphan / "part-00000.parquet").write_bytes(b"x")
    (path / WORK / "of-another-schema").mkdir(parents=True)
    (path / WORK / "of-another-schema" / JOB).write_text(json.dumps({"schema_version": 0}))
    (path / "indexes" / "20250101T000000Z-dead-hnsw.partial-host-1-ab").mkdir(parents=True)
    clean_up(str(path), 2, [])
    assert versions(path) == [VERSION]
    assert not (path / WORK).exists() and list((path / "indexes").iterdir()) == []
    assert current(path) == IDS
