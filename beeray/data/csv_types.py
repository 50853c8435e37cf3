"""What the beginning of a CSV tells of its columns' types, and what they are read as to the end of the file.

Ids are read as text all along, and looked at. Of values and timestamps the first block decides; what it cannot know of
the rest (a fraction after whole numbers, milliseconds after seconds) is allowed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.csv
from pyarrow import fs

from beeray.data.storage import resolve
from beeray.data.table_files import PARSE_CSV, format_of, read_options, unreadable, whole_numbers

EMPTY_SO_FAR = {"value": pa.float64(), "timestamp": pa.int64()}
"""Types of columns of which no file's first block holds anything."""
Types = Mapping[str, pa.DataType]


def head_types(
    path: str,
    filesystem: fs.FileSystem,
    id_columns: Sequence[str],
    others: Mapping[str, str],
    *,
    unchecked_text: bool,
    header: Sequence[str] = (),
) -> dict[str, pa.DataType]:
    """What the first block of a CSV tells of its ids, values and timestamps; null of a column that is empty in it.

    Ids are int64, or strings unless all are plain whole numbers (`whole_numbers`). What comes after that block is read
    as text and looked at by whoever reads it.

    Args:
        others: column → `value` or `timestamp`.
    """
    if format_of(path) != "csv":
        return {}
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(dict.fromkeys([*id_columns, *others])),
        include_missing_columns=True,
        column_types=dict.fromkeys(id_columns, pa.string()),
        check_utf8=not unchecked_text,
    )
    with unreadable(path, "repair or remove it"), filesystem.open_input_stream(resolve(path)[1]) as stream:
        reader = pyarrow.csv.open_csv(
            stream, read_options=read_options(header), parse_options=PARSE_CSV, convert_options=convert
        )
        head = next(iter(reader), None)
    if head is None:
        return dict.fromkeys([*id_columns, *others], pa.null())
    widened = {column: _widened(head[column].type, name) for column, name in others.items()}
    return widened | {column: _id_type(head[column]) for column in id_columns}


def read_types(told: Sequence[Types], others: Mapping[str, str]) -> list[dict[str, pa.DataType]]:
    """Of each file the types that its values and timestamps are read as: where it begins without any, another file's.

    Beside files of other formats, whose types are as they are, a CSV's are what its beginning says.

    Args:
        told: `head_types` of every file; empty of one of another format.
        others: column → `value` or `timestamp`.
    """
    types: list[dict[str, pa.DataType]] = [{} for _ in told]
    if not all(told):
        return types
    for column, name in others.items():
        known = [one[column] for one in told if column in one and not pa.types.is_null(one[column])]
        for mine, one in zip(types, told, strict=True):
            if column in one:
                mine[column] = one[column] if not pa.types.is_null(one[column]) else [*known, EMPTY_SO_FAR[name]][0]
    return types


def _id_type(ids: pa.Array) -> pa.DataType:
    numbers = whole_numbers(ids)
    if numbers is None:
        return pa.string()
    return pa.null() if numbers.null_count == len(numbers) else numbers.type


def _widened(kind: pa.DataType, name: str) -> pa.DataType:
    """A type that also holds what may come later: numbers with fractions, times of day, microseconds."""
    if name == "value" and pa.types.is_integer(kind):
        return pa.float64()
    if name == "timestamp" and (pa.types.is_date(kind) or kind in (pa.timestamp("s"), pa.timestamp("s", "UTC"))):
        return pa.timestamp("us", None if pa.types.is_date(kind) else kind.tz)
    return kind
