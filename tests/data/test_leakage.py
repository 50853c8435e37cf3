"""The leakage check: a good store of every split passes, and a store with one planted leak does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.config import Config, validate_config
from beeray.data import leakage
from beeray.data.leakage import check_leakage
from beeray.data.preparation import ensure_store
from beeray.data.store import Store, training_rows
from beeray.errors import StoreError

TRAIN, VALIDATION, TEST = 0, 1, 2
KINDS = ["item", "time", "user"]
Row = dict[str, Any]


def config_of(kind: str, tables: Path, store: Path) -> Config:
    return validate_config(
        {
            "name": kind,
            "data": {
                "source": "tables",
                "catalog": {"path": str(tables / "catalog.parquet")},
                "interactions": {"path": str(tables / "interactions.parquet"), "timestamp": "time"},
                "store": str(store),
                "num_buckets": 2,
            },
            "split": {"kind": kind, "validation": 0.2, "test": 0.2},
        }
    )


@pytest.fixture(scope="module")
def good_stores(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, Path]:
    """A prepared store of each kind of split: 20 users with five of ten items each, at 100 distinct times."""
    folder = tmp_path_factory.mktemp("leakage")
    rows = [(100 + user, (user + 3 * step) % 10, 20 * step + user) for user in range(20) for step in range(5)]
    users, items, times = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), folder / "interactions.parquet")
    pq.write_table(
        pa.table({"item_id": range(10), "text": [f"item {item}" for item in range(10)]}), folder / "catalog.parquet"
    )
    for kind in KINDS:
        ensure_store(config_of(kind, folder, folder / kind), lambda *_: None)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def copied(good_stores: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a good store, to plant a leak in."""
    return lambda kind: Path(shutil.copytree(good_stores[kind], tmp_path / kind))


