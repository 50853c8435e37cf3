"""Raw tables to a prepared store, against contents and counts worked out by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from beeray.config import Config, validate_config
from beeray.data.parts import read_part
from beeray.data.preparation import ensure_store
from beeray.data.store import INTERACTION_COLUMNS, Store, training_rows
from beeray.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_session")

# Items 1 to 5 are kept; 6 has a blank text, 7 nobody takes, 1 is listed twice with one text.
CATALOG = [
    (1, "Alpha", "x"),
    (2, "Beta", None),
    (3, "", "y"),
    (6, " ", None),
    (4, " Delta", "x"),
    (1, "Alpha", "x"),
    (7, "Never", "z"),
    (5, "Ünïcode 🐝", "x"),
]
TEXTS = {1: "Alpha / x", 2: "Beta /", 3: "/ y", 4: "Delta / x", 5: "Ünïcode 🐝 / x"}

# (user, item, value); the rules are min_value 4 and at least 2 items a user.
INTERACTIONS = [
    (10, 3, 4.0),
    (10, 1, 5.0),
    (20, 2, 5.0),
    (10, 3, 5.0),  # repeated
    (10, 4, 3.9),  # below min_value
    (10, 9, 5.0),  # no such item
    (20, 2, 4.0),  # repeated
    (10, 2, 4.0),
    (20, 2, 4.5),  # repeated: user 20 has one item only
    (30, 1, float("nan")),  # below min_value
    (30, 4, 4.0),
    (30, None, 5.0),  # no item
    (30, 5, 4.0),
    (40, 6, 5.0),  # an item without text
    (40, 5, 5.0),
    (40, 2, None),  # below min_value
    (None, 1, 5.0),  # no user
    (40, 4, 4.0),
    (40, 1, 4.0),
]
KEPT = {10: [3, 1, 2], 30: [4, 5], 40: [5, 4, 1]}
DROPPED = {
    "items_without_text": 1,
    "items_repeated": 1,
    "items_without_interactions": 1,
    "interactions_without_id": 2,
    "interactions_below_min_value": 3,
    "interactions_of_unknown_items": 2,
    "interactions_repeated": 3,
    "users_below_min_interactions": 1,
    "interactions_of_such_users": 1,
}


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def a_config(folder: Path, store: str = "store", **changes: Any) -> Config:
    """A config of the tables in `folder`; `changes` of `data` and `split`."""
    data: dict[str, Any] = {
        "source": "tables",
        "catalog": {"path": str(folder / "catalog.parquet")},
        "interactions": {"path": str(folder / "interactions.parquet")},
        "store": str(folder / store),
        "num_buckets": 2,
    }
    tree = {"name": "hand", "data": data | changes.pop("data", {}), "split": {"validation": 1, "test": 1}}
    return validate_config(tree | changes)


def users_of(store: Store) -> list[dict[str, Any]]:
    return [row for path in store.user_paths() for row in read_part(path).to_pylist()]


def labels_by_user(store: Store) -> dict[Any, tuple[int, dict[Any, int]]]:
    """user_id → its label, and item_id → label of its interactions."""
    ids = store.item_ids().to_pylist()
    return {
        row["user_id"]: (
            row["split"],
            {ids[item]: label for item, label in zip(row["item_indices"], row["splits"], strict=True)},
        )
        for row in users_of(store)
    }


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its inode and time."""
    stats = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def write_hand_tables(folder: Path, spell: Callable[[int | None], Any]) -> None:
    """The tables above as parquet in row groups of three."""
    ids, titles, genres = zip(*CATALOG, strict=True)
    catalog = pa.table({"asin": [spell(i) for i in ids], "title": titles, "genre": genres})
    pq.write_table(catalog, folder / "catalog.parquet", row_group_size=3)
    users, items, values = zip(*INTERACTIONS, strict=True)
    table = pa.table({"who": [spell(u) for u in users], "what": [spell(i) for i in items], "stars": values})
    pq.write_table(table, folder / "interactions.parquet", row_group_size=3)


def write_hand_tables_as_files(folder: Path, spell: Callable[[int | None], Any]) -> None:
    """The tables above as a folder of feather files and a folder of CSV files."""
    write_hand_tables(folder, spell)
    catalog, table = pq.read_table(folder / "catalog.parquet"), pq.read_table(folder / "interactions.parquet")
    for name, whole, suffix, write in (
        ("catalog.parquet", catalog, "feather", pyarrow.feather.write_feather),
        ("interactions.parquet", table, "csv", pyarrow.csv.write_csv),
    ):
        (folder / name).unlink()
        (folder / name).mkdir()
        for part, start in enumerate(range(0, whole.num_rows, 7)):
            write(whole.slice(start, 7), str(folder / name / f"part-{part}.{suffix}"))


