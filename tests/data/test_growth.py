"""A store that has grown by two items, compared with the list that yesterday's run left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.data.growth import growth_since, said_of, write_lists
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta
from beeray.errors import DataError


def texts_hash(item: str | int, text: str | None) -> bytes:
    return (text or f"text of {item}").encode().ljust(16, b".")[:16]


def a_store(
    folder: Path,
    ids: list[str] | list[int],
    domains: list[str],
    labels: list[int],
    kind: str,
    texts: dict[str, str] | None = None,
) -> Store:
    """A store of these items; each has its own text unless told."""
    (folder / "catalog").mkdir(parents=True)
    hashes = pa.array([texts_hash(one, (texts or {}).get(one)) for one in ids], pa.binary(16))
    table = pa.table({"item_id": ids, "domain": domains, "split": pa.array(labels, pa.int8()), "content_hash": hashes})
    write_part(table, str(folder / "catalog" / "part-00000.parquet"))
    return Store(str(folder), StoreMeta("0", kind, sorted(set(domains)), len(ids), 0, 0, {}, {}, {}, {}))


def test_items_are_known_by_id_and_domain_and_trained_on_unless_they_were_held_out(tmp_path: Path) -> None:
    yesterday = a_store(tmp_path / "y", ["1", "2", "3"], ["a", "a", "b"], [0, 2, 0], "item")
    # today 3 is in domain a, too: another item; and 1, which was trained on, is held out
    today = a_store(tmp_path / "t", ["3", "1", "9", "3", "2"], ["a", "a", "a", "b", "a"], [0, 2, 2, 1, 1], "item")
    path = str(tmp_path / "items.parquet")
    write_lists(yesterday, False, path)
    assert pq.read_table(path).to_pylist()[1] == {
        "item_id": "2",
        "domain": "a",
        "trained": False,
        "content_hash": b"text of 2.......",
    }
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
        write_lists(yesterday, with_validation, path)
        assert growth_since(yesterday, path).trained.tolist() == expected


def test_numbers_and_their_digits_are_the_same_ids_and_other_splits_hold_no_item_out(tmp_path: Path) -> None:
    path = str(tmp_path / "items.parquet")
    write_lists(a_store(tmp_path / "y", [7, 8], ["a", "a"], [0, 0], "item"), False, path)
    today = a_store(tmp_path / "t", ["8", "10"], ["a", "a"], [0, 0], "user")
    growth = growth_since(today, path)
    assert growth.known.tolist() == [True, False]
    assert growth.record(today) == {"old_items": 1, "new_items": 1}, "which users were trained on is not known"


def a_user_store(folder: Path, users: dict[str, int] | dict[int, int]) -> Store:
    """Of a `user` split, in two parts: users with their labels."""
    store = a_store(folder, ["1"], ["a"], [0], "user")
    (folder / "users").mkdir()
    ids, labels = list(users), list(users.values())
    for part, inside in enumerate((slice(0, 1), slice(1, None))):
        chosen = ids[inside]
        rows = {"user_id": chosen, "domain": ["a"] * len(chosen), "split": pa.array(labels[inside], pa.int8())}
        write_part(pa.table(rows), str(folder / "users" / f"part-{part:05d}.parquet"))
    return store


def test_users_who_are_held_out_now_and_were_trained_on_are_counted(tmp_path: Path) -> None:
    monday = a_user_store(tmp_path / "m", {"1": 0, "2": 0, "3": 1, "4": 2})
    tuesday = a_user_store(tmp_path / "t", {1: 2, 2: 0, 3: 2, 4: 0, 5: 1})  # numbers are the same ids
    wednesday = a_user_store(tmp_path / "w", {"1": 2, "2": 1, "3": 1, "4": 1, "5": 2, "6": 2})
    lists = [str(tmp_path / name / "items.parquet") for name in ("one", "both", "chain")]
    for path in lists:
        Path(path).parent.mkdir()
    write_lists(monday, False, lists[0])
    assert growth_since(tuesday, lists[0]).record(tuesday) == {
        "old_items": 1,
        "new_items": 0,
        "held_out_but_trained_on_before": {"validation": 0, "test": 1},
    }
    write_lists(monday, True, lists[1])
    assert growth_since(tuesday, lists[1]).trained_on(tuesday) == {"validation": 0, "test": 2}
    write_lists(tuesday, False, lists[2], growth_since(tuesday, lists[0]))
    assert growth_since(wednesday, lists[2]).trained_on(wednesday) == {"validation": 2, "test": 1}
    assert said_of({"validation": 2, "test": 1_000}, "user") == (
        "it was trained on users that are held out now (2 of validation, 1,000 of test)"
    )
    assert said_of({"validation": 0}, "user") == ""


def test_what_a_run_was_never_told_is_not_known_to_the_next_one_either(tmp_path: Path) -> None:
    of_items, users = a_store(tmp_path / "m", ["1"], ["a"], [0], "item"), a_user_store(tmp_path / "t", {"1": 0, "2": 2})
    lists = [str(tmp_path / name / "items.parquet") for name in ("one", "two")]
    for path in lists:
        Path(path).parent.mkdir()
    write_lists(of_items, False, lists[0])
    write_lists(users, False, lists[1], growth_since(users, lists[0]))
    assert growth_since(users, lists[1]).trained_on(users) is None


@pytest.mark.parametrize("kind", ["item", "user", "time"])
def test_after_a_start_of_unknown_history_nobody_knows_what_was_trained_on_however_long_the_chain(
    tmp_path: Path, kind: str
) -> None:
    def a_day(name: str) -> Store:
        if kind == "item":
            return a_store(tmp_path / name, ["1", "2"], ["a", "a"], [0, 2], kind)
        if kind == "user":
            return a_user_store(tmp_path / name, {"1": 0, "2": 2})
        return a_time_store(tmp_path / name, (60, 80), [10, 70, 90])

    store = a_day("monday")
    known, first, later = (tmp_path / name for name in ("known", "first", "later"))
    for folder in (known, first, later):
        folder.mkdir()
    write_lists(store, False, str(known / "items.parquet"))
    write_lists(store, False, str(first / "items.parquet"), unknown_start=True)
    assert growth_since(store, str(known / "items.parquet")).trained_on(store) == {"validation": 0, "test": 0}
    growth = growth_since(store, str(first / "items.parquet"))
    write_lists(store, False, str(later / "items.parquet"), growth)
    for folder in (first, later):
        assert [path.name for path in folder.iterdir()] == ["items.parquet"]
        growth = growth_since(store, str(folder / "items.parquet"))
        assert growth.known.all() and growth.record(store) == {"old_items": store.meta.num_items, "new_items": 0}
    for left in known.iterdir():  # of an earlier version, which took the run for one that was begun with nothing
        if left.name != "items.parquet":
            left.rename(first / left.name)
    growth = growth_since(store, str(first / "items.parquet"))
    assert (growth.users, growth.windows, growth.trained_on(store)) == (None, None, None)


def a_time_store(folder: Path, boundaries: tuple[int, int], times: list[int]) -> Store:
    """Of a `time` split: one user with an interaction at each time."""
    store = a_store(folder, ["1"], ["a"], [0], "time")
    meta = replace(store.meta, domains=["a"], time_boundaries=list(boundaries))
    labels = [sum(time >= boundary for boundary in boundaries) for time in times]
    (folder / "users").mkdir()
    rows = {"splits": pa.array([labels], pa.list_(pa.int8())), "timestamps": pa.array([times], pa.list_(pa.int64()))}
    write_part(pa.table(rows), str(folder / "users" / "part-00000.parquet"))
    return Store(store.path, meta)


def test_a_window_that_was_trained_on_is_counted_where_it_is_held_out_now(tmp_path: Path) -> None:
    monday = a_time_store(tmp_path / "m", (60, 80), [10, 50, 70, 90])
    tuesday = a_time_store(tmp_path / "t", (75, 95), [10, 50, 70, 76, 79, 80, 90, 99])
    path = str(tmp_path / "items.parquet")
    write_lists(monday, False, path)
    assert growth_since(monday, path).trained_on(monday) == {"validation": 0, "test": 0}
    assert growth_since(tuesday, path).trained_on(tuesday) == {"validation": 0, "test": 0}
    write_lists(monday, True, path)
    assert growth_since(monday, path).trained_on(monday) == {"validation": 1, "test": 0}
    assert growth_since(tuesday, path).trained_on(tuesday) == {"validation": 2, "test": 0}
    write_lists(tuesday, False, path, growth_since(tuesday, path))  # a chain: its own window ends at 75, before at 80
    assert growth_since(tuesday, path).trained_on(tuesday) == {"validation": 2, "test": 0}
    (tmp_path / "windows.json").write_text("[3")
    with pytest.raises(DataError, match=r"windows\.json: is damaged \("):
        growth_since(tuesday, path)


def test_what_earlier_runs_of_a_chain_trained_on_and_knew_is_not_forgotten(tmp_path: Path) -> None:
    monday = a_store(tmp_path / "m", ["1", "2", "3", "4"], ["a"] * 4, [0, 0, 0, 0], "item")
    tuesday = a_store(tmp_path / "t", ["1", "2", "3", "5"], ["a"] * 4, [1, 2, 0, 0], "item")
    wednesday = a_store(tmp_path / "w", ["1", "2", "4", "5"], ["a"] * 4, [1, 2, 2, 0], "item")
    lists = [str(tmp_path / f"{day}.parquet") for day in ("monday", "tuesday")]
    write_lists(monday, False, lists[0])
    write_lists(tuesday, False, lists[1], growth_since(tuesday, lists[0]))
    assert growth_since(tuesday, lists[1]).trained.all()
    growth = growth_since(wednesday, lists[1])
    assert growth.record(wednesday) == {
        "old_items": 4,
        "new_items": 0,
        "held_out_but_trained_on_before": {"validation": 1, "test": 2},
    }
    assert growth.gone.drop_columns(["content_hash"]).to_pylist() == [{"item_id": "3", "domain": "a", "trained": True}]


def test_in_a_domain_of_another_name_items_are_known_by_id_and_text(tmp_path: Path) -> None:
    """Of books beside films (`a`), then alone under another name: one text has changed, and a film has a book's id."""
    both = a_store(tmp_path / "y", ["1", "2", "3", "9"], ["a", "a", "a", "b"], [0, 0, 2, 0], "item", {"9": "a film"})
    alone = a_store(tmp_path / "t", [1, 2, 3, 9], ["books"] * 4, [1, 2, 2, 2], "item", {2: "another text"})
    path = str(tmp_path / "items.parquet")
    write_lists(both, False, path)
    growth = growth_since(alone, path)
    assert (growth.strange, growth.domains) == (("books",), ("a", "b"))
    assert growth.known.tolist() == [True, False, True, False]
    assert growth.trained_on(alone) == {"validation": 1, "test": 0}
    assert growth.said_of_strange("item") == (
        "it was trained on a, b; of items of books it is known by id and text alone whether they were among them under "
        "another name"
    )
    write_lists(alone, False, path, growth)
    later = growth_since(alone, path)
    assert (later.strange, later.said_of_strange("item")) == ((), "")
    assert later.trained_on(alone) == {"validation": 1, "test": 0}, "also a day later"
    assert growth_since(both, path).trained.tolist() == [True, True, False, True], "nothing is forgotten"