def rewrite(store: Path, folder: str, change: Callable[[Row], bool]) -> None:
    """Rewrite the first part in which `change` finds a row to change; it changes one row and says so."""
    for path in sorted((store / folder).glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.to_pylist()
        if any(change(row) for row in rows):
            pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
            return
    raise AssertionError("no row to change: the test's own table is wrong")


def edit_meta(store: Path, **changes: Any) -> None:
    path = store / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relabel(old: int, new: int) -> Callable[[Row], bool]:
    """Gives the first interaction labelled `old` the label `new`."""

    def change(row: Row) -> bool:
        if old not in row["splits"]:
            return False
        row["splits"][row["splits"].index(old)] = new
        return True

    return change


def training_rows_of(store: Store) -> list[Row]:
    return [row for path in store.user_paths() for row in training_rows(pq.read_table(path), False).to_pylist()]


def refused(store: Path, *expected: str) -> None:
    with pytest.raises(StoreError) as caught:
        check_leakage(Store.open(str(store)))
    message = str(caught.value)
    assert "\n" not in message
    for piece in (str(store), "leakage check failed", "delete the store and prepare again", *expected):
        assert piece in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_store_passes(kind: str, good_stores: dict[str, Path]) -> None:
    check_leakage(Store.open(str(good_stores[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_leak_planted_after_preparation_is_found_when_the_store_is_next_used(
    kind: str, good_stores: dict[str, Path], copied: Callable[[str], Path]
) -> None:
    store = copied(kind)
    config = config_of(kind, good_stores[kind].parent, store)
    assert ensure_store(config, lambda *_: None)[1] is False
    rewrite(store, "users", relabel(TEST, TRAIN))
    with pytest.raises(StoreError, match="leakage check failed"):
        ensure_store(config, lambda *_: None)


def test_an_item_that_first_appears_in_a_later_window_of_time_is_not_trained_on(
    good_stores: dict[str, Path], tmp_path: Path
) -> None:
    tables = good_stores["time"].parent
    interactions = pq.read_table(tables / "interactions.parquet")
    late = pa.table({"user_id": [100, 101, 102], "item_id": [10] * 3, "time": [1000] * 3})
    pq.write_table(pa.concat_tables([interactions, late.cast(interactions.schema)]), tmp_path / "interactions.parquet")
    catalog = pa.table({"item_id": range(11), "text": [f"item {item}" for item in range(11)]})
    pq.write_table(catalog, tmp_path / "catalog.parquet")
    store, _ = ensure_store(config_of("time", tmp_path, tmp_path / "store"), lambda *_: None)
    item_ids = store.item_ids().to_pylist()
    assert [item_ids[item] for item in store.trainable_items(True)] == list(range(10))
    trained = {item for row in training_rows_of(store) for item in row["item_indices"]}
    assert trained <= set(store.trainable_items(False).tolist())


@pytest.mark.parametrize("held_out", [VALIDATION, TEST])
def test_a_held_out_items_interaction_labelled_train_is_refused(held_out: int, copied: Callable[[str], Path]) -> None:
    store = copied("item")
    rewrite(store, "users", relabel(held_out, TRAIN))
    refused(store, "has an interaction labelled unlike its held-out item", "1 such")


def test_a_test_interaction_labelled_validation_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")
    rewrite(store, "users", relabel(TEST, VALIDATION))
    refused(store, "has an interaction labelled unlike its held-out item")


def test_a_leak_is_refused_even_where_the_counts_were_made_to_fit(copied: Callable[[str], Path]) -> None:
    store = copied("item")
    rewrite(store, "users", relabel(TEST, TRAIN))
    counts = Store.open(str(store)).meta.interactions
    edit_meta(store, interactions=counts | {"train": counts["train"] + 1, "test": counts["test"] - 1})
    refused(store, "has an interaction labelled unlike its held-out item")


def test_a_test_item_that_the_catalog_labels_otherwise_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")

    def free(row: Row) -> bool:
        if row["split"] != TEST:
            return False
        row["split"] = TRAIN
        return True

    rewrite(store, "catalog", free)
    refused(store, "its catalog holds 10 items", "meta.json says otherwise")
    labels = Store.open(str(store)).meta.items
    edit_meta(store, items=labels | {"train": labels["train"] + 1, "test": labels["test"] - 1})
    refused(store, "has an interaction labelled unlike its held-out item")


def test_two_items_that_changed_their_labels_are_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")
    for path in (store / "catalog").glob("*.parquet"):
        table = pq.read_table(path)
        swapped = [{TEST: TRAIN, TRAIN: TEST}.get(label, label) for label in table["split"].to_pylist()]
        first_test, first_train = swapped.index(TRAIN), swapped.index(TEST)
        labels = table["split"].to_pylist()
        labels[first_test], labels[first_train] = TRAIN, TEST
        place = table.schema.get_field_index("split")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(labels, pa.int8())), path)
    refused(store, "has an interaction labelled unlike its held-out item")


@pytest.mark.parametrize(("old", "new"), [(TEST, TRAIN), (VALIDATION, TRAIN), (TEST, VALIDATION), (TRAIN, TEST)])
def test_an_interaction_on_the_wrong_side_of_a_time_boundary_is_refused(
    old: int, new: int, copied: Callable[[str], Path]
) -> None:
    store = copied("time")
    rewrite(store, "users", relabel(old, new))
    refused(store, "has an interaction labelled unlike its time")


def test_a_time_split_without_its_boundaries_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("time")
    edit_meta(store, time_boundaries=None)
    refused(store, "meta.json has no time_boundaries")


def test_a_held_out_user_that_is_labelled_for_training_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("user")

    def free(row: Row) -> bool:
        if row["split"] != TEST:
            return False
        row["split"] = TRAIN
        return True

    rewrite(store, "users", free)
    refused(store, "has a target labelled unlike its user")


def test_a_held_out_user_that_is_freed_with_all_its_interactions_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("user")

    def free(row: Row) -> bool:
        if row["split"] != TEST:
            return False
        row["split"], row["splits"] = TRAIN, [TRAIN] * len(row["splits"])
        return True

    rewrite(store, "users", free)
    refused(store, "meta.json says otherwise")


def test_a_test_users_target_labelled_validation_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("user")
    rewrite(store, "users", relabel(TEST, VALIDATION))
    refused(store, "has a target labelled unlike its user")


def test_a_held_out_user_that_also_stands_among_the_training_users_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("user")
    rows = [row for path in (store / "users").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    held_out = next(row["user_id"] for row in rows if row["split"] == TEST)

    def impersonate(row: Row) -> bool:
        if row["split"] != TRAIN:
            return False
        row["user_id"] = held_out
        return True

    rewrite(store, "users", impersonate)
    refused(store, str(held_out))


def test_a_held_out_item_that_also_stands_among_the_training_items_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")
    catalog = Store.open(str(store)).catalog(["item_id", "split"]).to_pylist()
    held_out = next(row["item_id"] for row in catalog if row["split"] == TEST)

    def impersonate(row: Row) -> bool:
        if row["split"] != TRAIN:
            return False
        row["item_id"] = held_out
        return True

    rewrite(store, "catalog", impersonate)
    refused(store, str(held_out))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interaction_that_is_there_twice_with_two_labels_is_refused(
    kind: str, copied: Callable[[str], Path]
) -> None:
    store = copied(kind)

    def repeat(row: Row) -> bool:
        if TEST not in row["splits"]:
            return False
        place = row["splits"].index(TEST)
        row["item_indices"].append(row["item_indices"][place])
        row["splits"].append(TRAIN)
        if row["timestamps"] is not None:
            row["timestamps"].append(0)
        return True

    rewrite(store, "users", repeat)
    refused(store, "holds an item twice", "1 such")


def test_lists_of_unlike_length_are_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")

    def shorten(row: Row) -> bool:
        row["splits"].pop()
        return True

    rewrite(store, "users", shorten)
    refused(store, "items and splits differ in length")


@pytest.mark.parametrize(
    ("column", "value"), [("item_indices", 10), ("item_indices", -1), ("splits", 3), ("splits", -1)]
)
def test_indices_and_labels_out_of_range_are_refused(column: str, value: int, copied: Callable[[str], Path]) -> None:
    store = copied("user")

    def spoil(row: Row) -> bool:
        row[column][0] = value
        return True

    rewrite(store, "users", spoil)
    refused(store, "has an item_index out of range" if column == "item_indices" else "has an unknown split label")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counted", ["num_users", "num_items", "interactions", "items", "users", "num_interactions"])
def test_counts_that_do_not_fit_meta_are_refused(kind: str, counted: str, copied: Callable[[str], Path]) -> None:
    store = copied(kind)
    value = dataclasses.asdict(Store.open(str(store)).meta)[counted]
    edit_meta(store, **{counted: value | {"train": value["train"] + 1} if isinstance(value, dict) else value + 1})
    refused(store, "meta.json says otherwise")


def test_a_part_that_is_missing_is_refused(copied: Callable[[str], Path]) -> None:
    store = copied("item")
    sorted((store / "users").glob("*.parquet"))[0].unlink()
    refused(store, "meta.json says otherwise")


def test_tasks_find_in_a_large_store_what_is_found_here_in_a_small_one(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied("item")
    monkeypatch.setattr(leakage, "CHECKED_HERE", -1)
    check_leakage(Store.open(str(store)))
    rewrite(store, "users", relabel(0, 2))
    with pytest.raises(StoreError) as by_tasks:
        check_leakage(Store.open(str(store)))
    monkeypatch.undo()
    with pytest.raises(StoreError) as here:
        check_leakage(Store.open(str(store)))
    assert str(by_tasks.value) == str(here.value)
    assert "labelled unlike its held-out item" in str(here.value)