@pytest.mark.parametrize(
    ("write", "spell"),
    [
        pytest.param(write_hand_tables, lambda i: None if i is None else f"B{i:03d}", id="text ids in parquet"),
        pytest.param(write_hand_tables_as_files, lambda i: i, id="integer ids in folders of feather and CSV"),
    ],
)
def test_what_is_kept_and_what_is_dropped_is_as_worked_out_by_hand(
    tmp_path: Path, write: Callable[..., None], spell: Callable[[int | None], Any]
) -> None:
    write(tmp_path, spell)
    config = a_config(
        tmp_path,
        data={
            "catalog": {"path": str(tmp_path / "catalog.parquet"), "item_id": "asin", "template": "{title} / {genre}"},
            "interactions": {
                "path": str(tmp_path / "interactions.parquet"),
                "user_id": "who",
                "item_id": "what",
                "value": "stars",
            },
            "min_value": 4.0,
            "min_user_interactions": 2,
            "empty_text": "drop",
            "domain": "books",
        },
    )
    store, prepared = ensure_store(config, silent)
    assert prepared
    assert store.meta.dropped == DROPPED
    assert (store.meta.num_items, store.meta.num_users, store.meta.num_interactions) == (5, 3, 8)
    assert store.meta.domains == ["books"]
    catalog = store.catalog(["item_index", "item_id", "domain", "text", "content_hash", "split"]).to_pylist()
    assert [row["item_index"] for row in catalog] == [0, 1, 2, 3, 4]
    assert [row["item_id"] for row in catalog] == [spell(i) for i in (1, 2, 3, 4, 5)]
    assert [row["text"] for row in catalog] == [TEXTS[i] for i in (1, 2, 3, 4, 5)]
    assert {row["domain"] for row in catalog} == {"books"}
    assert [row["content_hash"] for row in catalog] == [
        hashlib.sha256(row["text"].encode()).digest()[:16] for row in catalog
    ]
    assert sorted(row["split"] for row in catalog) == [0, 0, 0, 1, 2]
    users = users_of(store)
    assert [row["user_index"] for row in users] == [0, 1, 2]
    assert {row["user_id"]: row["item_indices"] for row in users} == {
        spell(user): [item - 1 for item in items] for user, items in KEPT.items()
    }
    assert all(row["splits"] == [catalog[item]["split"] for item in row["item_indices"]] for row in users)
    assert all(row["timestamps"] is None for row in users)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty users with five of ten items each, at 100 distinct times, rows shuffled; one is repeated later."""
    folder = tmp_path_factory.mktemp("shop")
    rows = [(100 + user, (user + 3 * step) % 10, 20 * step + user) for user in range(20) for step in range(5)]
    rows = [rows[place] for place in np.random.default_rng(3).permutation(len(rows))]
    users, items, times = zip(*rows, (100, 0, 999), strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), folder / "interactions.parquet")
    catalog = pa.table({"item_id": range(10), "text": [f"item {item}" for item in range(10)]})
    pq.write_table(catalog, folder / "catalog.parquet")
    return folder


@pytest.fixture(scope="module")
def shop_store(shop: Path, ray_session: None) -> Callable[..., Store]:
    """Prepares the shop's store for a kind of split, a number of buckets and a seed, each once."""
    made: dict[tuple[str, int, int], Store] = {}

    def prepare(kind: str, num_buckets: int = 2, seed: int = 42) -> Store:
        key = (kind, num_buckets, seed)
        if key not in made:
            config = a_config(
                shop,
                f"{kind}-{num_buckets}-{seed}",
                data={
                    "num_buckets": num_buckets,
                    "interactions": {"path": str(shop / "interactions.parquet"), "timestamp": "time"},
                },
                split={"kind": kind, "validation": 0.2, "test": 0.2},
                seed=seed,
            )
            made[key] = ensure_store(config, silent)[0]
        return made[key]

    return prepare


def test_an_item_split_holds_out_items_with_all_their_interactions(shop_store: Callable[..., Store]) -> None:
    store = shop_store("item")
    assert store.meta.items == {"train": 6, "validation": 2, "test": 2}
    assert store.meta.interactions == {"train": 60, "validation": 20, "test": 20}  # every item has ten users
    assert store.meta.users == {"train": 20, "validation": 0, "test": 0}
    of_item = dict(zip(store.item_ids().to_pylist(), store.item_labels().tolist(), strict=True))
    for user_label, interactions in labels_by_user(store).values():
        assert user_label == 0
        assert interactions == {item: of_item[item] for item in interactions}


def test_a_time_split_holds_out_the_last_interactions_of_all(shop_store: Callable[..., Store]) -> None:
    store = shop_store("time")
    assert store.meta.time_boundaries == [60, 80]
    assert store.meta.interactions == {"train": 60, "validation": 20, "test": 20}
    assert store.meta.items == {"train": 10, "validation": 0, "test": 0}
    for row in users_of(store):
        user = row["user_id"] - 100
        assert row["timestamps"] == [user, 20 + user, 40 + user, 60 + user, 80 + user]
        assert row["item_indices"] == [(user + 3 * step) % 10 for step in range(5)]
        assert row["splits"] == [0, 0, 0, 1, 2]


