"""Bad rows of a catalog: each reason by hand, and good rows that come out as they went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beeray.data.catalog import content_hash, render
from beeray.data.fragments import FRAGMENT_SHIFT
from beeray.data.quarantine import ERROR_SCHEMA, REASONS, SHOWN_BYTES, error_rows, first_of_each, sort_out
from beeray.errors import DataError

BROKEN = b"caf\xe9"
LIMIT = 40


def unchecked(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Text that nobody has checked, as parquet and CSV readers may give it."""
    if kind == pa.string_view():
        return pa.array(values, pa.binary_view()).view(kind)
    return pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary()).view(kind)


def catalog(ids: Any, *, first_row: int = 0, **columns: Any) -> pa.Table:
    rows = pa.array(np.arange(first_row, first_row + len(ids), dtype=np.int64))
    return pa.table({"item_id": ids, **columns, "row": rows})


def reasons(table: pa.Table, template: str = "{title}") -> dict[int, str]:
    """Row → why it was refused; every row must be in one of the two tables, and good ones in order."""
    good, bad = sort_out(table, template, LIMIT)
    assert bad.schema == ERROR_SCHEMA
    found = dict(zip(bad["row"].to_pylist(), bad["reason"].to_pylist(), strict=True))
    assert set(found.values()) <= set(REASONS)
    assert good["row"].to_pylist() == [row for row in table["row"].to_pylist() if row not in found]
    assert good["content_hash"].combine_chunks().equals(content_hash(good["text"].combine_chunks()))
    return found


def test_good_rows_come_out_as_they_went_in_and_in_their_order() -> None:
    table = catalog(["b", "a", "c"], first_row=5, title=[" one ", None, "three"], genres=["x", "y\n", ""])
    good, bad = sort_out(table, "{title}: {genres}", LIMIT)
    assert bad.num_rows == 0
    assert good["item_id"].to_pylist() == ["b", "a", "c"]
    assert good["text"].to_pylist() == ["one : x", ": y", "three:"]
    assert good["text"].combine_chunks().equals(render("{title}: {genres}", table))
    assert good["row"].to_pylist() == [5, 6, 7]
    assert good.column_names == ["item_id", "text", "content_hash", "row"]


def test_a_row_without_an_id_is_refused() -> None:
    assert reasons(catalog(["a", None, "c"], title=["x", "y", "z"])) == {1: "null_item_id"}
    assert reasons(catalog(pa.array([None, 2], pa.int64()), title=["x", "y"])) == {0: "null_item_id"}
    assert reasons(catalog(pa.nulls(2), title=["x", "y"])) == {0: "null_item_id", 1: "null_item_id"}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_an_empty_id_is_no_id_and_a_broken_one_stays_a_broken_one(kind: pa.DataType) -> None:
    values = [b"", BROKEN, b"c", None]
    ids = pa.array(values, kind) if kind == pa.binary() else unchecked(values, kind)
    found = reasons(catalog(ids, title=["w", "x", "y", "z"]))
    assert found == {0: "null_item_id", 1: "broken_item_id", 3: "null_item_id"}


def test_a_column_called_text_may_be_the_text() -> None:
    table = catalog(["a", "b", None, "d"], text=["x", None, "z", "y" * 99])
    assert reasons(table, "{text}") == {1: "null_text", 2: "null_item_id", 3: "too_long_text"}
    good, bad = sort_out(table, "{text}", LIMIT)
    assert good.column_names == ["item_id", "text", "content_hash", "row"]
    assert good["text"].to_pylist() == ["x"]
    assert bad["text_start"].to_pylist() == ["", "z", "y" * 99]
    _, bad = sort_out(catalog(["a"], text=["not this"], title=[" "]), "{title}", LIMIT)
    assert bad["text_start"].to_pylist() == [""]


def test_null_in_one_column_leaves_the_others_text() -> None:
    table = catalog(["a", "b", "c"], title=["x", None, None], genres=[None, "g", None])
    assert reasons(table, "{title}. {genres}") == {2: "null_text"}
    good, _ = sort_out(table, "{title}. {genres}", LIMIT)
    assert good["text"].to_pylist() == ["x.", ". g"]


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u00a0", "\u3000"])
def test_white_space_is_no_text(blank: str) -> None:
    table = catalog(["a", "b", "c"], title=[blank, blank, blank], genres=[blank, None, "g"])
    assert reasons(table, "{title}. {genres}") == {0: "empty_text", 1: "empty_text"}


