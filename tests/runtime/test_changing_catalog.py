"""A catalog that is written anew while a nightly job deals it: what was dealt is thrown away, whatever came of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.config import EmbedConfig
from beeray.console import Console
from beeray.data.dealing import Dealing, Dealt
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.publishing import JobFolder, JobState
from beeray.data.tables import Table
from beeray.errors import DataError
from beeray.runtime import embedding_job
from beeray.runtime.embedding_job import EmbeddingJob

VERSION = "20260101T000000Z-0"
Change = Callable[[Path], None]


def away(second: Path) -> None:
    second.rename(second.parents[1] / "aside")


def back_as_it_was(second: Path) -> None:
    (second.parents[1] / "aside").rename(second)


def written_again(second: Path) -> None:
    os.utime(second, (1, 1))


def all_gone(second: Path) -> None:
    second.parent.rename(second.parents[1] / "elsewhere")


def nothing(second: Path) -> None:
    """Nobody writes."""


def a_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: Change, between: Change, after: Change
) -> EmbeddingJob:
    """A job whose catalog of two files changes before it is listed to be dealt, before it is read, and after that."""
    (folder / "catalog").mkdir()
    for name, ids in (("a", [1, 2]), ("b", [3, 4])):
        pq.write_table(pa.table({"item_id": ids, "text": ["x", "y"]}), folder / "catalog" / f"{name}.parquet")
    second = folder / "catalog" / "b.parquet"
    catalog = Table(str(folder / "catalog"), {"item_id": "item_id", "text": "text"}, "catalog")

    def deal(table: Table, dealing: Dealing, report: Any) -> Dealt:
        before(second)
        fragments = table.fragments()
        between(second)
        rows = sum(batch.num_rows for fragment in fragments for batch in fragment.read())
        after(second)
        (Path(dealing.folder) / "dealt").mkdir()
        (Path(dealing.folder) / "dealt" / "group-00000.arrow").write_bytes(b"rows")
        return Dealt(rows, {}, [rows], "int64", [4])

    monkeypatch.setattr(embedding_job, "deal_catalog", deal)
    source = {"path": str(folder / "catalog"), "fingerprint": catalog.fingerprint()}
    job = EmbeddingJob.__new__(EmbeddingJob)
    job._lease = None
    vars(job).update(
        config=SimpleNamespace(embed=EmbedConfig()),
        plan=SimpleNamespace(catalog=catalog, catalog_source=source, template="{text}"),
        folder=JobFolder(str(folder / "published"), "0"),
        state=JobState("0", VERSION, 1, 1, "0", EmbeddingFormat("float32", 2, False)),
        unfinished=[],
        console=Console(io.StringIO(), io.StringIO()),
    )
    return job


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((away, nothing, nothing), id="a file is missing"),
        pytest.param((away, nothing, back_as_it_was), id="a file is missing only while it is read"),
        pytest.param((nothing, away, nothing), id="a file goes before its rows are read"),
        pytest.param((nothing, nothing, written_again), id="a file is written again"),
        pytest.param((nothing, nothing, all_gone), id="all goes"),
    ],
)
def test_what_was_dealt_of_a_catalog_that_changed_meanwhile_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[Change, Change, Change]
) -> None:
    job = a_job(tmp_path, monkeypatch, *changes)
    with pytest.raises(DataError) as caught:
        job._deal()
    assert str(caught.value) == (
        "embed: the catalog changed while it was read; nothing is published; run the same command again"
    )
    assert job.state.dealt is None and job.folder.state() is None
    assert [one for one in (tmp_path / "published").rglob("*") if one.is_file()] == []


def test_what_was_dealt_of_a_catalog_that_did_not_change_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(tmp_path, monkeypatch, nothing, nothing, nothing)
    job._deal()
    kept = job.folder.state()
    assert kept is not None and kept.dealt is not None and kept.dealt["rows"] == 4


def test_a_file_that_was_damaged_before_the_job_began_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(tmp_path, monkeypatch, nothing, nothing, nothing)
    whole = (tmp_path / "catalog" / "b.parquet").read_bytes()
    (tmp_path / "catalog" / "b.parquet").write_bytes(whole[:4] + b"\xff" * 80 + whole[84:])
    job.plan.catalog_source["fingerprint"] = job.plan.catalog.fingerprint()
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read"):
        job._deal()
