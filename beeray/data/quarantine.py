"""Rows of a catalog that cannot be embedded: found, named, set aside. They never stop a night's work.

| reason | the row |
|---|---|
| `null_item_id` | has no id, or an empty one |
| `broken_item_id` | has an id that is not UTF-8 |
| `null_text` | has null in every column of the template |
| `empty_text` | has nothing but white space in them |
| `broken_unicode` | has a column that is not UTF-8 |
| `too_long_text` | renders to more characters than `embed.max_text_chars` |
| `repeated_item_id` | has the id of an earlier row and another text (the earlier one counts) |
| `not_finite_vector` | got a vector with NaN or infinity in it, or too large a number for float16 |
"""

from __future__ import annotations

import string

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.data.catalog import content_hash, normalize_ids, one_array, render
from beeray.data.fragments import FRAGMENT_SHIFT, ROW
from beeray.data.slices import slices
from beeray.errors import DataError

REASONS = (
    "null_item_id",
    "broken_item_id",
    "null_text",
    "empty_text",
    "broken_unicode",
    "too_long_text",
    "repeated_item_id",
    "not_finite_vector",
)
READING_RULES = 3
"""Version of the rules by which a catalog's ids are read and rows set aside; a publication by others is made anew."""
SHOWN_BYTES = 200
ERROR_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("fragment", pa.int64()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("text_start", pa.string()),
    ]
)
Mask = NDArray[np.bool_]


def sort_out(table: pa.Table, template: str, max_text_chars: int) -> tuple[pa.Table, pa.Table]:
    """Part a batch of the catalog into rows that can be embedded and rows that cannot.

    However much text it holds: it is taken in slices.

    Args:
        table: `item_id`, the template's columns and `row`; text columns may hold bytes that are no UTF-8.

    Returns:
        item_id, text, content_hash, row of the good rows; and `ERROR_SCHEMA` of the others.
    """
    parts = [_sort_out(part, template, max_text_chars) for part in slices(table)]
    if not parts:
        return _sort_out(table, template, max_text_chars)
    return pa.concat_tables([good for good, _ in parts]), pa.concat_tables([bad for _, bad in parts])


def _sort_out(table: pa.Table, template: str, max_text_chars: int) -> tuple[pa.Table, pa.Table]:
    reasons = np.full(table.num_rows, "", dtype=object)
    table, broken = _without_broken_text(table)
    reasons[broken.pop("item_id", np.zeros(table.num_rows, dtype=bool))] = "broken_item_id"
    _mark(reasons, _without_id(one_array(table["item_id"])), "null_item_id")
    null = np.ones(table.num_rows, dtype=bool)
    for name in {field for _, field, _, _ in string.Formatter().parse(template) if field}:
        null &= ~one_array(table[name]).is_valid().to_numpy(zero_copy_only=False)
    for mask in broken.values():
        _mark(reasons, mask, "broken_unicode")
    texts = render(template, table, pa.large_string())
    _mark(reasons, null, "null_text")
    _mark(reasons, pc.equal(texts, "").to_numpy(zero_copy_only=False), "empty_text")
    _mark(reasons, _longer_than(texts, max_text_chars), "too_long_text")
    bad = np.flatnonzero(reasons != "")
    kept = pa.array(reasons == "")
    good_texts = texts.filter(kept).cast(pa.string())
    good = pa.table(
        {
            "item_id": one_array(table["item_id"]).filter(kept),
            "text": good_texts,
            "content_hash": content_hash(good_texts),
            ROW: one_array(table[ROW]).filter(kept),
        }
    )
    starts = pc.utf8_slice_codeunits(texts, 0, SHOWN_BYTES).cast(pa.string())
    refused = pa.table({"item_id": table["item_id"], "text": starts, ROW: table[ROW]}).take(pa.array(bad))
    return good, error_rows(refused, reasons[bad])