def test_the_template_s_own_words_are_no_text() -> None:
    assert reasons(catalog(["a"], title=[" "]), "product: {title}!") == {0: "empty_text"}


def test_the_id_may_be_part_of_the_text() -> None:
    table = catalog(pa.array([7, 8, None]), title=["x", None, None])
    assert reasons(table, "{item_id}. {title}") == {2: "null_item_id"}
    assert sort_out(table, "{item_id}. {title}", LIMIT)[0]["text"].to_pylist() == ["7. x", "8."]
    assert sort_out(table, "{item_id}", LIMIT)[0]["text"].to_pylist() == ["7", "8"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_a_text_that_is_no_utf8_is_refused_alone(kind: pa.DataType) -> None:
    values = [b"ok", BROKEN, None, "ünï".encode(), b"\xff\xfe"]
    is_text = kind in (pa.string(), pa.large_string(), pa.string_view())
    titles = unchecked(values, kind) if is_text else pa.array(values, kind)
    table = catalog(list("abcde"), title=titles)
    assert reasons(table) == {1: "broken_unicode", 2: "null_text", 4: "broken_unicode"}
    good, _ = sort_out(table, "{title}", LIMIT)
    assert good["text"].to_pylist() == ["ok", "ünï"]
    assert good["text"].type == pa.string()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_dictionary_may_hold_broken_text(kind: pa.DataType) -> None:
    words = unchecked([b"ok", BROKEN, b"never used \xe9"], kind)
    titles = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), words)
    assert reasons(catalog(list("abcd"), title=titles)) == {1: "broken_unicode", 2: "null_text"}


def test_text_of_fixed_size_or_binary_views_is_text() -> None:
    for kind in (pa.binary(2), pa.binary_view()):
        table = catalog(["a", "b", "c"], title=pa.array([b"ok", b"\xff\xff", None], kind))
        assert reasons(table) == {1: "broken_unicode", 2: "null_text"}


def test_broken_text_in_one_of_several_columns_refuses_the_row_and_shows_the_rest() -> None:
    titles = unchecked([b"fine", b"title"], pa.string())
    genres = unchecked([b"fine", BROKEN], pa.string())
    _, bad = sort_out(catalog(["a", "b"], title=titles, genres=genres), "{title}. {genres}", LIMIT)
    assert bad.to_pylist() == [
        {"item_id": "b", "fragment": 0, "row": 1, "reason": "broken_unicode", "text_start": "title."}
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_an_id_that_is_no_utf8_is_refused(kind: pa.DataType) -> None:
    table = catalog(unchecked([b"a", BROKEN, None], kind), title=["x", "y", "z"])
    assert reasons(table) == {1: "broken_item_id", 2: "null_item_id"}
    assert sort_out(table, "{title}", LIMIT)[0]["item_id"].to_pylist() == ["a"]


def test_length_is_counted_in_characters_and_the_limit_itself_is_allowed() -> None:
    table = catalog(["a", "b", "c"], title=["é" * LIMIT, "é" * (LIMIT + 1), " " * 99 + "x"])
    assert reasons(table) == {1: "too_long_text"}


def test_what_is_wrong_with_the_id_is_said_before_what_is_wrong_with_the_text() -> None:
    ids = unchecked([BROKEN, None, BROKEN, b"d", b"e"], pa.string())
    titles = unchecked([None, BROKEN, BROKEN, BROKEN, BROKEN], pa.string())
    genres = pa.array(["x" * 99, "x", "x", "x" * 99, None])
    assert reasons(catalog(ids, title=titles, genres=genres), "{title}{genres}") == {
        0: "broken_item_id",
        1: "null_item_id",
        2: "broken_item_id",
        3: "broken_unicode",
        4: "broken_unicode",
    }


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (pa.array([1, 2], pa.int8()), pa.int8()),
        (pa.array([1, 2], pa.int32()), pa.int32()),
        (pa.array([1, 2], pa.int64()), pa.int64()),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.uint64()),
        (pa.array(["1", "2"], pa.string()), pa.string()),
        (pa.array(["1", "2"], pa.large_string()), pa.large_string()),
        (pa.array(["1", "2"], pa.string_view()), pa.string()),
        (pa.array([b"1", b"2"], pa.binary()), pa.string()),
        (pa.array(["1", "2"]).dictionary_encode(), pa.string()),
        (pa.array(["1", "2"], pa.large_string()).dictionary_encode(), pa.large_string()),
        (pa.array([1, 2], pa.uint64()).dictionary_encode(), pa.uint64()),
    ],
)
def test_ids_keep_their_type_with_and_without_bad_rows(ids: pa.Array, kept: pa.DataType) -> None:
    for titles, expected in ((["x", "y"], 2), (["x", None], 1), ([None, None], 0)):
        good, bad = sort_out(catalog(ids, title=titles), "{title}", LIMIT)
        assert good["item_id"].type == kept
        plain = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
        assert good["item_id"].cast(pa.string()).to_pylist() == plain.cast(pa.string()).to_pylist()[:expected]
        assert bad.num_rows == 2 - expected


