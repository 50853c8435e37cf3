"""Texts, hashes and ids of a catalog, batch by batch."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from beeray.data.catalog import DuplicateItemError, catalog_texts, content_hash, index_catalog, normalize_ids, render
from beeray.data.tables import FRAGMENT_ROWS, Table, located
from beeray.errors import DataError, RowError


def raw(**columns: list[object]) -> pa.Table:
    """A raw batch with rows numbered from 0."""
    table = pa.table(columns)
    return table.append_column("row", pa.array(np.arange(table.num_rows, dtype=np.int64)))


def test_a_template_joins_columns_and_takes_null_for_nothing() -> None:
    table = raw(title=["Emma", "Dune", None, "  ", None], year=[1815, None, 1900, None, None])
    texts = render("{title} ({year})", table)
    assert texts.to_pylist() == ["Emma (1815)", "Dune ()", "(1900)", "", ""]


def test_a_template_may_repeat_a_column_and_keep_braces_and_inner_space() -> None:
    assert render("{{{a}}} {a}  -", raw(a=["x", "y"])).to_pylist() == ["{x} x  -", "{y} y  -"]


def test_columns_of_dictionaries_and_numbers_become_text() -> None:
    table = pa.table({"a": pa.array(["x", None, "x"]).dictionary_encode(), "b": [1.5, 2.0, None]})
    assert render("{a}{b}", table).to_pylist() == ["x1.5", "2", "x"]


def test_a_column_in_several_chunks_is_rendered_as_one() -> None:
    table = pa.table({"a": pa.chunked_array([["x"], [], ["y", "z"]])})
    assert render("<{a}>", table).to_pylist() == ["<x>", "<y>", "<z>"]


def test_the_content_hash_is_the_start_of_the_texts_sha256() -> None:
    hashes = content_hash(pa.array(["bee", "", "🐝"]))
    assert hashes.type == pa.binary(16)
    assert hashes.to_pylist() == [hashlib.sha256(text.encode()).digest()[:16] for text in ("bee", "", "🐝")]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([1, 2], pa.int8()), pa.int64()),
        (pa.array([1, 2], pa.uint32()), pa.int64()),
        (pa.array(["a", "b"], pa.large_string()), pa.string()),
        (pa.array(["a", "b"], pa.string_view()), pa.string()),
        (pa.array(["a", "b"]).dictionary_encode(), pa.string()),
        (pa.chunked_array([[1], [2]], pa.int32()), pa.int64()),
        (pa.chunked_array([], pa.int32()), pa.int64()),
        (pa.nulls(2), pa.string()),
    ],
)
def test_ids_become_one_array_of_int64_or_text(ids: pa.Array, expected: pa.DataType) -> None:
    normal = normalize_ids(ids, "catalog item_id")
    assert isinstance(normal, pa.Array)
    assert normal.type == expected
    assert normal.to_pylist() == ids.to_pylist()


@pytest.mark.parametrize("ids", [pa.array([1.0]), pa.array([True]), pa.array([b"a"]), pa.array([[1]])])
def test_ids_of_another_type_are_refused(ids: pa.Array) -> None:
    with pytest.raises(DataError, match=r"catalog item_id: ids are of type .*; they must be strings or integers"):
        normalize_ids(ids, "catalog item_id")


def test_unsigned_ids_beyond_int64_are_a_users_error() -> None:
    with pytest.raises(DataError, match="catalog item_id"):
        normalize_ids(pa.array([2**63 + 1], pa.uint64()), "catalog item_id")


def test_rows_without_text_are_dropped_or_refused() -> None:
    table = raw(item_id=[1, 2, 3], text=["a", None, "b"])
    kept = catalog_texts(table, "{text}", "drop")
    assert kept["item_id"].to_pylist() == [1, 3]
    assert kept["row"].to_pylist() == [0, 2]
    with pytest.raises(DataError, match="item_id 2 has null or empty text"):
        catalog_texts(table, "{text}", "error")


@pytest.mark.parametrize("ids", [["a", None], ["a", ""]])
def test_a_null_or_empty_id_is_refused_with_its_row(ids: list[object]) -> None:
    table = pa.table({"item_id": ids, "text": ["x", "y"], "row": [(3 << 40) + 6, (3 << 40) + 7]})
    with pytest.raises(RowError, match="catalog item_id: null or empty; every item needs an id") as caught:
        catalog_texts(table, "{text}", "error")
    assert caught.value.row == (3 << 40) + 7
    assert pickle.loads(pickle.dumps(caught.value)).row == caught.value.row  # it comes from a task


@pytest.mark.parametrize("ids", [[1, 2, 3, None, 5], [1, 2, 3, 4, 5]])
def test_what_is_wrong_with_a_row_is_told_with_its_file_and_its_number_there(tmp_path: Path, ids: list[Any]) -> None:
    texts = ["x", "x", "x", None if ids[3] else "x", "x"]
    pq.write_table(pa.table({"item_id": [7], "text": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"item_id": ids, "text": texts}), tmp_path / "1.parquet", row_group_size=2)
    table = Table(str(tmp_path), {"item_id": "item_id", "text": "text"})
    with pytest.raises(DataError, match=r"1\.parquet, row 4: catalog (text: item_id 4|item_id: null)"), located(table):
        for fragment in table.fragments():
            for batch in fragment.read():
                catalog_texts(batch, "{text}", "error")


def test_rows_of_a_table_in_memory_are_counted_over_all_its_pieces() -> None:
    table = Table(pa.table({"item_id": pa.array(range(FRAGMENT_ROWS + 9))}), {"item_id": "item_id"})
    assert table.place_of((1 << 40) + 4) == f"the table in memory, row {FRAGMENT_ROWS + 5:,}"


def listing(ids: list[object], texts: list[str], rows: list[int]) -> pa.Table:
    return pa.table({"item_id": ids, "content_hash": content_hash(pa.array(texts)), "row": rows})


def test_the_index_keeps_the_first_row_of_every_id_in_the_tables_order() -> None:
    index = index_catalog(listing(["c", "a", "b", "a"], ["C", "A", "B", "A"], [5, 9, 2, 0]), num_rows=6)
    assert index.item_ids.to_pylist() == ["a", "b", "c"]
    assert index.rows.tolist() == [0, 2, 5]
    assert index.dropped == {"items_without_text": 2, "items_repeated": 1}


def test_an_id_with_two_texts_is_refused_with_the_places_of_both() -> None:
    with pytest.raises(DuplicateItemError, match="catalog item_id: 'a' appears twice with two texts") as caught:
        index_catalog(listing(["b", "a", "c", "a"], ["B", "A", "C", "other"], [0, 1, 2, 3]), num_rows=4)
    assert caught.value.item_id == "a"
    assert caught.value.places == (1, 3)


def test_two_ids_may_share_a_text() -> None:
    assert index_catalog(listing([1, 2], ["same", "same"], [0, 1]), num_rows=2).item_ids.to_pylist() == [1, 2]


def test_a_catalog_without_any_text_is_refused_with_the_rows_read() -> None:
    with pytest.raises(DataError, match=r"no item has text \(7 rows read\)"):
        index_catalog(
            listing([], [], []).cast(
                pa.schema([("item_id", pa.string()), ("content_hash", pa.binary(16)), ("row", pa.int64())])
            ),
            7,
        )
