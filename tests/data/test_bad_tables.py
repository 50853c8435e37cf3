"""What anyone may hand in by mistake: one line that says what, where and the remedy, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from beeray.config import validate_config
from beeray.data import preparation, table_files
from beeray.data.preparation import ensure_store
from beeray.data.store import Store
from beeray.data.store_meta import SCHEMA_VERSION
from beeray.errors import BeerayError, ConfigError, DataError, StoreError

Columns = dict[str, list[Any]]


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def good_catalog() -> Columns:
    return {"item_id": list(range(10)), "text": [f"item {item}" for item in range(10)]}


def good_interactions() -> Columns:
    pairs = [(user, (user + step) % 10) for user in range(12) for step in range(5)]
    return {"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs], "stars": [5.0] * len(pairs)}


def prepare(folder: Path, **changes: Any) -> Store:
    """Prepare the tables in `folder`; `changes` of sections."""
    data = {
        "source": "tables",
        "catalog": {"path": str(folder / "catalog.parquet")},
        "interactions": {"path": str(folder / "interactions.parquet"), "value": "stars"},
        "store": str(folder / "stores" / "bad"),
        "num_buckets": 2,
    }
    tree: dict[str, Any] = {"name": "bad", "split": {"validation": 1, "test": 1}}
    return ensure_store(validate_config(tree | changes | {"data": data | changes.get("data", {})}), silent)[0]


def write(folder: Path, catalog: Columns | pa.Table, interactions: Columns | pa.Table) -> None:
    for name, table in (("catalog", catalog), ("interactions", interactions)):
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / f"{name}.parquet")


def refusal(folder: Path, kind: type[BeerayError], *expected: str, **changes: Any) -> str:
    """Prepare, and return the one line of the error after the checks that hold for every error."""
    with pytest.raises(BeerayError) as caught:
        prepare(folder, **changes)
    message = str(caught.value)
    assert isinstance(caught.value, kind), message
    assert "\n" not in message
    for piece in expected:
        assert piece in message
    stores = folder / "stores"
    assert not stores.exists() or list(stores.iterdir()) == []
    return message


def without(columns: Columns, *names: str) -> Columns:
    return {name: values for name, values in columns.items() if name not in names}


def with_row(columns: Columns, **row: Any) -> Columns:
    return {name: [*values, row[name]] for name, values in columns.items()}


def mistake_no_catalog_file(folder: Path) -> None:
    (folder / "catalog.parquet").unlink()


def mistake_no_interactions_file(folder: Path) -> None:
    (folder / "interactions.parquet").unlink()


def mistake_empty_folder(folder: Path) -> None:
    (folder / "catalog.parquet").unlink()
    (folder / "catalog.parquet").mkdir()


def mistake_no_user_column(folder: Path) -> None:
    write(folder, good_catalog(), without(good_interactions(), "user_id"))


def mistake_no_text_column(folder: Path) -> None:
    write(folder, without(good_catalog(), "text") | {"title": ["a"] * 10}, good_interactions())


def mistake_a_column_twice(folder: Path) -> None:
    table = pa.table(good_catalog())
    pq.write_table(table.append_column("text", table["text"]), folder / "catalog.parquet")


def mistake_truncated_parquet(folder: Path) -> None:
    path = folder / "catalog.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def mistake_damaged_pages(folder: Path) -> None:
    path = folder / "interactions.parquet"
    pq.write_table(pa.table(good_interactions()), path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)


def mistake_unknown_format(folder: Path) -> None:
    (folder / "catalog.parquet").unlink()
    (folder / "catalog.parquet").mkdir()
    (folder / "catalog.parquet" / "catalog.xlsx").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (mistake_no_catalog_file, ["catalog.parquet: no such file, folder or match; check the path"]),
        (mistake_no_interactions_file, ["interactions.parquet: no such file, folder or match; check the path"]),
        (mistake_empty_folder, ["catalog.parquet: no such file, folder or match"]),
        (
            mistake_no_user_column,
            [
                "interactions.parquet: data.interactions has no column 'user_id' (for user_id)",
                "its columns are item_id, stars",
                "map the column in the config",
            ],
        ),
        (mistake_no_text_column, ["data.catalog has no column 'text'", "its columns are item_id, title"]),
        (
            mistake_a_column_twice,
            ["catalog.parquet: data.catalog has column 'text' (for text) more than once; rename the others"],
        ),
        (mistake_truncated_parquet, ["catalog.parquet: cannot be read (", "repair"]),
        (mistake_unknown_format, ["catalog.xlsx: not a known table format; use one of .parquet"]),
    ],
)
def test_files_that_cannot_be_read_are_refused_before_ray_is_needed(
    tmp_path: Path, mistake: Callable[[Path], None], expected: list[str]
) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    mistake(tmp_path)
    refusal(tmp_path, DataError, *expected)


def test_a_time_split_without_a_timestamp_column_is_refused_before_ray_is_needed(tmp_path: Path) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    split = {"kind": "time"}
    refusal(tmp_path, ConfigError, "split.kind is 'time'", "no timestamp", "choose item or user", split=split)


@pytest.mark.parametrize("template", ["{text", "no column", "{}", "{text:>9}", "{text.title}"])
def test_a_template_that_names_no_plain_column_is_refused(tmp_path: Path, template: str) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    catalog = {"path": str(tmp_path / "catalog.parquet"), "template": template}
    refusal(tmp_path, ConfigError, f"template {template!r}: ", "{title}. {genres}", data={"catalog": catalog})


@pytest.mark.usefixtures("ray_session")
def test_pages_that_are_damaged_are_named_by_their_file(tmp_path: Path) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    mistake_damaged_pages(tmp_path)
    refusal(tmp_path, DataError, "interactions.parquet: cannot be read (", "repair")


LONG = "the same beginning of sixty characters and then some more of it: "


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("catalog", "expected"),
    [
        pytest.param(
            with_row(good_catalog(), item_id=3, text="another text"),
            ["catalog item_id: 3 appears twice with two texts: 'item 3' and 'another text'", "must stand for one item"],
            id="one id with two texts",
        ),
        pytest.param(
            with_row(good_catalog(), item_id=11, text=""),
            ["catalog text: item_id 11 has null or empty text", "data.empty_text: drop"],
            id="empty text",
        ),
        pytest.param(
            with_row(good_catalog(), item_id=12, text=None), ["item_id 12 has null or empty text"], id="null text"
        ),
        pytest.param(
            with_row(good_catalog(), item_id=None, text="nobody"),
            ["catalog.parquet, row 11: catalog item_id: null or empty; every item needs an id"],
            id="null id",
        ),
        pytest.param(
            good_catalog() | {"item_id": [float(item) for item in range(10)]},
            ["catalog item_id: ids are of type double", "must be strings or integers"],
            id="ids of float type",
        ),
        pytest.param({"item_id": [], "text": []}, ["catalog: no item has text (0 rows read)"], id="no row"),
    ],
)
def test_a_catalog_that_breaks_the_contract_is_refused(tmp_path: Path, catalog: Columns, expected: list[str]) -> None:
    table = pa.table(catalog)
    if not table.num_rows:
        table = table.cast(pa.schema([("item_id", pa.int64()), ("text", pa.string())]))
    write(tmp_path, table, good_interactions())
    refusal(tmp_path, DataError, *expected)


@pytest.mark.usefixtures("ray_session")
def test_an_id_with_two_long_texts_shows_where_they_begin(tmp_path: Path) -> None:
    write(tmp_path, with_row(good_catalog(), item_id=3, text=LONG * 100), good_interactions())
    message = refusal(tmp_path, DataError, "3 appears twice with two texts", LONG[:50], "…")
    assert len(message) < 400


@pytest.mark.usefixtures("ray_session")
def test_items_without_text_are_dropped_and_counted_when_asked_to(tmp_path: Path) -> None:
    catalog = with_row(with_row(good_catalog(), item_id=11, text=None), item_id=12, text=" \n ")
    write(tmp_path, catalog, good_interactions())
    store = prepare(tmp_path, data={"empty_text": "drop"})
    assert store.meta.dropped["items_without_text"] == 2
    assert store.meta.num_items == 10


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("column", ["text", "item_id"])
def test_a_csv_that_is_not_utf8_is_refused(tmp_path: Path, column: str) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    rows = ["item_id,text", *(f"i{item},item {item}" for item in range(9))]
    broken = {"text": b"i9,caf\xe9\n", "item_id": b"caf\xe9,item 9\n"}[column]
    (tmp_path / "catalog.csv").write_bytes("\n".join(rows).encode() + b"\n" + broken)
    message = refusal(tmp_path, DataError, data={"catalog": {"path": str(tmp_path / "catalog.csv")}})
    assert "UTF8" in message.replace("UTF-8", "UTF8")
    assert "catalog.csv" in message or f"catalog {column}" in message


@pytest.mark.usefixtures("ray_session")
def test_a_csv_whose_first_id_with_leading_zeros_comes_late_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0007 was 7 then, and its interactions those of another item."""
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    write(tmp_path, good_catalog(), good_interactions())
    rows = [f"{user},{item},5.0" for user in range(60) for item in range(5)]
    orders = tmp_path / "orders.csv"
    orders.write_text("\n".join(["user_id,item_id,stars", *rows, "1,0007,5.0"]))
    data = {"interactions": {"path": str(orders), "value": "stars"}}
    refusal(tmp_path, DataError, "orders.csv: item_id '0007' is no plain whole number", data=data)


