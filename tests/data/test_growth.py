"""A store that has grown by two items, compared with the list that yesterday's run left."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beeray.data.growth import growth_since, write_items
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta


def a_store(folder: Path, ids: list[str] | list[int], domains: list[str], labels: list[int], kind: str) -> Store:
    (folder / "catalog").mkdir(parents=True)
    table = pa.table({"item_id": ids, "domain": domains, "split": pa.array(labels, pa.int8())})
    write_part(table, str(folder / "catalog" / "part-00000.parquet"))
    return Store(str(folder), StoreMeta("0", kind, ["a", "b"], len(ids), 0, 0, {}, {}, {}, {}))


def test_items_are_known_by_id_and_domain_and_trained_on_unless_they_were_held_out(tmp_path: Path) -> None:
    yesterday = a_store(tmp_path / "y", ["1", "2", "3"], ["a", "a", "b"], [0, 2, 0], "item")
    # today 3 is in domain a, too: another item; and 1, which was trained on, is held out
    today = a_store(tmp_path / "t", ["3", "1", "9", "3", "2"], ["a", "a", "a", "b", "a"], [0, 2, 2, 1, 1], "item")
    path = str(tmp_path / "items.parquet")
    write_items(yesterday, False, path)
    assert pq.read_table(path).to_pylist()[1] == {"item_id": "2", "domain": "a", "trained": False}
    growth = growth_since(today, path)
    assert growth.known.tolist() == [False, True, False, True, True]
    assert growth.trained.tolist() == [False, True, False, True, False]
    assert growth.domains == ("a", "b")
    assert growth.record(today) == {
        "old_items": 3,
        "new_items": 2,
        "held_out_but_trained_on_before": {"validation": 1, "test": 1},
    }


def test_validation_items_count_as_trained_on_where_they_were(tmp_path: Path) -> None:
    yesterday = a_store(tmp_path / "y", ["1", "2", "3"], ["a"] * 3, [0, 1, 2], "item")
    for with_validation, expected in ((False, [True, False, False]), (True, [True, True, False])):
        path = str(tmp_path / "items.parquet")
        write_items(yesterday, with_validation, path)
        assert growth_since(yesterday, path).trained.tolist() == expected


def test_numbers_and_their_digits_are_the_same_ids_and_other_splits_hold_no_item_out(tmp_path: Path) -> None:
    path = str(tmp_path / "items.parquet")
    write_items(a_store(tmp_path / "y", [7, 8], ["a", "a"], [0, 0], "user"), False, path)
    today = a_store(tmp_path / "t", ["8", "10"], ["a", "a"], [0, 0], "user")
    growth = growth_since(today, path)
    assert growth.known.tolist() == [True, False]
    assert growth.record(today) == {"old_items": 1, "new_items": 1}


def test_what_earlier_runs_of_a_chain_trained_on_and_knew_is_not_forgotten(tmp_path: Path) -> None:
    monday = a_store(tmp_path / "m", ["1", "2", "3", "4"], ["a"] * 4, [0, 0, 0, 0], "item")
    tuesday = a_store(tmp_path / "t", ["1", "2", "3", "5"], ["a"] * 4, [1, 2, 0, 0], "item")
    wednesday = a_store(tmp_path / "w", ["1", "2", "4", "5"], ["a"] * 4, [1, 2, 2, 0], "item")
    lists = [str(tmp_path / f"{day}.parquet") for day in ("monday", "tuesday")]
    write_items(monday, False, lists[0])
    write_items(tuesday, False, lists[1], growth_since(tuesday, lists[0]))
    assert growth_since(tuesday, lists[1]).trained.all()
    growth = growth_since(wednesday, lists[1])
    assert growth.record(wednesday) == {
        "old_items": 4,
        "new_items": 0,
        "held_out_but_trained_on_before": {"validation": 1, "test": 2},
    }
    assert growth.gone.to_pylist() == [{"item_id": "3", "domain": "a", "trained": True}]
