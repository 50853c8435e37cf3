"""Folders of which a table would be read without some of its rows, or with rows that are long gone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.data.tables import Table
from beeray.errors import DataError

COLUMNS = {"item_id": "item_id", "text": "text"}


def write(path: Path, item: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"item_id": [item], "text": [f"item {item}"]}), path)


def refused(source: str, *expected: str) -> None:
    with pytest.raises(DataError) as caught:
        Table(source, COLUMNS, label="data.catalog").check()
    said = str(caught.value)
    assert [piece for piece in expected if piece not in said] == [] and "\n" not in said


@pytest.mark.parametrize("pattern", ["items", "items/*.parquet", "items/**", "*"])
def test_a_part_behind_a_link_that_leads_nowhere_is_not_left_out(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "items" / "a.parquet", 1)
    write(tmp_path / "fetched.bin" / "b.parquet", 2)
    (tmp_path / "items" / "b.parquet").symlink_to(tmp_path / "fetched.bin" / "b.parquet")
    source = str(tmp_path / pattern)
    if pattern != "*":
        assert len(Table(source, COLUMNS).fragments()) == 2
    (tmp_path / "fetched.bin" / "b.parquet").unlink()
    link = f"{tmp_path}/items/b.parquet: is a link to {tmp_path}/fetched.bin/b.parquet, which is not there"
    refused(source, link, "so data.catalog would lack a part; fetch or mount what it links to, or remove the link")
    (tmp_path / "items" / "b.parquet").rename(tmp_path / "items" / "_b.parquet")  # passed over anyway
    if pattern == "items":
        assert len(Table(source, COLUMNS).fragments()) == 1


@pytest.mark.parametrize(("log", "kind"), [("_delta_log", "a Delta table"), (".hoodie", "a Hudi table")])
def test_a_table_whose_log_tells_which_files_count_is_not_read_with_all(tmp_path: Path, log: str, kind: str) -> None:
    write(tmp_path / "items" / "a.parquet", 1)
    (tmp_path / "items" / log).mkdir()
    refused(str(tmp_path / "items"), f"/items: data.catalog is {kind} ({log})", "export what it holds now as parquet")


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_csv_that_is_parted_by_another_sign_is_told_as_that(tmp_path: Path, sign: str) -> None:
    (tmp_path / "items.csv").write_text(f"item_id{sign}text\n1{sign}a\n")
    refused(str(tmp_path / "items.csv"), f", or write it with commas: its columns are parted by {sign!r}")
    (tmp_path / "other.csv").write_text("sku,text\n1,a\n")
    refused(str(tmp_path / "other.csv"), "its columns are sku, text; map the column in the config")