@pytest.mark.usefixtures("ray_session")
def test_files_of_one_table_whose_columns_differ_in_type_are_refused(tmp_path: Path) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    folder = tmp_path / "parts"
    folder.mkdir()
    table = pa.table(good_catalog())
    pq.write_table(table.slice(0, 5), folder / "a.parquet")
    as_text = pa.table({"item_id": [f"B{item}" for item in range(5, 10)], "text": table["text"].slice(5)})
    pq.write_table(as_text, folder / "b.parquet")
    refusal(tmp_path, DataError, "b.parquet", "item_id", data={"catalog": {"path": str(folder)}})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("interactions", "data", "expected"),
    [
        pytest.param(
            good_interactions() | {"stars": [3.0] * 60},
            {},
            [
                "interactions: nothing remains after filtering",
                "interactions below min value 60",
                "lower data.min_value or data.min_user_interactions",
            ],
            id="all below min_value",
        ),
        pytest.param(
            good_interactions(),
            {"min_user_interactions": 6},
            ["nothing remains after filtering", "users below min interactions 12", "interactions of such users 60"],
            id="every user has too few",
        ),
        pytest.param(
            good_interactions() | {"item_id": [f"B{item}" for item in good_interactions()["item_id"]]},
            {},
            [
                "interactions share no item with the catalog: ",
                "the catalog has '0', '1', '2' (string)",
                "the interactions 'B0', 'B1', 'B2' (string)",
                "give both ids one type",
            ],
            id="text ids where the catalog has integers",
        ),
        pytest.param(
            good_interactions() | {"item_id": [item + 100 for item in good_interactions()["item_id"]]},
            {},
            [
                "share no item with the catalog",
                "the catalog has 0, 1, 2 (int64), the interactions 100, 101, 102 (int64)",
            ],
            id="other integers",
        ),
        pytest.param(
            good_interactions() | {"user_id": [user + 0.5 for user in good_interactions()["user_id"]]},
            {},
            ["interactions user_id: ids are of type double", "must be strings or integers"],
            id="user ids of float type",
        ),
        pytest.param(
            good_interactions() | {"stars": ["good"] * 60},
            {},
            ["interactions value", "'good'"],
            id="values that are no numbers",
        ),
    ],
)
def test_interactions_that_leave_nothing_say_how_much_was_dropped_and_why(
    tmp_path: Path, interactions: Columns, data: dict[str, Any], expected: list[str]
) -> None:
    write(tmp_path, good_catalog(), interactions)
    refusal(tmp_path, DataError, *expected, data=data)


