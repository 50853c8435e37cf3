"""The items of a report: which are chosen, who has them, and that they come back as they were written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from two_writers import second_writer

from beeray.data import report_items
from beeray.data.parts import write_part
from beeray.data.report_items import (
    MAX_TEXT,
    choose_items,
    collect_items,
    item_indices,
    read_items,
    store_of_items,
    write_items,
)
from beeray.data.store import Store, StoreMeta
from beeray.data.store_meta import DomainMeta

TEXTS = ["Printer.", "Toner.", "Paper. " + "White " * 100, "Desk."]
USERS = [[0, 1], [0, 1, 2], [0, 3], [1]]
LABELS = [[0, 2], [0, 2, 0], [0, 1], [2]]  # toner (1) is held out for test, the desk (3) for validation


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four items, and four users in two parts."""
    catalog = {
        "item_id": ["p", "t", "w", "d"],
        "domain": ["office"] * 4,
        "text": TEXTS,
        "split": pa.array([0, 2, 0, 1], pa.int8()),
    }
    for folder in ("catalog", "users"):
        (tmp_path / folder).mkdir()
    write_part(pa.table(catalog), str(tmp_path / "catalog" / "part-00000.parquet"))
    for part in (0, 1):
        rows = slice(2 * part, 2 * part + 2)
        table = {
            "split": pa.array([0, 0], pa.int8()),
            "item_indices": pa.array(USERS[rows], pa.list_(pa.int32())),
            "splits": pa.array(LABELS[rows], pa.list_(pa.int8())),
        }
        write_part(pa.table(table), str(tmp_path / "users" / f"part-{part:05d}.parquet"))
    return Store(str(tmp_path), StoreMeta("finger", "item", ["office"], 4, 4, 8, {}, {}, {}, {}))


def test_users_are_counted_over_all_parts_and_apart_from_what_was_trained_on(store: Store) -> None:
    items = collect_items(store, 10, 0, with_validation=False)
    assert items.item_index.tolist() == [0, 1, 2, 3]
    assert items.num_users.tolist() == [3, 3, 1, 1]
    assert items.num_training_users.tolist() == [3, 0, 1, 0]
    assert items.split == ["train", "test", "train", "validation"]
    assert items.counted_users == 4
    assert items.together.toarray().tolist() == [[0, 2, 1, 1], [2, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_validation_that_is_trained_on_is_no_longer_new(store: Store) -> None:
    assert collect_items(store, 10, 0, with_validation=True).num_training_users.tolist() == [3, 0, 1, 1]


def test_only_the_first_users_are_counted_of_a_large_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_items, "MAX_USERS", 3)
    items = collect_items(store, 10, 0, with_validation=False)
    assert items.counted_users == 3
    assert items.num_users.tolist() == [3, 2, 1, 1]


def test_of_several_domains_each_has_its_share_of_users(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (0, 1):
        old = Path(store.path) / "users" / f"part-{part:05d}.parquet"
        old.rename(old.with_name(f"part-{part:03d}-00000.parquet"))
    halves = [DomainMeta(name, 4, 2, 4, {}, {}, {}, {}, first_user=2 * place) for place, name in enumerate("ab")]
    by_domain = [dataclasses.asdict(one) for one in halves]
    store = Store(store.path, dataclasses.replace(store.meta, domains=["a", "b"], by_domain=by_domain))
    monkeypatch.setattr(report_items, "MAX_USERS", 2)
    items = collect_items(store, 10, 0, with_validation=False)
    assert items.counted_users == 2
    assert items.num_users.tolist() == [2, 1, 0, 1]  # the first of each: {0, 1} and {0, 3}


def test_a_long_text_is_cut(store: Store) -> None:
    texts = collect_items(store, 10, 0, with_validation=False).text
    assert texts[0] == "Printer."
    assert len(texts[2]) <= MAX_TEXT and texts[2].endswith(" White…")


def test_pairs_are_of_the_chosen_items_alone(store: Store) -> None:
    items = collect_items(store, 2, 0, with_validation=False)
    assert len(items) == 2
    whole = np.array([[0, 2, 1, 1], [2, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    assert items.together.toarray().tolist() == whole[np.ix_(items.item_index, items.item_index)].tolist()


def test_items_come_back_as_they_were_written(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    assert read_items(folder) is None and item_indices(folder) is None and store_of_items(folder) is None
    items = collect_items(store, 10, 0, with_validation=False)
    write_items(items, folder, "finger")
    back = read_items(folder)
    assert back is not None
    assert (back.item_id, back.text, back.split, back.domain) == (items.item_id, items.text, items.split, items.domain)
    assert back.num_training_users.tolist() == items.num_training_users.tolist()
    assert back.together.toarray().tolist() == items.together.toarray().tolist()
    assert back.counted_users == 4
    indices = item_indices(folder)
    assert indices is not None and indices.tolist() == [0, 1, 2, 3]
    assert store_of_items(folder) == "finger"


def test_of_a_large_catalog_the_most_interacted_are_chosen_and_new_items_are_not_forgotten() -> None:
    num_users = np.arange(1000)[::-1].copy()  # item 0 is the most interacted with
    trained = num_users.copy()
    trained[800:900] = 0  # a hundred new items, all of them rare
    chosen = choose_items(num_users, trained, 100, seed=1)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    assert chosen.tolist() == sorted(chosen.tolist())
    assert set(range(50)) <= set(chosen.tolist())
    assert ((chosen >= 800) & (chosen < 900)).sum() >= 25
    assert choose_items(num_users, trained, 100, seed=1).tolist() == chosen.tolist()
    assert choose_items(num_users, trained, 100, seed=2).tolist() != chosen.tolist()


def test_without_new_items_the_random_share_is_of_all_the_rest() -> None:
    num_users = np.full(50, 3)
    assert len(choose_items(num_users, num_users, 20, seed=0)) == 20


def test_two_commands_that_write_items_at_once_leave_whole_ones(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, folder = collect_items(store, 10, 0, with_validation=False), tmp_path / "report"
    came = second_writer(monkeypatch, report_items, "write_part", lambda: write_items(items, folder, "finger"))
    write_items(items, folder, "finger")
    back = read_items(folder)
    assert came and back is not None and back.item_id == items.item_id
    assert sorted(one.name for one in folder.iterdir()) == ["items.parquet", "together.npz"]


def test_items_that_could_not_be_written_anew_leave_those_that_were_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, folder = collect_items(store, 10, 0, with_validation=False), tmp_path / "report"
    write_items(items, folder, "finger")

    def half(file: Any, _: Any) -> None:
        with open(file, "wb") if isinstance(file, Path) else file as out:
            out.write(b"half")
        raise OSError("no room")

    monkeypatch.setattr(sparse, "save_npz", half)
    with pytest.raises(OSError, match="no room"):
        write_items(items, folder, "finger")
    back = read_items(folder)
    assert back is not None and back.together.toarray().tolist() == items.together.toarray().tolist()
