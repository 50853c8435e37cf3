"""One parquet file of a store, read and written in one piece."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from beeray.data.storage import resolve, storage_errors
from beeray.data.table_files import unreadable
from beeray.errors import DataError

ROW_GROUP_ROWS = 4096
REMEDY = "delete the folder that it belongs to, and make it again"


def read_part(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, or some of its columns.

    Raises:
        DataError: it is missing, damaged, or has no such column.
    """
    filesystem, inside = resolve(path)
    with unreadable(path, REMEDY), storage_errors(path):
        table = pq.read_table(inside, columns=list(columns) if columns else None, filesystem=filesystem)
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}, so it is no part of what it lies in; {REMEDY}")
    return table


def write_part(table: pa.Table, path: str) -> None:
    """Write a part in row groups of a few thousand rows, so that readers can stream and share it."""
    filesystem, inside = resolve(path)
    with storage_errors(path), filesystem.open_output_stream(inside) as stream:
        pq.write_table(table, stream, row_group_size=ROW_GROUP_ROWS, compression="zstd")
