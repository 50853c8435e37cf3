"""Several data sets in one store: each as if it were alone, kept apart, and refused by name when it is not right."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.data.leakage import check_leakage
from beeray.data.parts import read_part
from beeray.data.preparation import ensure_store, store_fingerprint
from beeray.data.store import Store
from beeray.errors import ConfigError, DataError, StoreError
from beeray.inputs import prepared_store
from beeray.runtime.head_start import training_users
from beeray.runtime.scoring import needed_items, score_split

pytestmark = pytest.mark.usefixtures("ray_session")


def silent(*_: Any) -> None:
    """A report that nobody reads."""


def write_tables(folder: Path, name: str, num_items: int, num_users: int, *, text_ids: bool = False) -> dict[str, Any]:
    """Users 0, 1, … with five of items 0, 1, … each; both domains use the same ids. Returns the domain's config."""

    def spell(number: int) -> int | str:
        return f"B{number:03d}" if text_ids else number

    items = [spell(item) for item in range(num_items)]
    catalog = pa.table({"item_id": items, "title": [f"{name} {item}" for item in range(num_items)]})
    pq.write_table(catalog, folder / f"{name}-catalog.parquet")
    rows = [(user, (user + 3 * step) % num_items, 20 * step + user) for user in range(num_users) for step in range(5)]
    rows = [rows[place] for place in np.random.default_rng(3).permutation(len(rows))]
    users, theirs, times = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "item_id": [spell(item) for item in theirs], "time": times})
    pq.write_table(table, folder / f"{name}-interactions.parquet")
    return {
        "source": "tables",
        "catalog": {"path": str(folder / f"{name}-catalog.parquet"), "template": "{title}"},
        "interactions": {"path": str(folder / f"{name}-interactions.parquet"), "timestamp": "time"},
    }


def a_config(folder: Path, domains: dict[str, Any], store: str = "store", **changes: Any) -> Config:
    data = {"domains": domains, "store": str(folder / store), "num_buckets": 2}
    tree = {"name": "mix", "data": data, "split": {"validation": 0.2, "test": 0.2}}
    return validate_config(tree | changes)


def alone(folder: Path, name: str, domain: dict[str, Any], **changes: Any) -> Config:
    """The same domain as a config of one source."""
    data = {**domain, "domain": name, "store": str(folder / f"alone-{name}"), "num_buckets": 2}
    return validate_config({"name": name, "data": data, "split": {"validation": 0.2, "test": 0.2}} | changes)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mix")
    return folder, {
        "films": write_tables(folder, "film", 10, 20),
        "books": write_tables(folder, "book", 15, 30),
    }


@pytest.fixture(scope="module")
def mixed(tables: tuple[Path, dict[str, Any]], ray_session: None) -> Store:
    folder, domains = tables
    return ensure_store(a_config(folder, domains), silent)[0]


def users_of(store: Store, domain: str | None = None) -> list[dict[str, Any]]:
    return [row for path in store.user_paths(domain) for row in read_part(path).to_pylist()]


def without_indices(store: Store, domain: str | None = None) -> list[dict[str, Any]]:
    """Users with their items by id: what must not depend on which domains stand before."""
    ids = store.item_ids().to_pylist()
    return [
        {**row, "user_index": None, "item_indices": [ids[item] for item in row["item_indices"]]}
        for row in users_of(store, domain)
    ]


def test_domains_stand_one_after_the_other_and_may_use_the_same_ids(mixed: Store) -> None:
    catalog = mixed.catalog(["item_index", "item_id", "domain", "text"]).to_pylist()
    assert [row["item_index"] for row in catalog] == list(range(25))
    assert [(row["domain"], row["item_id"]) for row in catalog] == [
        *(("films", item) for item in range(10)),
        *(("books", item) for item in range(15)),
    ]
    assert [catalog[place]["text"] for place in (3, 13)] == ["film 3", "book 3"]
    users = users_of(mixed)
    assert [row["user_index"] for row in users] == list(range(50))
    for row in users:
        inside = range(10) if row["domain"] == "films" else range(10, 25)
        assert set(row["item_indices"]) <= set(inside)
    assert sorted(row["user_id"] for row in users) == sorted([*range(20), *range(30)])