@pytest.mark.parametrize("ids", [pa.array([1.0, 2.0]), pa.array([True, False]), pa.array([[1], [2]])])
def test_ids_that_are_neither_text_nor_integers_are_the_user_s_error(ids: pa.Array) -> None:
    with pytest.raises(DataError, match=r"catalog item_id: ids are of type .*; they must be strings or integers"):
        sort_out(catalog(ids, title=["x", "y"]), "{title}", LIMIT)


@pytest.mark.parametrize(
    "column", [pa.array([["a"], ["b"]]), pa.array([{"a": 1}, {"a": 2}]), pa.array([["a"], []]).slice(2)]
)
def test_a_column_that_has_no_text_is_the_user_s_error_and_named(column: pa.Array) -> None:
    with pytest.raises(DataError, match=r"catalog genres: is of type (list|struct)<.* leave it out of the template"):
        sort_out(catalog(["a", "b"][: len(column)], title=["x", "y"][: len(column)], genres=column), "{genres}", LIMIT)


def test_numbers_and_dates_are_text_and_their_nulls_are_null() -> None:
    for values, first in (([1, None], "1"), ([1.5, None], "1.5"), ([True, None], "true")):
        table = catalog(["a", "b"], title=pa.array(values))
        assert reasons(table) == {1: "null_text"}
        assert sort_out(table, "{title}", LIMIT)[0]["text"].to_pylist() == [first]


def test_columns_of_several_chunks_are_read_as_one() -> None:
    parts = [catalog(["a", None], title=["x", "y"]), catalog(["c"], first_row=2, title=pa.array([None], pa.string()))]
    assert reasons(pa.concat_tables(parts)) == {1: "null_item_id", 2: "null_text"}


def test_no_rows_are_neither_good_nor_bad() -> None:
    table = catalog(pa.array(["a"]).dictionary_encode(), title=["x"])
    for empty in (table.slice(0, 0), table.schema.empty_table()):
        good, bad = sort_out(empty, "{title}", LIMIT)
        assert (good.num_rows, bad.num_rows) == (0, 0)
        assert good["item_id"].type == pa.string()
        assert bad.schema == ERROR_SCHEMA


def test_the_errors_table_tells_the_place_and_the_beginning_of_the_text() -> None:
    table = catalog(pa.array([7]), first_row=(3 << FRAGMENT_SHIFT) + 12, title=["é" * 999])
    _, bad = sort_out(table, "{title}", LIMIT)
    assert bad.to_pylist() == [
        {"item_id": "7", "fragment": 3, "row": 12, "reason": "too_long_text", "text_start": "é" * SHOWN_BYTES}
    ]


def dealt(ids: Any, texts: list[str], rows: list[int]) -> pa.Table:
    column = pa.array(texts)
    return pa.table({"item_id": ids, "text": column, "content_hash": content_hash(column), "row": pa.array(rows)})


