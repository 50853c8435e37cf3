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
    for name in ("catalog", "users", "tokens", "known_tokens", ".nfs0001"):
        (tmp_path / "store" / name).mkdir(parents=True)
        check_place(str(tmp_path / "store"))
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
