"""A catalog that is written anew while `beeray.embed` reads it: nothing is published, and the same command mends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_jobs import Jobs, rows_of

from beeray.data import dealing
from beeray.runtime import embedding_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHANGED = "embed: the catalog changed while it was read; nothing is published; run the same command again"
deal_catalog, drain = dealing.deal_catalog, dealing.drain


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Jobs:
    folder = tmp_path_factory.mktemp("changing")
    (folder / "catalog").mkdir()
    for part, ids in (("a", range(10)), ("b", range(10, 20))):
        texts = [f"thing {number}" for number in ids]
        pq.write_table(
            pa.table({"item_id": list(ids), "title": texts, "description": texts}), folder / f"catalog/{part}.parquet"
        )
    return Jobs(folder)


def away_while_it_is_read(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back with the time that it had, so the next night finds the catalog that was planned."""

    def deal(*arguments: Any) -> dealing.Dealt:
        aside = second.rename(second.parents[1] / "aside")
        try:
            return deal_catalog(*arguments)
        finally:
            aside.rename(second)

    monkeypatch.setattr(embedding_job, "deal_catalog", deal)


def written_again_while_it_is_read(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(*arguments: Any) -> dealing.Dealt:
        dealt = deal_catalog(*arguments)
        os.utime(second)
        return dealt

    monkeypatch.setattr(embedding_job, "deal_catalog", deal)


def gone_before_its_rows_are_read(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drain_without(dataset: Any) -> Any:
        if second.exists():
            second.rename(second.parents[1] / "aside")
        return drain(dataset)

    monkeypatch.setattr(dealing, "drain", drain_without)


def all_gone_when_it_was_read(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(*arguments: Any) -> dealing.Dealt:
        dealt = deal_catalog(*arguments)
        second.parent.rename(second.parents[1] / "elsewhere")
        return dealt

    monkeypatch.setattr(embedding_job, "deal_catalog", deal)


def refused(jobs: Jobs, change: Callable[[Path, pytest.MonkeyPatch], None]) -> None:
    """Embed a catalog that changes in such a way, see that nothing is left of it, and put it back as it was."""
    with pytest.MonkeyPatch.context() as patched:
        change(jobs.folder / "catalog" / "b.parquet", patched)
        ended = jobs.embed()
    assert ended.complaint == f"beeray embed: {CHANGED}"
    assert [one for one in (jobs.folder / "published").rglob("*") if one.is_file() and one.name != ".lock"] == []
    for aside, place in (("aside", "catalog/b.parquet"), ("elsewhere", "catalog")):
        if (jobs.folder / aside).exists():
            (jobs.folder / aside).rename(jobs.folder / place)


@pytest.mark.parametrize(
    "change", [written_again_while_it_is_read, gone_before_its_rows_are_read, all_gone_when_it_was_read]
)
def test_a_catalog_that_changes_while_it_is_read_is_not_published(
    jobs: Jobs, change: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    refused(jobs, change)


def test_a_file_that_is_away_while_the_catalog_is_read_is_published_by_the_same_command_later(jobs: Jobs) -> None:
    refused(jobs, away_while_it_is_read)
    assert jobs.embed().record["published"] is True
    assert rows_of(jobs.published()).ids == list(range(20))


def test_what_a_catalog_that_did_not_change_is_refused_for_is_told(jobs: Jobs) -> None:
    (jobs.folder / "broken").mkdir()
    whole = (jobs.folder / "catalog" / "a.parquet").read_bytes()
    (jobs.folder / "broken" / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 200 + whole[204:])
    complaint = jobs.embed("data.catalog.path=broken", "embed.path=refused").complaint
    assert "broken/a.parquet: cannot be read (" in complaint