def test_lists_of_an_earlier_version_name_no_texts(tmp_path: Path) -> None:
    path = str(tmp_path / "items.parquet")
    write_lists(a_store(tmp_path / "y", ["1", "2"], ["a", "a"], [0, 2], "item"), False, path)
    write_part(pq.read_table(path).drop_columns(["content_hash"]), path)
    same = a_store(tmp_path / "t", ["1", "2"], ["a", "a"], [2, 2], "item")
    assert growth_since(same, path).trained.tolist() == [True, False]
    renamed = a_store(tmp_path / "o", ["1"], ["books"], [2], "item")
    growth = growth_since(renamed, path)
    assert not growth.known.any()
    assert growth.trained_on(renamed) is None, "nothing can be said, and 0 would be something"
    assert "of items of books it is not known whether" in growth.said_of_strange("item")


@pytest.mark.parametrize("kind", ["user", "time"])
def test_of_users_and_times_of_a_domain_of_another_name_nothing_is_known(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "items.parquet")
    store = (
        a_user_store(tmp_path / "m", {"1": 0, "2": 2}) if kind == "user" else a_time_store(tmp_path / "m", (5, 8), [1])
    )
    write_lists(store, False, path)
    other = Store(store.path, replace(store.meta, domains=["books"]))
    growth = growth_since(other, path)
    assert growth.trained_on(store) is None and growth_since(store, path).trained_on(store) is not None
    assert "of books it is not known whether" in growth.said_of_strange(kind)
