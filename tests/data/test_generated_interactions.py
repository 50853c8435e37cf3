"""Generated interactions: exact sizes, distinct pairs, heavy tails, and the same rows from the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from beeray.data import generated_interactions
from beeray.data.generated_catalog import GeneratedCatalog
from beeray.data.generated_interactions import VALUE_SHARES, VALUES, GeneratedInteractions
from beeray.errors import DataError

MADE = GeneratedInteractions(num_users=2000, num_items=1000, num_interactions=60_000, seed=3)


@pytest.fixture(scope="module")
def whole() -> pa.Table:
    return pa.concat_tables(MADE.batches())


def test_there_are_exactly_so_many_rows_of_distinct_pairs_and_every_user_has_some(whole: pa.Table) -> None:
    users, items = whole["user_id"].to_numpy(), whole["item_id"].to_numpy()
    assert len(users) == 60_000
    assert len(np.unique(users * 1000 + items)) == 60_000
    assert np.unique(users).tolist() == list(range(2000))
    assert (items.min(), items.max()) >= (0, 0) and items.max() < 1000
    assert np.bincount(users).tolist() == MADE.activity.tolist()


def test_activity_and_popularity_have_heavy_tails(whole: pa.Table) -> None:
    activity = np.sort(MADE.activity)[::-1]
    assert activity[-1] == 4  # 20 of MovieLens' mean of 144.4, of a mean of 30
    assert activity.max() <= 1000 // 3
    assert activity[:200].sum() > 0.35 * 60_000  # evenly it would be a tenth
    popularity = np.sort(np.bincount(whole["item_id"].to_numpy(), minlength=1000))[::-1]
    assert 0.5 < popularity[:100].sum() / 60_000 < 0.9
    ids = np.argsort(-np.bincount(whole["item_id"].to_numpy(), minlength=1000))[:100]
    assert 350 < ids.mean() < 650  # an id does not tell the popularity


def test_values_are_those_of_movielens_and_timestamps_are_whole_seconds(whole: pa.Table) -> None:
    values = whole["value"].to_numpy()
    shares = np.array([(values == value).mean() for value in VALUES])
    np.testing.assert_allclose(shares, VALUE_SHARES / VALUE_SHARES.sum(), atol=0.01)
    assert whole["timestamp"].type == pa.int64()
    assert len(np.unique(whole["timestamp"].to_numpy())) > 59_000


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(whole: pa.Table) -> None:
    again = GeneratedInteractions(2000, 1000, 60_000, seed=3)
    assert pa.concat_tables(again.batches()).equals(whole)
    other = pa.concat_tables(GeneratedInteractions(2000, 1000, 60_000, seed=4).batches())
    assert len(other) == len(whole)
    assert not other["item_id"].equals(whole["item_id"])


def test_files_of_any_format_and_number_hold_the_same_rows(
    tmp_path: Path, whole: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_interactions, "BLOCK_ROWS", 7000)
    cut = GeneratedInteractions(2000, 1000, 60_000, seed=3)
    tables = list(cut.batches())
    assert len(tables) == 9
    rows = pa.concat_tables(tables)
    assert cut.write(tmp_path / "parquet", num_files=4) == sum(
        path.stat().st_size for path in (tmp_path / "parquet").iterdir()
    )
    assert len(list((tmp_path / "parquet").iterdir())) == 4
    assert pq.read_table(tmp_path / "parquet").equals(rows)
    cut.write(tmp_path / "csv", "csv")
    read = pyarrow.csv.read_csv(tmp_path / "csv" / "part-00000.csv")
    assert read.cast(rows.schema).equals(rows)


def test_item_names_are_those_of_a_generated_catalog() -> None:
    (rows,) = GeneratedInteractions(50, 20, 200, item_names=True).batches()
    known = set(pa.concat_tables(GeneratedCatalog(20, mean_tokens=16).batches())["item_id"].to_pylist())
    assert set(rows["item_id"].to_pylist()) <= known
    assert rows["item_id"].type == pa.string()


def test_the_tightest_sizes_are_kept() -> None:
    (rows,) = GeneratedInteractions(10, 8, 20).batches()  # a quarter of all pairs: two each, and two is a third of 8
    assert np.bincount(rows["user_id"].to_numpy()).tolist() == [2] * 10
    (one_each,) = GeneratedInteractions(10, 8, 10).batches()
    assert one_each["user_id"].to_pylist() == list(range(10))


@pytest.mark.parametrize(
    ("sizes", "field"), [((0, 10, 10), "num_users"), ((10, 4, 10), "num_items"), ((10, 8, 9), "num_interactions")]
)
def test_sizes_that_cannot_be_are_refused_by_name(sizes: tuple[int, int, int], field: str) -> None:
    with pytest.raises(DataError, match=field):
        GeneratedInteractions(*sizes)


def test_files_go_to_an_empty_folder_only(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with pytest.raises(DataError, match="empty folder"):
        GeneratedInteractions(10, 8, 10).write(tmp_path)
