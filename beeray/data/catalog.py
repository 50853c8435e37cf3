"""The catalog: from raw columns to text, content hash and checked ids."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.data.fragments import ROW
from beeray.errors import DataError, RowError

HASH_BYTES = 16
SHOWN = 60


@dataclass(frozen=True)
class CatalogIndex:
    """Ids of the whole catalog, without texts.

    Attributes:
        item_ids: distinct ids in the order of the table, string or int64.
        rows: int64, row number of each (its first, where a row was repeated).
        hashes: of each one's text, fixed-size binary.
        dropped: what was dropped, rule → rows.
    """

    item_ids: pa.Array
    rows: NDArray[np.int64]
    hashes: pa.Array
    dropped: dict[str, int]


def normalize_ids(ids: pa.ChunkedArray | pa.Array, where: str, *, as_text: bool = False) -> pa.Array:
    """Ids as one array of int64 or string; an empty text, as of an empty field of a CSV, is null.

    Args:
        as_text: make strings of integers, too.

    Raises:
        DataError: another type.
    """
    if as_text:
        return normalize_ids(ids, where).cast(pa.string())
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], ids.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_integer(array.type):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{where}: an id does not fit 64 bits with sign ({error}); give ids as strings") from error
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        _require_utf8(array, f"{where}: an id")
        return _null_where_empty(array.cast(pa.string()))
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    raise DataError(f"{where}: ids are of type {array.type}; they must be strings or integers: cast the column")


def _null_where_empty(ids: pa.Array) -> pa.Array:
    empty = pc.equal(ids, "")
    return pc.if_else(empty, pa.scalar(None, pa.string()), ids) if pc.any(empty).as_py() else ids


def _require_utf8(texts: pa.Array, what: str) -> None:
    """Parquet and feather hand over text that nobody has checked."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{what} is no UTF-8; write the table with texts in UTF-8") from error


def render(template: str, table: pa.Table, kind: pa.DataType | None = None) -> pa.Array:
    """Texts of a batch of items: the template with each row's columns put in, null as nothing.

    Args:
        template: e.g. `"{title}. {genres}"`.
        table: holds the template's columns, (items,).
        kind: of the texts, string unless given; large_string where they may be more than 2 GiB.

    Returns:
        texts (items,), white space at the ends removed; "" where every column is null or blank.
    """
    kind = kind or pa.string()
    pieces: list[pa.Array | str] = []
    columns: list[pa.Array] = []
    for literal, field, _, _ in string.Formatter().parse(template):
        if literal:
            pieces.append(literal)
        if field is not None:
            column = pc.fill_null(pc.cast(one_array(table[field]), kind), "")
            columns.append(column)
            pieces.append(column)
    arrays = [pa.scalar(piece, kind) if isinstance(piece, str) else piece for piece in pieces]
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*arrays, pa.scalar("", kind)))
    blank = pc.equal(pc.utf8_trim_whitespace(columns[0]), "")
    for column in columns[1:]:
        blank = pc.and_(blank, pc.equal(pc.utf8_trim_whitespace(column), ""))
    return pc.if_else(blank, pa.scalar("", kind), text)


def content_hash(texts: pa.Array) -> pa.Array:
    """First 16 bytes of each text's SHA-256; fixed-size binary (items,)."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts.to_pylist())
    return pa.array([hashlib.sha256(text).digest()[:HASH_BYTES] for text in encoded], pa.binary(HASH_BYTES))


def catalog_texts(table: pa.Table, template: str, empty_text: str, *, ids_as_text: bool = False) -> pa.Table:
    """A raw batch as (item_id, text, content_hash, row).

    Args:
        table: raw catalog columns and `row`.
        empty_text: `error`, or `drop` to leave out rows without text.
        ids_as_text: make strings of integer ids.

    Raises:
        RowError: a null or empty id, or empty text.
        DataError: ids or texts that are no UTF-8, or of a type that is none.
    """
    item_ids = normalize_ids(table["item_id"], "catalog item_id", as_text=ids_as_text)
    rows = one_array(table[ROW])
    if item_ids.null_count:
        row = rows[pc.index(pc.is_null(item_ids), True).as_py()].as_py()
        raise RowError("catalog item_id: null or empty; every item needs an id", row)
    try:
        texts = render(template, table)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"catalog text: {str(error).splitlines()[0]}; columns of the template must be UTF-8 text or numbers"
        ) from error
    _require_utf8(texts, "catalog text: a text")
    result = pa.table({"item_id": item_ids, "text": texts, "content_hash": content_hash(texts), ROW: table[ROW]})
    empty = pc.equal(texts, "")
    if not pc.any(empty).as_py():
        return result
    if empty_text == "error":
        place = pc.index(empty, True).as_py()
        raise RowError(
            f"catalog text: item_id {item_ids[place].as_py()!r} has null or empty text "
            f"({pc.sum(empty).as_py()} such rows in its batch); give it one, or set data.empty_text: drop",
            rows[place].as_py(),
        )
    return result.filter(pc.invert(empty))


def index_catalog(listing: pa.Table, num_rows: int) -> CatalogIndex:
    """Distinct ids in table order.

    Args:
        listing: item_id, content_hash, row of every row that has text.
        num_rows: rows read, those without text included.

    Raises:
        DataError: nothing left, or an id with two texts.
    """
    if not listing.num_rows:
        raise DataError(f"catalog: no item has text ({num_rows} rows read); check the template's columns")
    listing = listing.sort_by(ROW)
    codes = pc.dictionary_encode(normalize_ids(listing["item_id"], "catalog item_id"))
    order = codes.indices.to_numpy()
    _, first = np.unique(order, return_index=True)
    first.sort()
    hashes = one_array(listing["content_hash"])
    same = pc.equal(hashes, pc.take(hashes, pa.array(first[order])))  # codes are given in order of appearance
    if not pc.all(same).as_py():
        place = pc.index(same, False).as_py()
        raise DuplicateItemError(codes.dictionary[int(order[place])].as_py(), int(first[order[place]]), place)
    rows = one_array(listing[ROW]).to_numpy()
    dropped = {"items_without_text": num_rows - listing.num_rows, "items_repeated": listing.num_rows - len(first)}
    return CatalogIndex(codes.dictionary, rows[first], hashes.take(pa.array(first)), dropped)


class DuplicateItemError(DataError):
    """An item_id with two texts; `rows` are places in the sorted listing, for whoever can look the texts up."""

    def __init__(self, item_id: object, *places: int, texts: tuple[str, ...] = ()) -> None:
        shown = " and ".join(repr(text[:SHOWN] + ("…" if len(text) > SHOWN else "")) for text in texts)
        super().__init__(
            f"catalog item_id: {item_id!r} appears twice with two texts{': ' + shown if shown else ''}; "
            "an id must stand for one item"
        )
        self.item_id, self.places = item_id, places


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column