def test_what_is_known_of_each_domain_adds_up(mixed: Store) -> None:
    meta = mixed.meta
    assert meta.domains == ["films", "books"]
    assert (meta.num_items, meta.num_users, meta.num_interactions) == (25, 50, 250)
    films, books = mixed.domains
    assert (films.num_items, books.num_items, books.first_item, books.first_user) == (10, 15, 10, 20)
    assert (films.items, books.items) == (
        {"train": 6, "validation": 2, "test": 2},
        {"train": 9, "validation": 3, "test": 3},
    )
    assert meta.items == {"train": 15, "validation": 5, "test": 5}
    enough = [sum(row["splits"].count(0) >= 2 for row in users_of(mixed, name)) for name in meta.domains]
    assert [one.training_users["train"] for one in mixed.domains] == enough
    assert meta.training_users["train"] == sum(enough) > 40
    assert mixed.item_domains.tolist() == [0] * 10 + [1] * 15
    assert len(mixed.candidates("test")) == 5
    assert mixed.candidates("test", "books").tolist() == [item for item in mixed.candidates("test") if item >= 10]
    blocks = list(mixed.evaluation_users("test", 7, domain="books"))
    assert all(block.targets.indices.min() >= 10 and block.history.indices.min() >= 10 for block in blocks)
    of_films = sum(len(block.user_index) for block in mixed.evaluation_users("test", 7, domain="films"))
    everybody = sum(len(block.user_index) for block in mixed.evaluation_users("test", 7))
    assert sum(len(block.user_index) for block in blocks) + of_films == everybody > of_films > 0
    with pytest.raises(StoreError, match="has no domain 'games'; its domains are films, books"):
        mixed.domain("games")


@pytest.mark.parametrize("kind", ["item", "time", "user"])
def test_each_domain_is_split_as_it_would_be_alone(kind: str, tables: tuple[Path, dict[str, Any]]) -> None:
    folder, domains = tables
    split = {"split": {"kind": kind, "validation": 0.2, "test": 0.2}}
    store, _ = ensure_store(a_config(folder, domains, f"mixed-{kind}", **split), silent)
    single, _ = ensure_store(alone(folder, "books", domains["books"], **split), silent)
    assert without_indices(store, "books") == without_indices(single)
    assert store.item_labels()[10:].tolist() == single.item_labels().tolist()
    assert store.domain("books").time_boundaries == single.meta.time_boundaries
    assert store.domain("books").interactions == single.meta.interactions
    if kind == "time":  # films' users are earlier: one cut over all would be another
        assert store.domain("films").time_boundaries != single.meta.time_boundaries
        assert store.meta.time_boundaries is None