def test_the_earliest_row_of_an_id_counts_and_items_are_sorted() -> None:
    table = dealt(["b", "a", "b", "c", "b", "a"], ["b1", "a1", "b2", "c1", "b1", "a0"], [10, 12, 11, 13, 14, 9])
    items, repeated, num_same = first_of_each(table)
    assert items["item_id"].to_pylist() == ["a", "b", "c"]
    assert items["text"].to_pylist() == ["a0", "b1", "c1"]
    assert sorted(zip(repeated["item_id"].to_pylist(), repeated["row"].to_pylist(), strict=True)) == [
        ("a", 12),
        ("b", 11),
    ]
    assert num_same == 1
    assert error_rows(repeated, "repeated_item_id")["reason"].to_pylist() == ["repeated_item_id"] * 2


def test_a_row_that_repeats_the_second_text_of_an_id_is_refused_too() -> None:
    _, repeated, num_same = first_of_each(dealt(["a", "a", "a"], ["x", "y", "y"], [0, 1, 2]))
    assert (repeated["row"].to_pylist(), num_same) == ([1, 2], 0)


def test_integer_ids_are_sorted_as_numbers_and_texts_as_texts() -> None:
    numbers = first_of_each(dealt(pa.array([10, 9, -1, 9], pa.int32()), ["x", "y", "z", "y"], [0, 1, 2, 3]))
    assert numbers[0]["item_id"].to_pylist() == [-1, 9, 10]
    assert numbers[0]["item_id"].type == pa.int32()
    assert (numbers[1].num_rows, numbers[2]) == (0, 1)
    texts = first_of_each(dealt(["10", "9", "-1"], ["x", "y", "z"], [0, 1, 2]))
    assert texts[0]["item_id"].to_pylist() == ["-1", "10", "9"]


def test_the_order_of_the_rows_that_come_in_changes_nothing() -> None:
    draw = np.random.default_rng(0)
    ids = [f"i{number}" for number in draw.integers(0, 60, 200)]
    table = dealt(ids, [f"text {number}" for number in draw.integers(0, 2, 200)], list(range(200)))
    expected = first_of_each(table)
    for _ in range(5):
        found = first_of_each(table.take(pa.array(draw.permutation(200))))
        assert found[0].equals(expected[0])
        assert found[1].equals(expected[1])
        assert found[2] == expected[2]
    assert expected[0].num_rows + expected[1].num_rows + expected[2] == 200


@pytest.mark.parametrize("rows", [0, 1])
def test_none_or_one_row_repeats_nothing(rows: int) -> None:
    items, repeated, num_same = first_of_each(dealt(["a"], ["x"], [0]).slice(0, rows))
    assert (items.num_rows, repeated.num_rows, num_same) == (rows, 0, 0)
    assert error_rows(repeated, "repeated_item_id").schema == ERROR_SCHEMA


def test_megabyte_rows_of_more_than_arrow_s_string_holds_are_sorted_out() -> None:
    """2,208 rows that share 16 texts of 1 MiB: 2.2 GiB as one string array; among them a broken one and good ones."""
    texts = [b"x" * (1 << 20)] * 13 + [b"\xff" * 1000, b"good", b"y" * 10_000_000]
    chunk, ids = pa.array(texts, pa.binary()), pa.array([f"a{at}" for at in range(16)])
    times = 138
    table = pa.table(
        {
            "item_id": pa.chunked_array([ids] * times),
            "title": pa.chunked_array([chunk] * times),
            "row": pa.chunked_array([pa.array(range(at * 16, at * 16 + 16), pa.int64()) for at in range(times)]),
        }
    )
    good, bad = sort_out(table, "{title}", 100_000)
    assert good["row"].to_pylist() == [at * 16 + 14 for at in range(times)]
    assert set(good["text"].to_pylist()) == {"good"}
    broken = [at % 16 == 13 for at in bad["row"].to_pylist()]
    assert bad.num_rows == 15 * times and sum(broken) == times
    assert bad["reason"].to_pylist() == ["broken_unicode" if one else "too_long_text" for one in broken]
    assert set(bad["text_start"].to_pylist()) == {"", "x" * SHOWN_BYTES, "y" * SHOWN_BYTES}