def test_an_interaction_that_is_repeated_later_counts_at_its_first_time(shop_store: Callable[..., Store]) -> None:
    store = shop_store("time")
    assert store.meta.dropped["interactions_repeated"] == 1
    (times,) = [row["timestamps"] for row in users_of(store) if row["user_id"] == 100]
    assert times == [0, 20, 40, 60, 80]


def test_a_user_split_holds_out_users_and_asks_for_a_fifth_of_theirs(shop_store: Callable[..., Store]) -> None:
    store = shop_store("user")
    assert store.meta.users == {"train": 12, "validation": 4, "test": 4}
    assert store.meta.interactions == {"train": 12 * 5 + 8 * 4, "validation": 4, "test": 4}
    assert store.meta.training_users == {"train": 12, "train+validation": 16}
    for user_label, interactions in labels_by_user(store).values():
        expected = [0, 0, 0, 0, 0] if user_label == 0 else [0, 0, 0, 0, user_label]
        assert sorted(interactions.values()) == expected


@pytest.mark.parametrize("num_buckets", [2, 5])
def test_the_store_knows_how_many_training_users_each_part_has(
    shop_store: Callable[..., Store], num_buckets: int
) -> None:
    store = shop_store("user", num_buckets)
    (domain,) = store.domains
    for with_validation, name in ((False, "train"), (True, "train+validation")):
        counted = [
            training_rows(read_part(path, ["user_index", *INTERACTION_COLUMNS]), with_validation).num_rows
            for path in store.user_paths()
        ]
        assert domain.training_users_of_parts[name] == counted
        assert sum(counted) == store.meta.training_users[name]


@pytest.mark.parametrize("kind", ["item", "time", "user"])
def test_the_labels_do_not_depend_on_the_number_of_buckets(kind: str, shop_store: Callable[..., Store]) -> None:
    two, five = shop_store(kind, 2), shop_store(kind, 5)
    assert len(two.user_paths()) == 2
    assert len(five.user_paths()) > 2
    assert labels_by_user(two) == labels_by_user(five)


def test_another_seed_holds_out_other_items(shop_store: Callable[..., Store]) -> None:
    labels = shop_store("item").item_labels().tolist()
    others = [shop_store("item", seed=seed).item_labels().tolist() for seed in (43,)]
    assert labels not in others


def small_tables(folder: Path, text: str = "item") -> None:
    """Ten items and twelve users with five each."""
    catalog = pa.table({"item_id": range(10), "text": [f"{text} {item}".strip() for item in range(10)]})
    pq.write_table(catalog, folder / "catalog.parquet")
    pairs = [(user, (user + step) % 10) for user in range(12) for step in range(5)]
    users, items = zip(*pairs, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items}), folder / "interactions.parquet")


def test_a_store_is_prepared_again_only_when_its_inputs_or_rules_change(tmp_path: Path) -> None:
    small_tables(tmp_path)
    config = a_config(tmp_path)
    first, prepared = ensure_store(config, silent)
    assert prepared
    before = files_of(tmp_path / "store")
    again, prepared = ensure_store(config, silent)
    assert not prepared
    assert again.meta == first.meta
    assert files_of(tmp_path / "store") == before

    small_tables(tmp_path, text="other")
    os.utime(tmp_path / "catalog.parquet", ns=(1, 1))
    changed, prepared = ensure_store(config, silent)
    assert prepared
    assert changed.catalog(["text"])["text"][0].as_py() == "other 0"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["store"]

    assert not ensure_store(a_config(tmp_path, name="another-run", train={"lr": 1.0}), silent)[1]
    assert not ensure_store(a_config(tmp_path, data={"num_buckets": 5}), silent)[1]  # another deal of the same users
    stricter, prepared = ensure_store(a_config(tmp_path, data={"min_user_interactions": 4}), silent)
    assert prepared
    assert stricter.meta.fingerprint != changed.meta.fingerprint
    assert stricter.meta.items == changed.meta.items


def test_a_preparation_that_stops_half_way_leaves_no_store_and_then_the_old_one(tmp_path: Path) -> None:
    small_tables(tmp_path)
    tables = {"catalog.parquet", "interactions.parquet"}

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "write users" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_store(a_config(tmp_path), stop)
    assert {path.name for path in tmp_path.iterdir()} == tables

    old, _ = ensure_store(a_config(tmp_path), silent)
    before = files_of(tmp_path / "store")
    broken = pq.read_table(tmp_path / "catalog.parquet").to_pydict()
    broken["text"][7] = "  "
    pq.write_table(pa.table(broken), tmp_path / "catalog.parquet", row_group_size=2)
    with pytest.raises(DataError, match="item_id 7 has null or empty text"):
        ensure_store(a_config(tmp_path), silent)
    assert {path.name for path in tmp_path.iterdir()} == tables | {"store"}
    assert files_of(tmp_path / "store") == before
    assert dataclasses.asdict(Store.open(old.path).meta) == dataclasses.asdict(old.meta)
