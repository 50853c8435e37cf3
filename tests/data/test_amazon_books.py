"""Amazon Books in its original files: ratings without a line of names, books that are described twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather

from beeray.config import DataConfig
from beeray.data import csv_ranges
from beeray.data.sources import open_source
from beeray.data.tables import Table


def values_of(table: Table) -> list[tuple[Any, ...]]:
    rows = [row for fragment in table.fragments() for batch in fragment.read() for row in batch.to_pylist()]
    return [tuple(value for name, value in row.items() if name != "row") for row in rows]


def write_amazon_books(folder: Path, rows: str) -> Path:
    folder.mkdir()
    (folder / "Books.csv").write_text(rows)
    texts = {"asin": ["0001", "B2", "0001"], "llama31_description": ["A whale.", "A wood.", "Another whale."]}
    feather.write_feather(pa.table(texts), folder / "item_text_descriptions.feather")
    return folder


def test_amazon_books_have_no_line_of_names_and_a_repeated_book_has_its_first_text(tmp_path: Path) -> None:
    rows = "0001,A1,5.0,1123804800\nB2,A1,3.0,1123804801\n0001,A2,4.0,1123804802\n"
    tables = open_source(DataConfig(source="amazon-books", path=str(write_amazon_books(tmp_path / "ab", rows))))
    assert (tables.domain, tables.template) == ("amazon-books", "{llama31_description}")
    assert values_of(tables.interactions) == [
        ("A1", "0001", 5.0, 1123804800),
        ("A1", "B2", 3.0, 1123804801),
        ("A2", "0001", 4.0, 1123804802),
    ]
    assert values_of(tables.catalog) == [("0001", "A whale."), ("B2", "A wood.")]


def test_a_large_file_without_a_line_of_names_is_read_in_ranges_with_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 64)
    lines = [f"B{row:04d},A{row % 7},5.0,{row}" for row in range(50)]
    source = write_amazon_books(tmp_path / "ab", "\n".join(lines) + "\n")
    table = open_source(DataConfig(source="amazon-books", path=str(source))).interactions
    assert len(table.fragments()) > 5
    assert [item for _, item, _, _ in values_of(table)] == [f"B{row:04d}" for row in range(50)]