def test_held_out_users_are_asked_for_the_same_beside_a_domain_whose_ids_are_text(
    tmp_path: Path, tables: tuple[Path, dict[str, Any]]
) -> None:
    folder, domains = tables
    split = {"split": {"kind": "user", "validation": 0.2, "test": 0.2}}
    others = write_tables(tmp_path, "game", 10, 20, text_ids=True)
    orders = pq.read_table(others["interactions"]["path"])
    named = pa.array([f"player {user}" for user in orders["user_id"].to_pylist()])
    pq.write_table(orders.set_column(0, "user_id", named), others["interactions"]["path"])
    store, _ = ensure_store(a_config(tmp_path, {"games": others, "books": domains["books"]}, **split), silent)
    single, _ = ensure_store(alone(folder, "books", domains["books"], **split), silent)

    def asked(rows: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
        return {
            (str(row["user_id"]), str(item), label)
            for row in rows
            for item, label in zip(row["item_indices"], row["splits"], strict=True)
            if label
        }

    assert len(asked(without_indices(single))) == 12
    assert asked(without_indices(store, "books")) == asked(without_indices(single))


def test_a_domain_may_have_rules_and_sizes_of_its_own(tables: tuple[Path, dict[str, Any]]) -> None:
    folder, domains = tables
    own = {"films": domains["films"] | {"split": {"test": 4}}, "books": domains["books"] | {"min_user_interactions": 6}}
    with pytest.raises(DataError) as caught:
        ensure_store(a_config(folder, own, "own"), silent)
    assert str(caught.value).startswith("data.domains.books: interactions: nothing remains after filtering (")
    assert not (folder / "own").exists()
    store, _ = ensure_store(a_config(folder, own | {"books": domains["books"]}, "own"), silent)
    assert [one.items["test"] for one in store.domains] == [4, 3]


def test_held_out_items_with_the_text_of_a_training_item_are_counted_and_told_when_a_store_is_prepared(
    tables: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, domains = tables
    films = write_tables(tmp_path, "film", 10, 20)
    one_text = pa.table({"item_id": range(10), "title": ["a film"] * 10})
    pq.write_table(one_text, films["catalog"]["path"])
    config, out = a_config(tmp_path, domains | {"films": films}), io.StringIO()
    store, prepared = prepared_store(config, Console(out, out))
    assert prepared
    assert [one.held_out_twins for one in store.domains] == [
        {"validation": 2, "test": 2},
        {"validation": 0, "test": 0},
    ]
    assert store.meta.held_out_twins == {"validation": 2, "test": 2}
    lines = [line for line in out.getvalue().splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "is exactly that of a training item (2 validation / 2 test), which flatters figures: give " in lines[0]

    meta = json.loads((tmp_path / "store" / "meta.json").read_text())
    for one in (meta, *meta["by_domain"]):
        del one["held_out_twins"]
    (tmp_path / "store" / "meta.json").write_text(json.dumps(meta))  # as an earlier version left it
    out.truncate(0)
    store, prepared = prepared_store(config, Console(out, out))
    assert not prepared
    assert store.meta.held_out_twins == {}
    assert "warning: " not in out.getvalue()


def test_without_twins_and_in_other_splits_nothing_is_told(
    mixed: Store, tables: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert mixed.meta.held_out_twins == {"validation": 0, "test": 0}
    _, domains = tables
    split = {"split": {"kind": "time", "validation": 0.2, "test": 0.2}}
    out = io.StringIO()
    store, _ = prepared_store(a_config(tmp_path, domains, **split), Console(out, out))
    assert store.meta.held_out_twins == {}
    assert "warning: " not in out.getvalue()


def test_ids_of_two_types_become_strings_and_stay_apart(tmp_path: Path) -> None:
    domains = {
        "films": write_tables(tmp_path, "film", 10, 20),
        "books": write_tables(tmp_path, "book", 10, 20, text_ids=True),
    }
    store, _ = ensure_store(a_config(tmp_path, domains), silent)
    assert store.item_ids().to_pylist() == [*map(str, range(10)), *(f"B{item:03d}" for item in range(10))]
    assert {type(row["user_id"]) for row in users_of(store)} == {int}  # users' are integers in both


def test_categories_of_numbers_and_text_of_another_domain_become_strings(tmp_path: Path) -> None:
    domains = {
        "films": write_tables(tmp_path, "film", 10, 20),
        "books": write_tables(tmp_path, "book", 10, 20, text_ids=True),
    }
    for name in ("catalog", "interactions"):
        table = pq.read_table(tmp_path / f"film-{name}.parquet")
        for column in {"user_id", "item_id"} & set(table.column_names):
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, table[column].dictionary_encode())
        feather.write_feather(table, str(tmp_path / f"film-{name}.feather"))
        domains["films"][name]["path"] = str(tmp_path / f"film-{name}.feather")
    store, _ = ensure_store(a_config(tmp_path, domains), silent)
    assert store.item_ids().to_pylist() == [*map(str, range(10)), *(f"B{item:03d}" for item in range(10))]
    assert store.meta.num_users == 40


def test_what_decides_the_store_is_in_its_fingerprint_and_weights_are_not(tables: tuple[Path, dict[str, Any]]) -> None:
    folder, domains = tables
    known = store_fingerprint(a_config(folder, domains))
    weighted = {name: domain | {"weight": 0.5} for name, domain in domains.items()}
    assert store_fingerprint(a_config(folder, weighted)) == known
    assert store_fingerprint(a_config(folder, dict(reversed(domains.items())))) != known
    renamed = {"movies": domains["films"], "books": domains["books"]}
    assert store_fingerprint(a_config(folder, renamed)) != known
    sized = {"films": domains["films"] | {"split": {"test": 4}}, "books": domains["books"]}
    assert store_fingerprint(a_config(folder, sized)) != known
    one = a_config(folder, {"books": domains["books"]})
    assert store_fingerprint(one) == store_fingerprint(alone(folder, "books", domains["books"]))


@pytest.mark.parametrize("asked", [None, ["books"]])
def test_candidates_of_a_user_are_the_items_of_its_domain(
    asked: list[str] | None, mixed: Store, tables: tuple[Path, dict[str, Any]]
) -> None:
    config = a_config(*tables, evaluate={"domains": asked, "recall_at": [2], "ndcg_at": [3]})
    embeddings, others = (
        torch.nn.functional.normalize(torch.randn(25, 4, generator=torch.Generator().manual_seed(seed)), dim=1)
        for seed in (1, 2)
    )
    scores = score_split(embeddings, config, mixed, "test")
    names = asked or ["films", "books"]
    assert [(one.ranking, one.domain) for one in scores] == [
        (ranking, name) for ranking in ("held_out", "catalog") for name in names
    ]
    assert {one.domain: one.num_candidates for one in scores if one.ranking == "held_out"} == {
        name: {"films": 2, "books": 3}[name] for name in names
    }
    others[10:] = embeddings[10:]  # other films, the same books
    again = score_split(others, config, mixed, "test")
    for one, other in zip(scores, again, strict=True):
        if one.domain == "books" or one.ranking == "catalog":  # two candidates alone may well keep their order
            assert np.array_equal(one.scores, other.scores) == (one.domain == "books")
        assert (one.user_index >= 20).all() == (one.domain == "books")


def test_only_items_of_the_domains_that_are_scored_are_embedded(
    mixed: Store, tables: tuple[Path, dict[str, Any]]
) -> None:
    assert needed_items(a_config(*tables), mixed) is None
    books = needed_items(a_config(*tables, evaluate={"domains": ["books"]}), mixed)
    assert books is not None and books.tolist() == list(range(10, 25))


@pytest.mark.parametrize(("weight", "num_books"), [(1.0, 30), (0.5, 15), (2.5, 75)])
def test_a_head_is_trained_on_users_of_all_domains_in_their_weights(
    weight: float, num_books: int, tables: tuple[Path, dict[str, Any]], mixed: Store
) -> None:
    folder, domains = tables
    config = a_config(
        folder, domains | {"books": domains["books"] | {"weight": weight}}, train={"with_validation": True}
    )
    items = mixed.trainable_items(with_validation=True)
    users = training_users(mixed, config, items)
    of_books = [items[users.indices[start]] >= 10 for start in users.indptr[:-1]]
    num_films = mixed.domain("films").training_users["train+validation"]
    most = mixed.domain("books").training_users["train+validation"]
    assert of_books == [False] * num_films + [True] * round(most * weight)
    assert (most, round(most * weight)) == (30, num_books)


@pytest.fixture
def copied(mixed: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed.path, tmp_path / "store"))


def first_row(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def a_film_for_a_reader(row: dict[str, Any]) -> None:
    row["item_indices"][0] = 0


def a_label_of_training(row: dict[str, Any]) -> None:
    row["splits"] = [0] * len(row["splits"])


def another_domain(row: dict[str, Any]) -> None:
    row["domain"] = "films"


@pytest.mark.parametrize(
    ("folder", "change", "expected"),
    [
        ("users", a_film_for_a_reader, "has an item_index out of range"),
        ("users", a_label_of_training, "labelled unlike its held-out item"),
        ("users", another_domain, "something of domain 'books' is labelled ['films', 'books']"),
        ("catalog", another_domain, "something of domain 'books' is labelled ['films']"),
    ],
)
def test_a_leak_in_the_second_domain_or_between_the_two_is_found(
    copied: Path, folder: str, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    check_leakage(Store.open(str(copied)))
    last = "part-001-*" if folder == "users" else "part-0000000010.parquet"
    first_row(next((copied / folder).glob(last)), change)
    with pytest.raises(StoreError) as caught:
        check_leakage(Store.open(str(copied)))
    assert expected in str(caught.value)


def test_counts_of_one_domain_that_do_not_fit_are_found_though_the_sum_does(copied: Path) -> None:
    meta = json.loads((copied / "meta.json").read_text())
    films, books = meta["by_domain"]
    films["interactions"]["train"] += 1
    books["interactions"]["train"] -= 1
    (copied / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="its users and interactions are"):
        check_leakage(Store.open(str(copied)))


def test_what_is_wrong_with_a_domain_is_told_with_its_name(tables: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, domains = tables
    missing = {**domains["films"], "catalog": {"path": str(tmp_path / "none.parquet"), "template": "{title}"}}
    with pytest.raises(DataError, match=r"^data\.domains\.films: .*none\.parquet"):
        ensure_store(a_config(folder, domains | {"films": missing}, "bad"), silent)
    untimed = {key: value for key, value in domains["books"].items() if key != "interactions"}
    untimed["interactions"] = {"path": domains["books"]["interactions"]["path"]}
    by_time = a_config(folder, domains | {"books": untimed}, "bad", split={"kind": "time"})
    with pytest.raises(ConfigError, match=r"^data\.domains\.books: split\.kind is 'time': .* no timestamp"):
        ensure_store(by_time, silent)