@pytest.mark.usefixtures("ray_session")
def test_interactions_without_a_row_leave_nothing(tmp_path: Path) -> None:
    write(tmp_path, good_catalog(), pa.table(good_interactions()).slice(0, 0))
    refusal(tmp_path, DataError, "interactions: nothing remains")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"validation": 5, "test": 5}, ["5 validation and 5 test items of 10 leave too few"]),
        ({"kind": "user", "validation": 0.01, "test": 0.1}, ["0 validation and 1 test users of 12 leave too few"]),
        ({"reproduce": "beeformer"}, ["split.num_draws 2000: ", "lower it"]),
    ],
)
def test_a_split_that_leaves_nothing_names_its_numbers(
    tmp_path: Path, split: dict[str, Any], expected: list[str]
) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    refusal(tmp_path, DataError, *expected, split=split)


def write_meta(folder: Path, text: str) -> None:
    (folder / "stores" / "bad").mkdir(parents=True)
    (folder / "stores" / "bad" / "meta.json").write_text(text)


WHOLE_META = {
    "fingerprint": "0",
    "split_kind": "item",
    "domains": ["items"],
    "num_items": 0,
    "num_users": 0,
    "num_interactions": 0,
    "items": {},
    "users": {},
    "interactions": {},
    "training_users": {},
    "schema_version": SCHEMA_VERSION,
}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (json.dumps(WHOLE_META | {"schema_version": 99}), ["schema_version is 99, this beeray reads", "update beeray"]),
        (json.dumps(WHOLE_META)[:40], ["meta.json is damaged", "delete the store and prepare again"]),
        ("", ["meta.json is damaged"]),
        ("[]", ["meta.json is damaged"]),
        ("{}", ["meta.json is damaged"]),
        (json.dumps({"schema_version": SCHEMA_VERSION}), ["meta.json is damaged"]),
        (json.dumps(WHOLE_META | {"schema_version": "two"}), []),
    ],
)
def test_a_store_that_this_version_cannot_read_is_refused_and_left_alone(
    tmp_path: Path, meta: str, expected: list[str]
) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    write_meta(tmp_path, meta)
    with pytest.raises(StoreError) as caught:
        prepare(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for piece in [str(tmp_path / "stores" / "bad"), *expected]:
        assert piece in message
    assert (tmp_path / "stores" / "bad" / "meta.json").read_text() == meta
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["bad"]


def test_a_store_with_all_that_is_required_opens(tmp_path: Path) -> None:
    write_meta(tmp_path, json.dumps(WHOLE_META | {"added_by_a_later_minor_version": 1}))
    opened = Store.open(str(tmp_path / "stores" / "bad"))
    assert dataclasses.asdict(opened.meta) | WHOLE_META == dataclasses.asdict(opened.meta)


def test_a_folder_without_meta_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(StoreError, match=r"no meta\.json there, so no whole store; run beeray\.prepare"):
        Store.open(str(tmp_path / "store"))


def test_interactions_of_other_items_are_shown_from_the_first_file_that_has_rows(
    tmp_path: Path, ray_session: None
) -> None:
    others = pa.table(good_interactions() | {"item_id": [item + 100 for item in good_interactions()["item_id"]]})
    write(tmp_path, good_catalog(), others)
    (tmp_path / "interactions.parquet").unlink()
    (tmp_path / "interactions.parquet").mkdir()
    for name, rows in (("a", others.slice(0, 0)), ("b", others)):
        pq.write_table(rows, tmp_path / "interactions.parquet" / f"{name}.parquet")
    refusal(tmp_path, DataError, "share no item with the catalog", "the interactions 100, 101, 102 (int64)")


def test_of_two_commands_that_prepare_one_store_at_once_the_later_leaves_the_earliers(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, good_catalog(), good_interactions())
    alone, made = preparation._prepare, []

    def with_another(*given: Any) -> Any:
        prepared = alone(*given)
        if not made:
            made.append("begun")
            made.append(prepare(tmp_path).path)
            (Path(made[1]) / "tokens" / "in-use").mkdir(parents=True)
        return prepared

    monkeypatch.setattr(preparation, "_prepare", with_another)
    store = prepare(tmp_path)
    assert made[1] == store.path and (Path(store.path) / "tokens" / "in-use").is_dir()
    assert [one.name for one in Path(store.path).parent.iterdir()] == [Path(store.path).name]
