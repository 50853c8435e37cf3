"""Where a store may not be put: in the place of something else, and inside a table's folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.config import validate_config
from beeray.data.domains import open_domains
from beeray.data.places import check_place, refuse_reading_itself
from beeray.data.preparation import prepare_store
from beeray.errors import ConfigError


@pytest.mark.parametrize("name", ["orders.parquet", "another-store"])
def test_what_is_no_store_is_left_where_it_is(tmp_path: Path, name: str) -> None:
    other = tmp_path / "stores" / name
    other.mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"^data\.store: .*/stores holds '{name}', which is no part of a store, and"):
        check_place(str(tmp_path / "stores"))
    tree = {"name": "a", "data": {"source": "shop", "store": str(tmp_path / "stores")}}
    with pytest.raises(ConfigError, match="give a folder of its own"):  # before anything is read, and without a Ray
        prepare_store(validate_config(tree), [], lambda *_: None)
    assert [one.name for one in tmp_path.rglob("*")] == ["stores", name]


def test_a_store_half_a_store_and_nothing_are_replaced(tmp_path: Path) -> None:
    check_place(str(tmp_path / "none"))
    for name in ("catalog", "users", "tokens", "known_tokens", "catalog/part-00000.parquet"):
        (tmp_path / "store" / name).mkdir(parents=True)
        check_place(str(tmp_path / "store"))
    for name in (".nfs0001", ".gitignore", "users/.DS_Store"):
        (tmp_path / "store" / name).touch()
    (tmp_path / "store" / "meta.json").write_text("{}")
    check_place(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("store", "inside"),
    [
        ("items", True),
        ("items/store", True),
        ("other/../items/store", True),
        ("link/store", True),
        ("items-store", False),
        ("items/_store", False),  # tables are not looked for there
        ("items/../store", False),
    ],
)
def test_a_store_inside_a_tables_folder_would_be_read_as_table(tmp_path: Path, store: str, inside: bool) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "items")
    pq.write_table(pa.table({"item_id": [1], "text": ["a"]}), tmp_path / "items" / "a.parquet")
    pq.write_table(pa.table({"user_id": [1], "item_id": [1]}), tmp_path / "rows.parquet")
    tables = {
        "source": "tables",
        "catalog": {"path": str(tmp_path / "items"), "item_id": "item_id"},
        "interactions": {"path": str(tmp_path / "rows.parquet"), "user_id": "user_id", "item_id": "item_id"},
    }
    (domain,) = open_domains(validate_config({"name": "a", "data": tables}))
    if not inside:
        return refuse_reading_itself(str(tmp_path / store), domain)
    with pytest.raises(ConfigError, match=r"lies inside .*/items, which is read as data\.catalog; give a folder"):
        refuse_reading_itself(str(tmp_path / store), domain)


@pytest.mark.parametrize("catalog", ["shop/catalog", "shop/catalog/*.parquet", "shop/catalog/part-1.parquet"])
def test_a_store_in_the_place_of_the_folder_that_a_table_lies_in_would_remove_it(tmp_path: Path, catalog: str) -> None:
    """`catalog` and `users` are what a store's own folders are called, too."""
    (tmp_path / "shop" / "catalog").mkdir(parents=True)
    pq.write_table(pa.table({"item_id": [1], "text": ["a"]}), tmp_path / "shop" / "catalog" / "part-1.parquet")
    pq.write_table(pa.table({"user_id": [1], "item_id": [1]}), tmp_path / "rows.parquet")
    tables = {
        "source": "tables",
        "catalog": {"path": str(tmp_path / catalog)},
        "interactions": {"path": str(tmp_path / "rows.parquet")},
        "store": str(tmp_path / "shop"),
    }
    config = validate_config({"name": "a", "data": tables})
    with pytest.raises(
        ConfigError, match=r"^data\.store: .*/shop is the folder that .*/shop.* lies in, which is read as"
    ):
        refuse_reading_itself(config.store_path, open_domains(config)[0])
    elsewhere = {**tables, "catalog": {"path": str(tmp_path / "other.parquet")}}
    config = validate_config({"name": "a", "data": elsewhere, "embed": {"catalog": {"path": str(tmp_path / catalog)}}})
    with pytest.raises(ConfigError, match=r"which is read as embed\.catalog, and a store takes the place of"):
        prepare_store(config, [], lambda *_: None)
    assert (tmp_path / "shop" / "catalog" / "part-1.parquet").is_file()


@pytest.mark.parametrize("name", ["catalog/items.parquet", "users/orders.csv", ".git/config", ".env"])
def test_a_folder_that_looks_like_half_a_store_and_holds_something_else_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="which is no part of a store"):
        check_place(str(tmp_path))
