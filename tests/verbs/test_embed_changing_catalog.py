"""A file of the catalog is away while `beeray.embed` reads it: nothing is published before the same command again."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_jobs import Jobs, rows_of

from beeray.data.dealing import Dealt, deal_catalog
from beeray.runtime import embedding_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Jobs:
    folder = tmp_path_factory.mktemp("changing")
    (folder / "catalog").mkdir()
    for part, ids in (("a", range(10)), ("b", range(10, 20))):
        texts = [f"thing {number}" for number in ids]
        table = pa.table({"item_id": list(ids), "title": texts, "description": texts})
        pq.write_table(table, folder / "catalog" / f"{part}.parquet")
    return Jobs(folder)


def test_a_file_that_was_away_while_the_catalog_was_read_is_published_by_the_same_command_later(jobs: Jobs) -> None:
    """It comes back with the time that it had, so the next night finds the catalog that was planned."""
    second, aside = jobs.folder / "catalog" / "b.parquet", jobs.folder / "aside"

    def deal(*arguments: Any) -> Dealt:
        second.rename(aside)
        try:
            return deal_catalog(*arguments)
        finally:
            aside.rename(second)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedding_job, "deal_catalog", deal)
        ended = jobs.embed()
    assert ended.complaint.startswith(
        "beeray embed: embed: the catalog changed while it was read; nothing is published"
    )
    left = [one for one in (jobs.folder / "published").rglob("*") if one.is_file() and one.name != ".lock"]
    assert left == []
    assert jobs.embed().record["published"] is True
    assert rows_of(jobs.published()).ids == list(range(20))