def error_rows(table: pa.Table, reasons: NDArray[np.object_] | str) -> pa.Table:
    """Rows as the errors table shows them: id, place, reason and the text's beginning.

    The place is the number of a fragment (file, or row group of a parquet file, in the catalog's order, from 0)
    and of the row within it.

    Args:
        table: item_id, text, row; null where it is not known.
        reasons: of each row, or of all.
    """
    names = [reasons] * table.num_rows if isinstance(reasons, str) else [str(reason) for reason in reasons]
    places = one_array(table[ROW])
    columns = [
        one_array(table["item_id"]).cast(pa.string()),
        pc.shift_right(places, FRAGMENT_SHIFT),
        pc.bit_wise_and(places, (1 << FRAGMENT_SHIFT) - 1),
        pa.array(names, pa.string()),
        pc.utf8_slice_codeunits(one_array(table["text"]), 0, SHOWN_BYTES).cast(pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=ERROR_SCHEMA)


def first_of_each(table: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """Distinct items of some rows, sorted by id; the first row of an id counts.

    Args:
        table: item_id, text, content_hash, row: all rows of these ids.

    Returns:
        distinct rows; rows that repeat an id with another text; how many repeated an id with the same text.
    """
    table = table.sort_by([("item_id", "ascending"), (ROW, "ascending")])
    if table.num_rows < 2:
        return table, table.slice(0, 0), 0
    codes = pc.dictionary_encode(one_array(table["item_id"])).indices.to_numpy()
    first = np.concatenate([[True], codes[1:] != codes[:-1]])
    if first.all():
        return table, table.slice(0, 0), 0
    firsts = np.flatnonzero(first)[np.cumsum(first) - 1]
    hashes = one_array(table["content_hash"])
    same = pc.equal(hashes, hashes.take(pa.array(firsts))).to_numpy(zero_copy_only=False)
    repeated = table.filter(pa.array(~first & ~same))
    return table.filter(pa.array(first)), repeated, int((~first & same).sum())


def _without_broken_text(table: pa.Table) -> tuple[pa.Table, dict[str, Mask]]:
    """The table with "" where a string is not UTF-8, and which rows of which columns those were."""
    broken: dict[str, Mask] = {}
    for at, name in enumerate(table.column_names):
        column = one_array(table[name])
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        column = _plain(column)
        if name == "item_id":
            column = _own_type(column)
        kind = column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)):
            _check_castable(name, kind)
            table = table.set_column(at, name, column)
            continue
        small_id = name == "item_id" and not pa.types.is_large_string(kind)
        target = pa.string() if small_id else pa.large_string()  # one text may be as long as `string` holds in all
        raw = column.cast(pa.large_binary())
        try:
            column = raw.cast(pa.large_string()).cast(target)
        except pa.ArrowInvalid:
            broken[name] = np.array([one is not None and not _is_utf8(one) for one in raw.to_pylist()], dtype=bool)
            raw = pc.if_else(pa.array(broken[name]), pa.scalar(b"", pa.large_binary()), raw)
            column = raw.cast(pa.large_string()).cast(target)
        table = table.set_column(at, name, column)
    return table, broken


def _plain(column: pa.Array) -> pa.Array:
    """Text of views or of fixed size as plain text: Arrow has no `take` for views."""
    if pa.types.is_string_view(column.type):
        column = column.view(pa.binary_view()).cast(pa.binary()).view(pa.string())  # a cast to text would check it
    elif pa.types.is_binary_view(column.type) or pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    return column


def _without_id(ids: pa.Array) -> Mask:
    """Which ids are null, or empty texts."""
    null = ids.is_null()
    if not pa.types.is_integer(ids.type):
        null = pc.or_(null, pc.fill_null(pc.equal(ids, ""), False))
    mask: Mask = null.to_numpy(zero_copy_only=False)
    return mask


def _check_castable(name: str, kind: pa.DataType) -> None:
    try:
        pa.array([], kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(
            f"catalog {name}: is of type {kind}, which has no text; make it a string or a number, "
            "or leave it out of the template"
        ) from error


def _own_type(ids: pa.Array) -> pa.Array:
    """Ids in a type of their own that every reader knows; raises DataError for other than text and integers."""
    kind = ids.type
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        return ids
    return normalize_ids(ids, "catalog item_id")


def _longer_than(texts: pa.Array, max_chars: int) -> Mask:
    """Which texts have more characters; only where the offsets do not tell (a character has 1 to 4 bytes) counted."""
    num_bytes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    longer = num_bytes > 4 * max_chars
    unsure = np.flatnonzero((num_bytes > max_chars) & ~longer)
    longer[unsure] = pc.utf8_length(texts.take(pa.array(unsure))).to_numpy(zero_copy_only=False) > max_chars
    return longer


def _mark(reasons: NDArray[np.object_], mask: Mask, reason: str) -> None:
    reasons[mask & (reasons == "")] = reason


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
