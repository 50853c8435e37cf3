"""Slices of a table: all rows in order, none too long or too heavy, whatever the text's type."""

from __future__ import annotations

import pyarrow as pa
import pytest

from beeray.data.slices import slices

TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]


def table(lengths: list[int | None], kind: pa.DataType) -> pa.Table:
    texts = pa.array([None if one is None else "x" * one for one in lengths])
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    rows = pa.table({"text": texts, "row": list(range(len(lengths)))})
    return pa.concat_tables([rows.slice(0, 2), rows.slice(2)])


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_slices_hold_so_many_rows_and_bytes_and_a_longer_row_is_alone(kind: pa.DataType) -> None:
    given = table([3, 4, 4, 50, 1, None, 1, 1, 9], kind)
    found = [one["row"].to_pylist() for one in slices(given, max_rows=3, max_bytes=10)]
    assert found == [[0, 1], [2], [3], [4, 5, 6], [7, 8]]
    assert pa.concat_tables(list(slices(given, 3, 10))).equals(given)


def test_rows_without_text_are_cut_by_number_and_no_rows_are_no_slice() -> None:
    numbers = pa.table({"row": list(range(7))})
    assert [one.num_rows for one in slices(numbers, 3, 1)] == [3, 3, 1]
    assert list(slices(numbers.slice(0, 0), 3, 1)) == []
